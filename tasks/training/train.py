"""Fine-tune the base model with DeepSpeed, once for each set of inputs.

Reads the frozen rows of `validate_dataset`, the plan of `plan_training` (which refuses what cannot be trained, before
a GPU is asked for), the recipe, and the base model. Writes the trained weights to
`s3://BUCKET/models/TRAINING_FINGERPRINT/`, their `training.json` last, checkpoints to the run folder, and metrics
to MLflow while it trains. The fingerprint is a digest of all that decides the result; where its `training.json`
stands and the bytes it names are there, nothing is trained. What is damaged there is left as it is, for a release may name
the rest of it: the same inputs then train to `TRAINING_FINGERPRINT-2/`, and so on. On SIGTERM it saves a checkpoint after the step
it is in, and raises `Preempted`; a retry of the run goes on from there, also on another number of ranks.

With `--reproduces RELEASE` it trains what was trained before, for `python -m tasks reproduce`: the result goes to the run
folder, what stands at `models/` is left alone, and it is never registered.

With `distribution.nodes` above 1 each node runs this stage: node 0 as such, node K as its part `node-K`.
Fails as `tasks.training.job` says, and with `RecipeError`, `ModelError` and `SettingsError`.
"""

import itertools
import json
import logging
from typing import Any

from pydantic import Field

from tasks import models
from tasks.contracts import Artifact, digest_of, stage_uri
from tasks.errors import ManifestError, OptionError
from tasks.stage import Stage, StageContext, StageOptions, StageResult, from_setting
from tasks.training import adapters
from tasks.training.job import Job, Plan
from tasks.training.made_with import made_with
from tasks.training.recipes import load_recipe
from tasks.training.team import gather

log = logging.getLogger(__name__)
_LAST = "training.json"


class Options(StageOptions):
    """Recipe, base model, and what to start from."""

    recipe: str = from_setting("recipe", "Name of a file in tasks/training/recipes, or a .yaml of your own")
    base_model: str = from_setting("base_model", "package:..., hub:ORG/NAME@REVISION or s3://bucket/folder")
    adapter: str = ""
    reproduces: str = Field(
        default="",
        pattern=r"^[0-9]*$",
        description="Release whose training is done again; the result is never released",
    )


def run(context: StageContext, options: Options) -> StageResult:
    """Train, or return what these inputs trained before."""
    plan = _plan(context, options)
    folder, kept = _place(context, _folder(context, plan, options))
    if kept is not None:
        log.info("the same inputs were trained before: 0 steps, what stands at %s is taken", folder)
        kept["outputs"] |= _own_recipe(context, plan, kept)
        return _result(plan, folder, kept, steps=0, reproduces=options.reproduces)
    trained = Job(context, plan, folder).run()
    if plan.team.node:
        return StageResult(counts={"steps": trained["steps"]}, facts={"node": plan.team.node}, gpus=_gpus(plan))
    trained["made_with"] = made_with(context.settings, plan.recipe)
    # Only now is this training complete: the ranks have proven it, the bytes are there, MLflow has the curve.
    context.storage.put_json(f"{folder}/{_LAST}", trained)
    return _result(plan, folder, trained, steps=trained["steps"], reproduces=options.reproduces)


def _folder(context: StageContext, plan: Plan, options: Options) -> str:
    """Return where the result goes: of the same inputs always the same place, but for what is done again on purpose."""
    if options.reproduces:
        return f"{stage_uri(context.run, context.stage)}/reproduction"
    return f"{context.bucket}/models/{plan.fingerprint}"


def _plan(context: StageContext, options: Options) -> Plan:
    recipe = load_recipe(options.recipe, storage=context.storage)
    team = gather(recipe, context.settings)
    expected = f"node-{team.node}" if team.node else None
    if context.part != expected:
        raise OptionError(
            f"expected --part {expected} on node {team.node}, found {context.part}. Next: correct the command."
        )
    planned = context.inputs["plan_training"].options
    for name in ("recipe", "base_model", "adapter"):
        if planned[name].value != getattr(options, name):
            raise ManifestError(
                f"expected a plan for {name} {getattr(options, name)!r}, found one for {planned[name].value!r}. "
                "Next: run plan_training with the same options."
            )
    base = models.fetch(options.base_model, context.settings.cache_dir, context.storage)
    rows = {"train": context.input("validate_dataset", "train")}
    if "validation" in context.inputs["validate_dataset"].outputs:
        rows["validation"] = context.input("validate_dataset", "validation")
    return Plan(
        recipe_name=options.recipe,
        recipe=recipe,
        team=team,
        base_model=options.base_model,
        base_folder=base,
        base_revision=models.revision(options.base_model, base),
        rows=rows,
        dataset_sha256=str(context.inputs["validate_dataset"].facts["dataset_sha256"]),
        adapter=adapters.read_folder(context.storage, options.adapter) if options.adapter else {},
    )


def _place(context: StageContext, folder: str) -> tuple[str, dict[str, Any] | None]:
    """Return where the result goes, and what an earlier training of the same inputs left there, if all of it is there.

    Nothing is deleted or written over: the ledger and the registry may name files of a folder that is damaged elsewhere.
    """
    for number in itertools.count(1):
        place = folder if number == 1 else f"{folder}-{number}"
        kept = _kept(context, place)
        if kept is not None or not any(True for _ in context.storage.list(f"{place}/")):
            return place, kept
        log.warning("%s holds no whole training; it is left as it is, and the next folder is looked at", place)
    raise AssertionError  # counting has no end


def _kept(context: StageContext, folder: str) -> dict[str, Any] | None:
    """Return what an earlier training of the same inputs left, if all of it is there."""
    if not context.storage.exists(f"{folder}/{_LAST}"):
        return None
    try:
        kept: dict[str, Any] = json.loads(context.storage.get_bytes(f"{folder}/{_LAST}"))
        for value in kept["outputs"].values():
            context.storage.verify(Artifact.model_validate(value))
    except (ManifestError, ValueError, KeyError) as error:
        log.warning("an earlier training of these inputs is damaged, it is done again: %s", error)
        return None
    return kept


def _own_recipe(context: StageContext, plan: Plan, kept: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe as an output of this run where it is no longer the one trained with.

    What may differ trained nothing (`evaluation`, say), but later stages read it, and have to read this run's.
    """
    recipe = plan.recipe.model_dump(mode="json")
    if context.storage.get_json(Artifact.model_validate(kept["outputs"]["recipe"])) == recipe:
        return {}
    return {"recipe": context.storage.put_json(f"{context.folder}/recipe.json", recipe).model_dump(mode="json")}


def _result(plan: Plan, folder: str, trained: dict[str, Any], *, steps: int, reproduces: str) -> StageResult:
    outputs = {name: Artifact.model_validate(value) for name, value in trained["outputs"].items()}
    kind = "model" if plan.whole else "adapter"
    return StageResult(
        outputs=outputs,
        counts=trained["counts"] | {"steps": steps},
        metrics=trained["metrics"],
        facts={
            "weights": kind,
            f"{kind}_uri": f"{folder}/{kind}",
            f"{kind}_sha256": digest_of(adapters.files_of(outputs, kind)),
            "training_fingerprint": plan.fingerprint,
            "mlflow_run_id": trained["mlflow_run_id"],
            "reused": steps == 0,
            "outcome": trained["outcome"],
            "recipe": plan.recipe_name,
            "base_model": plan.base_model,
            "base_revision": plan.base_revision,
            "dataset_sha256": plan.dataset_sha256,
            "ranks": plan.team.world,
            "made_with": trained.get("made_with"),  # None of what was trained before it was recorded
            "start_adapter_sha256": digest_of(plan.adapter) if plan.adapter else None,
        }
        | ({"reproduces": int(reproduces)} if reproduces else {}),
        base_model=f"{plan.base_model}@{plan.base_revision}",
        gpus=_gpus(plan) if steps else 0,
    )


def _gpus(plan: Plan) -> int:
    return plan.team.per_node if plan.recipe.distribution.accelerator == "cuda" else 0


STAGE = Stage("train", Options, run, needs=("validate_dataset", "plan_training"), graceful=True)
