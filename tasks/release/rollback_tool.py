"""`python -m tasks rollback --to N --reason TEXT [--by WHO]`: go back to an earlier release, without Airflow.

Runs the stage `roll_back`, as the DAG does, in a run folder of its own (`s3://BUCKET/runs/roll_back/manual__...`): the same
proofs, the same row of the ledger, the same mirror in MLflow, a manifest, and a row of `stage_runs`. Who is recorded is
`--by`, else the user of this machine. Fails as the stage does; the live release stays then. After it `announce_rollback` tells
the channels that are set, in the same run folder; what becomes of that is a line of the output, and no failure.
"""

import getpass
import os
import secrets
from datetime import UTC, datetime
from typing import Any

from tasks.contracts import Manifest
from tasks.errors import MillraceError, OptionError
from tasks.observability.stage_runs import Attempt, recorded
from tasks.observability.trace import of_stage
from tasks.options import parse_options, require_words
from tasks.release import announce_rollback
from tasks.release.plain import plain
from tasks.release.releases_tool import number_of
from tasks.release.roll_back import STAGE
from tasks.settings import Settings
from tasks.stage import Stage, run_stage

USAGE = "python -m tasks rollback --to N --reason TEXT [--by WHO]"


def roll_back(settings: Settings, release: int, reason: str, by: str) -> Manifest:
    """Restore a release in a new run folder; return the manifest. Raises what the stage raises."""
    moment = f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}"
    run = f"s3://{settings.s3_bucket}/runs/roll_back/manual__{moment}-{secrets.token_hex(4)}"
    return _run(STAGE, settings, run, {"release": str(release), "reason": reason, "approved_by": by})


def announce(settings: Settings, run: str) -> str:
    """Tell people, as the DAG does after its stage; return a line about it, and raise nothing: the release is live."""
    stage = announce_rollback.STAGE
    try:
        told = _run(stage, settings, run, {}).facts
    except MillraceError as error:
        problem = str(error)
    except Exception as error:  # noqa: BLE001 - whatever it was, it must not make a rollback look failed
        problem = type(error).__name__
    else:
        return f"announced to {', '.join(told['sent'])}" if told["sent"] else "announced nowhere: no channel is set"
    return f"warning: not announced everywhere: {problem} Again: python -m tasks {stage.name} --run {run}"


def _run(stage: Stage[Any], settings: Settings, run: str, options: dict[str, str]) -> Manifest:
    attempt = Attempt(run, stage.name, None, None, of_stage(run, os.environ))
    with recorded(settings.database_url.get_secret_value(), attempt):
        manifest = run_stage(stage, settings, run, None, options)
        attempt.ended_with(manifest)
    return manifest


def user() -> str:
    """Return the user of this machine; a number where it has no name, as in some pods."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def main(arguments: list[str]) -> int:
    """Restore the release that is named."""
    from tasks.settings import settings

    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    given = parse_options(arguments)
    target = number_of(given.get("to"), "to")
    if target is None or set(given) - {"to", "reason", "by"}:
        raise OptionError(f"expected {USAGE}, found {' '.join(arguments)}. Next: correct the command.")
    require_words("rollback", given, "reason")
    made = roll_back(settings(), target, given["reason"].strip(), given.get("by", "").strip() or user())
    facts = made.facts
    print(
        f"release {facts['release']} is live: it restores release {target} (model {plain(facts['model_name'])} "
        f"{plain(facts['model_version'])}, index version {facts['index_version']}), as {plain(facts['approved_by'])} said"
    )
    if facts["mirror_problem"]:
        print(f"MLflow does not show it yet; the next stage of a release tries again: {plain(facts['mirror_problem'])}")
    print(plain(announce(settings(), made.run)))
    print(f"manifest {made.uri}")
    return 0
