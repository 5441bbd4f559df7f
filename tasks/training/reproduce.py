"""Do the training behind a release again, and compare the held-out loss.

`python -m tasks reproduce RELEASE [--run RUN_URI] [--start]` reads the ledger and the evidence kept with the release, says
what is the same, what differs and what is missing, and prepares a run folder: the very rows (a manifest of
`validate_dataset` that names the same frozen bytes), the recipe as a file, and `reproduce/reproduce.json`. It prints the
commands that train there; with `--start` it gives them itself. Called again with `--run` after them it compares:
`reproduce/comparison.json`, exit code 0 within the tolerance, 3 outside of it. Nothing outside the run folder is written.
Fails with `ReproductionError` when something is missing, `ReleaseError` for a release that the ledger has not or whose
evidence does not hold, and as the stages do.
"""

import json
import platform
import secrets
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import yaml

from tasks.contracts import Manifest, digest, manifest_uri, stage_uri
from tasks.errors import OptionError, ReproductionError
from tasks.options import parse_options
from tasks.provenance import code_revision
from tasks.release import ledger as releases
from tasks.release.ledger import ledger
from tasks.settings import Settings, settings
from tasks.storage import Storage
from tasks.training.recipes import Recipe
from tasks.training.reproduce_checks import Examined, examine
from tasks.training.reproduce_compare import METRIC, compare, metric, tolerance, unlike
from tasks.training.reproduce_original import Original, recall

FORMAT = "millrace.reproduction/1"
OUTSIDE = 3  # the exit code of a held-out loss outside the tolerance
_USAGE = "python -m tasks reproduce RELEASE [--run RUN_URI] [--start]"


def main(arguments: list[str]) -> int:
    """`python -m tasks reproduce RELEASE [--run RUN_URI] [--start]`: prepare, train again, compare."""
    number, given, start = _parsed(arguments)
    own = settings()
    storage = Storage(own.s3_endpoint_url)
    with ledger(own) as connection:
        release = releases.get(connection, number)
    original = recall(storage, release)
    run = (given or _new_run(own, number)).rstrip("/")
    if not start and storage.exists(manifest_uri(run, "evaluate")):
        return _compare(storage, run, original)
    examined = examine(own, storage, original)
    _tell(original, examined)
    commands = prepare(own, storage, original, examined, run)
    if not start:
        _print_commands(run, commands)
        return 0
    if away := examined.of("not here"):
        raise ReproductionError(
            f"expected a machine that can train it, found: {'; '.join(f'{one.what}: {one.text}' for one in away)}. "
            f"What it needs is in {run}."
        )
    return _train(commands) or _compare(storage, run, original)


def prepare(own: Settings, storage: Storage, original: Original, examined: Examined, run: str) -> list[list[str]]:
    """Write the run folder and return the commands that train in it. Raises ReproductionError when something is missing."""
    if (missing := examined.of("missing")) or examined.recipe is None:
        raise ReproductionError(
            f"expected everything that release {original.release.release} was trained with, found missing:\n  "
            + "\n  ".join(f"{one.what}: {one.text}" for one in missing)
            + "\nNext: put back what is missing; nothing was prepared."
        )
    _require_own_folder(storage, run, original)
    folder = stage_uri(run, "reproduce")
    recipe = f"{folder}/recipe.yaml"
    storage.put_bytes(recipe, as_yaml(examined.recipe), content_type="application/yaml")
    commands = _commands(original, examined, run, recipe)
    allowed = tolerance(examined.recipe.distribution.accelerator, unlike(original.train.facts, examined.here))
    report = {
        "format": FORMAT,
        "release": original.release.release,
        "evidence_uri": original.release.evidence_uri,
        "evidence_sha256": original.release.evidence_sha256,
        "model_version": original.release.model_version,
        "trained_in": original.train.run,
        "findings": [asdict(one) for one in examined.findings],
        "expected": {
            METRIC: metric(original.evaluate.metrics, METRIC),
            "weights_sha256": original.weights.sha256,
            "tolerance_here": asdict(allowed),
        },
        "commands": [shlex.join(["python", "-m", "tasks", *command]) for command in commands],
    }
    storage.put_json(f"{folder}/reproduce.json", report)
    storage.write_manifest(_dataset(own, original, run))
    return commands


def as_yaml(recipe: Recipe) -> bytes:
    """Return a recipe as a file that `load_recipe` reads as the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True).encode()


def _parsed(arguments: list[str]) -> tuple[int, str, bool]:
    rest = [argument for argument in arguments if argument != "--start"]
    if not rest or not rest[0].isdecimal():
        raise OptionError(
            f"expected {_USAGE}, found {' '.join(arguments) or 'nothing'}. Next: name a release by its number."
        )
    given = parse_options(rest[1:])
    run = given.pop("run", "")
    if given or (run and not run.startswith("s3://")):
        raise OptionError(f"expected {_USAGE}, found {' '.join(arguments)}. Next: correct the command.")
    return int(rest[0]), run, len(rest) < len(arguments)


def _new_run(own: Settings, number: int) -> str:
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    return f"s3://{own.s3_bucket}/runs/reproduce/release-{number}-{moment}-{secrets.token_hex(2)}"


def _require_own_folder(storage: Storage, run: str, original: Original) -> None:
    """A run folder of something else must not get another dataset. Raises ReproductionError."""
    place = f"{stage_uri(run, 'reproduce')}/reproduce.json"
    if storage.exists(place):
        found = json.loads(storage.get_bytes(place))
        if found.get("evidence_sha256") == original.release.evidence_sha256:
            return
        said = f"one that reproduces release {found.get('release')}"
    else:
        recipe = f"{stage_uri(run, 'reproduce')}/recipe.yaml"  # a preparation that was cut short
        others = [uri for uri, _size, _etag in storage.list(f"{run}/") if uri != recipe]
        if not others:
            return
        said = others[0]
    raise ReproductionError(f"expected an empty run folder at {run}, found {said}. Next: name another --run, or none.")


def _dataset(own: Settings, original: Original, run: str) -> Manifest:
    """Return a manifest of `validate_dataset` in the run folder that names the frozen rows of the original."""
    now = datetime.now(UTC)
    return original.dataset.model_copy(
        update={
            "run": run,
            "fingerprint": digest({"reproduces": original.dataset.fingerprint, "run": run}),
            "inputs": {},
            "outputs": original.frozen,
            "facts": original.dataset.facts
            | {"reproduces": original.release.release, "copied_from": original.dataset.uri},
            "code_revision": code_revision(own),
            "host": platform.node(),
            "started_at": now,
            "ended_at": now,
            "resource_seconds": {},
        }
    )


def _commands(original: Original, examined: Examined, run: str, recipe: str) -> list[list[str]]:
    """Return the stages that train again, and the comparison, as the arguments of `python -m tasks`."""
    assert examined.recipe is not None
    how, number = examined.recipe.distribution, str(original.release.release)
    what = ["--run", run, "--recipe", recipe, "--base-model", str(original.train.facts["base_model"])]
    if adapter := original.option("adapter"):
        what += ["--adapter", adapter]
    world = examined.here.get("ranks") or int(original.train.facts["ranks"])
    machines = ["--gpus-per-node", str(world // how.nodes)] if how.accelerator == "cuda" else []
    machines += ["--node-count", str(how.nodes)] if how.nodes > 1 else []
    return [
        ["plan_training", *what, *machines],
        ["train", *what, "--reproduces", number],
        ["evaluate", "--run", run],
        ["reproduce", number, "--run", run],
    ]


def _tell(original: Original, examined: Examined) -> None:
    release, train = original.release, original.train
    print(
        f"release {release.release}: {original.weights.kind} {original.weights.sha256}, version {release.model_version} of "
        f"{release.model_name}, trained {train.ended_at:%Y-%m-%d %H:%M} UTC in {train.run}"
    )
    for one in examined.findings:
        print(f"  {one.level:<8}  {one.what:<13}  {one.text}")


def _print_commands(run: str, commands: Sequence[Sequence[str]]) -> None:
    print(f"prepared {run}; Next:")
    for command in commands:
        print(f"  {shlex.join(['python', '-m', 'tasks', *command])}")


def _train(commands: Sequence[list[str]]) -> int:
    """Give the commands as a person would, but for the last; return the first exit code that is not 0."""
    from tasks.__main__ import main as command

    for arguments in commands[:-1]:
        if code := command(arguments):
            return code
    return 0


def _compare(storage: Storage, run: str, original: Original) -> int:
    found = compare(storage, run, original)
    value: dict[str, Any] = asdict(found) | {"difference": found.difference, "within": found.within}
    storage.put_json(f"{stage_uri(run, 'reproduce')}/comparison.json", value)
    for line in found.lines():
        print(line)
    print(json.dumps(value, sort_keys=True))
    return 0 if found.within else OUTSIDE
