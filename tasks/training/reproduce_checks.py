"""What a released training needs to be done again, and what of it is here: told before anything is trained.

Reads every byte of the dataset, the recipe as it was trained with, the base model, and this machine. Writes nothing but the
model cache. It does not fail for what it looks for: a finding says that it is missing, or other. Fails with
`ServiceUnavailable` when S3 does not answer.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from tasks import models
from tasks.contracts import Artifact, Manifest, digest_of
from tasks.errors import ManifestError, MillraceError, ModelError, RecipeError
from tasks.provenance import code_revision
from tasks.settings import Settings
from tasks.storage import Storage
from tasks.training import adapters
from tasks.training.job import Plan
from tasks.training.made_with import made_with
from tasks.training.recipes import Recipe, load_recipe, read_recipe
from tasks.training.reproduce_original import Original
from tasks.training.team import Team, gpus_here

# `differs`: it can be trained, and may come out otherwise. `not here`: it can be prepared, but this machine cannot train it.
Level = Literal["same", "differs", "not here", "missing"]
READ = ("train", "validation")  # the rows that decide what is trained


@dataclass(frozen=True)
class Finding:
    """One thing that decides a training, as it was then and is now."""

    what: str
    level: Level
    text: str


@dataclass
class Examined:
    """What was found. `here` is what `train` would say of itself on this machine, as far as that can be told."""

    findings: list[Finding]
    recipe: Recipe | None = None
    here: dict[str, Any] = field(default_factory=dict)

    def of(self, level: Level) -> list[Finding]:
        """Return the findings of one level."""
        return [one for one in self.findings if one.level == level]


def examine(settings: Settings, storage: Storage, original: Original) -> Examined:
    """Return what is the same, what differs and what is missing of a training."""
    recipe, about_recipe = recipe_of(storage, original)
    revision, about_base = base_model(settings, storage, original)
    start, about_start = start_adapter(storage, original)
    found = [code(settings, original), dataset(storage, original), about_recipe, about_base, about_start]
    if recipe is None:
        return Examined(found)
    here: dict[str, Any] = {"made_with": made_with(settings, recipe)}
    here["ranks"], about_ranks = ranks(recipe, original)
    seed = Finding("seed", "same", f"{recipe.optimisation.seed}, of the recipe")
    found += [seed, about_ranks, *machine(original, here["made_with"])]
    if revision is not None and start is not None:
        here["training_fingerprint"], about_inputs = inputs(original, recipe, revision, start)
        found.append(about_inputs)
    return Examined(found, recipe, here)


def code(settings: Settings, original: Original) -> Finding:
    """Compare the code's revision of now with the one that trained."""
    recorded = original.train.facts.get("made_with") or {}
    then, now = str(recorded.get("code_revision", original.train.code_revision)), code_revision(settings)
    if then == now and "+changes" not in now and now != "unknown":
        return Finding("code", "same", now)
    text = f"{then} then, {now} now"
    if "+changes" in then + now:
        text += "; +changes is a tree with changes that no commit holds"
    return Finding("code", "differs", f"{text}. Next: git checkout {then.removesuffix('+changes')}, for the very code")


def dataset(storage: Storage, original: Original) -> Finding:
    """Read every byte of the frozen rows and compare with the digests of the evidence."""
    wrong = []
    for artifact in original.frozen.values():
        try:
            with tempfile.TemporaryDirectory(prefix="millrace-dataset-") as folder:
                storage.get_file(artifact, Path(folder) / "rows")
        except ManifestError as error:
            wrong.append(fault(error))
    if wrong:
        return Finding("dataset", "missing", f"{'; '.join(wrong)}. Next: restore datasets/ from a backup")
    counted = ", ".join(f"{artifact.rows} {side}" for side, artifact in original.frozen.items())
    return Finding(
        "dataset", "same", f"{original.dataset.facts.get('dataset_sha256')}: {counted} rows, every byte read"
    )


def recipe_of(storage: Storage, original: Original) -> tuple[Recipe | None, Finding]:
    """Return the recipe as it was trained with, never today's file of that name."""
    name = str(original.train.facts.get("recipe"))
    try:
        recipe = kept_recipe(storage, original.train)
    except (ManifestError, RecipeError) as error:
        return None, Finding("recipe", "missing", f"{name} as it was trained with: {fault(error)}")
    return recipe, Finding("recipe", "same", f"{name} as it was trained with; {_of_today(storage, name, recipe)}")


def kept_recipe(storage: Storage, train: Manifest) -> Recipe:
    """Return the recipe that a training was done with. Raises ManifestError, RecipeError."""
    if "recipe" not in train.outputs:
        raise ManifestError(f"expected an output recipe in {train.uri}, found none.")
    try:
        return read_recipe(storage, train.outputs["recipe"])
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, item["loc"])) for item in error.errors(include_url=False))
        raise RecipeError(
            f"expected a recipe that the code of now can read, found other keys ({keys}): check out the revision that "
            "trained it."
        ) from error


def _of_today(storage: Storage, name: str, then: Recipe) -> str:
    """Say how today's recipe of that name differs; nothing depends on it."""
    try:
        now = load_recipe(name, storage=storage).model_dump(mode="json")
    except RecipeError:
        return "no recipe of that name can be read today"
    before = then.model_dump(mode="json")
    changed = [part for part in before if part != "description" and before[part] != now[part]]
    return f"today's differs in {', '.join(changed)}" if changed else "today's is the same"


def base_model(settings: Settings, storage: Storage, original: Original) -> tuple[str | None, Finding]:
    """Return the revision of the base model that can be had here, None where it is not the one that was trained from."""
    facts = original.train.facts
    reference, expected = str(facts["base_model"]), str(facts["base_revision"])
    try:
        # Of the hub a commit names the bytes: nobody fetches gigabytes to learn it.
        fetch = models.fetch_tokenizer if models.HUB.match(reference) else models.fetch
        found = models.revision(reference, fetch(reference, settings.cache_dir, storage))
    except ModelError as error:  # not ServiceUnavailable: what does not answer is not missing
        return None, Finding("base model", "missing", f"{reference}: {fault(error)}")
    if found != expected:
        text = f"{reference}: expected revision {expected}, found {found}. Next: restore that model"
        return None, Finding("base model", "missing", text)
    return found, Finding("base model", "same", f"{reference}, revision {found}")


def start_adapter(storage: Storage, original: Original) -> tuple[dict[str, Artifact] | None, Finding]:
    """Return the files of the adapter that the training started from, none of one that started from the base model."""
    uri = original.option("adapter")
    if not uri:
        return {}, Finding("start adapter", "same", "none")
    try:
        found = adapters.read_folder(storage, uri)
    except ModelError as error:
        return None, Finding("start adapter", "missing", fault(error))
    expected = original.train.facts.get("start_adapter_sha256")
    if expected not in {None, digest_of(found)}:
        return None, Finding("start adapter", "missing", f"{uri}: expected {expected}, found {digest_of(found)}")
    note = "" if expected else "; its digest was not recorded, but the inputs as a whole were"
    return found, Finding("start adapter", "same", f"{uri}{note}")


def ranks(recipe: Recipe, original: Original) -> tuple[int | None, Finding]:
    """Return with how many ranks this machine would train, None where it cannot."""
    then, how = int(original.train.facts["ranks"]), recipe.distribution
    if how.nodes > 1:
        text = f"{then} on {how.nodes} nodes then. Next: start the commands as a Job of {how.nodes} nodes"
        return None, Finding("ranks", "not here", text)
    wanted: int | str = how.ranks
    if how.accelerator == "cuda":
        present = len(gpus_here())
        if present < 1 or wanted not in {"all", present}:
            text = f"{then} on GPUs then, {present} GPUs here. Next: give the commands on a machine with {then}"
            return None, Finding("ranks", "not here", text)
        wanted = present
    now = int(wanted)
    text = f"{now} on one {how.accelerator} machine" if now == then else f"{then} then, {now} here"
    return now, Finding("ranks", "same" if now == then else "differs", text)


def machine(original: Original, here: Mapping[str, Any]) -> list[Finding]:
    """Compare packages and hardware with what was recorded; earlier trainings recorded neither."""
    recorded = original.train.facts.get("made_with") or {}
    return [
        _compared("packages", recorded.get("packages"), here["packages"]),
        _compared("hardware", recorded.get("hardware"), here["hardware"]),
    ]


def _compared(what: str, then: Any, now: Any) -> Finding:
    if then is None:
        return Finding(what, "differs", f"not recorded then, {_told(now)} here")
    if then == now:
        return Finding(what, "same", _told(now))
    if isinstance(then, dict):
        then, now = (
            {name: side.get(name) for name in then | now if then.get(name) != now.get(name)} for side in (then, now)
        )
    return Finding(what, "differs", f"{_told(then)} then, {_told(now)} here")


def _told(value: Any) -> str:
    return ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, dict) else str(value)


def inputs(original: Original, recipe: Recipe, revision: str, start: dict[str, Artifact]) -> tuple[str, Finding]:
    """Take the training's fingerprint again: it also covers the DeepSpeed settings and the trainer's version."""
    plan = Plan(
        recipe_name="",
        recipe=recipe,
        team=Team(1),
        base_model=str(original.train.facts["base_model"]),
        base_folder=Path(),
        base_revision=revision,
        rows={side: original.frozen[side] for side in READ if side in original.frozen},
        dataset_sha256="",
        adapter=start,
    )
    then, now = str(original.train.facts["training_fingerprint"]), plan.fingerprint
    if then == now:
        return now, Finding("all inputs", "same", f"training fingerprint {now}")
    text = (
        f"training fingerprint {then} then, {now} now: the code of now would train another thing from the same recipe"
    )
    revision = str(original.train.code_revision).removesuffix("+changes")
    return now, Finding("all inputs", "missing", f"{text}. Next: git checkout {revision}, and reproduce with that code")


def fault(error: MillraceError) -> str:
    """Return what an error found; the next step it names is that of another situation."""
    return str(error).split(" Next: ")[0].strip().removesuffix(".")
