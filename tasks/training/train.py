"""Fine-tune the base model with DeepSpeed, once for each set of inputs.

Reads the frozen training rows of `validate_dataset`, the recipe, and the base model. Writes the adapter to
`s3://BUCKET/models/TRAINING_FINGERPRINT/`, its `training.json` last, checkpoints to the run folder, and
metrics to MLflow while it trains. The fingerprint is a digest of all that decides the result; where its
`training.json` stands and the bytes it names are there, nothing is trained. On SIGTERM it saves a
checkpoint after the step it is in, and raises `Preempted`; a retry of the run goes on from there.

Fails with `RecipeError`, `ModelError`, `TryAgain` (a rank was killed), `ServiceUnavailable`, and
`MillraceError` when a rank failed or ended without proof.
"""

import json
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import models
from tasks.contracts import Artifact, digest, digest_of
from tasks.errors import ManifestError, MillraceError, Preempted, ServiceUnavailable
from tasks.stage import Stage, StageContext, StageOptions, StageResult, from_setting
from tasks.training import adapters, checkpoints
from tasks.training.curve import Curve
from tasks.training.ranks import Ranks, world_size
from tasks.training.recipes import Recipe, deepspeed_config, load_recipe

log = logging.getLogger(__name__)

# Raise this when a change of the code changes what the same inputs train.
TRAINER_VERSION = 1
_LAST = "training.json"


class Options(StageOptions):
    """Recipe and base model."""

    recipe: str = from_setting("recipe", "Name of a file in tasks/training/recipes")
    base_model: str = from_setting("base_model", "package:..., hub:ORG/NAME@REVISION or s3://bucket/folder")


@dataclass(frozen=True)
class Plan:
    """What is to be trained, and the fingerprint of it."""

    recipe_name: str
    recipe: Recipe
    world: int
    base_model: str
    base_folder: Path
    base_revision: str
    rows: Artifact
    dataset_sha256: str

    @property
    def fingerprint(self) -> str:
        """A digest of everything that decides the adapter's bytes."""
        return digest(
            {
                "rows": self.rows.sha256,
                "recipe": self.recipe.model_dump(mode="json", exclude={"description", "evaluation", "checkpoints"}),
                "deepspeed": deepspeed_config(self.recipe),
                "base_model": self.base_model,
                "base_revision": self.base_revision,
                "world": self.world,
                "trainer": TRAINER_VERSION,
            }
        )


def run(context: StageContext, options: Options) -> StageResult:
    """Train an adapter, or return the one that these inputs trained before."""
    plan = _plan(context, options)
    folder = f"{context.bucket}/models/{plan.fingerprint}"
    kept = _kept(context, folder)
    if kept is not None:
        log.info("the same inputs were trained before: 0 steps, the adapter at %s stands", folder)
        return _result(context, plan, folder, kept, steps=0)
    with tempfile.TemporaryDirectory(prefix="millrace-train-") as local:
        trained = _train(context, plan, Path(local), folder)
    return _result(context, plan, folder, trained, steps=trained["steps"])


def _plan(context: StageContext, options: Options) -> Plan:
    recipe = load_recipe(options.recipe)
    base = models.fetch(options.base_model, context.settings.cache_dir, context.storage)
    return Plan(
        recipe_name=options.recipe,
        recipe=recipe,
        world=world_size(recipe),
        base_model=options.base_model,
        base_folder=base,
        base_revision=models.revision(options.base_model, base),
        rows=context.input("validate_dataset", "train"),
        dataset_sha256=str(context.inputs["validate_dataset"].facts["dataset_sha256"]),
    )


def _kept(context: StageContext, folder: str) -> dict[str, Any] | None:
    """Return what an earlier training of the same inputs left, if all of it is there."""
    if not context.storage.exists(f"{folder}/{_LAST}"):
        return None
    kept: dict[str, Any] = json.loads(context.storage.get_bytes(f"{folder}/{_LAST}"))
    try:
        for value in kept["outputs"].values():
            context.storage.verify(Artifact.model_validate(value))
    except ManifestError as error:
        log.warning("an earlier training of these inputs is damaged, it is done again: %s", error)
        context.storage.delete_prefix(f"{folder}/")
        return None
    return kept


def _train(context: StageContext, plan: Plan, local: Path, folder: str) -> dict[str, Any]:
    """Run the ranks, keep the adapter below `folder`, and return what `training.json` says."""
    began = time.monotonic()
    earlier = _prepare(context, plan, local)
    with Ranks(local, plan.recipe, plan.world) as ranks:
        # While the ranks import torch, this process makes the MLflow run.
        name = f"{context.run.rstrip('/').rsplit('/', 1)[-1]} train"
        curve = Curve(context.settings, name, _tags(context, plan), _parameters(plan))
        curve.rows.extend(earlier)
        try:
            ranks.follow(_Watch(context, plan, local, curve), context.stopping)
            proofs = ranks.proofs()
            if proofs[0]["step"] < proofs[0]["steps"]:
                raise Preempted(
                    f"expected {proofs[0]['steps']} steps, found SIGTERM after step {proofs[0]['step']}; a checkpoint is saved. "
                    "Next: try again, it goes on from there."
                )
            trained = _keep(context, plan, local, folder, curve, proofs, time.monotonic() - began)
        except MillraceError as error:
            _give_up(curve, "KILLED" if isinstance(error, Preempted) else "FAILED")
            raise
        curve.close("FINISHED", {name: float(value) for name, value in trained["metrics"].items()})
    # Only now is this training complete: the ranks have proven it, the bytes are there, MLflow has the curve.
    context.storage.put_json(f"{folder}/{_LAST}", trained)
    return trained


def _prepare(context: StageContext, plan: Plan, local: Path) -> list[dict[str, Any]]:
    """Lay out the job's folder; return the loss curve of an interrupted try that is continued."""
    context.storage.get_file(plan.rows, local / "train.jsonl")
    place = f"{context.folder}/checkpoints"
    restored = checkpoints.restore(context.storage, place, plan.fingerprint, local)
    job = {
        "recipe": plan.recipe.model_dump(mode="json"),
        "model": str(plan.base_folder),
        "resume": str(restored[0]) if restored else None,
    }
    (local / "job.json").write_text(json.dumps(job), encoding="utf-8")
    return restored[1] if restored else []


class _Watch:
    """What happens on an event of a rank: progress, metrics, and the upload of whole checkpoints."""

    def __init__(self, context: StageContext, plan: Plan, local: Path, curve: Curve) -> None:
        self.context, self.plan, self.local, self.curve = context, plan, local, curve
        self.saved: dict[int, set[int]] = {}

    def __call__(self, rank: int, event: dict[str, Any]) -> None:
        if "checkpoint" in event:
            step = int(event["checkpoint"])
            ranks = self.saved.setdefault(step, set())
            ranks.add(rank)
            if len(ranks) == self.plan.world:
                self._upload(step)
        elif rank == 0:
            self.context.progress(event["step"], event["steps"], "steps")
            self.curve.add(event)

    def _upload(self, step: int) -> None:
        files = self.local / f"checkpoint-{step}"
        if files.is_dir():  # the trainer removes old ones by itself
            place, keep = f"{self.context.folder}/checkpoints", self.plan.recipe.checkpoints.keep
            checkpoints.save(
                self.context.storage, place, self.plan.fingerprint, step, files, list(self.curve.rows), keep
            )


def _keep(
    context: StageContext,
    plan: Plan,
    local: Path,
    folder: str,
    curve: Curve,
    proofs: list[dict[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """Check and upload what was trained; return it as `training.json` will say it."""
    final = adapters.finish(local / "adapter", local / "final", plan.base_model)
    outputs = {f"adapter/{name}": item for name, item in context.storage.put_folder(f"{folder}/adapter", final).items()}
    outputs["loss_curve"] = context.storage.put_rows(f"{folder}/loss_curve.jsonl", curve.rows)
    outputs["recipe"] = context.storage.put_json(f"{folder}/recipe.json", plan.recipe.model_dump(mode="json"))
    proof = proofs[0]
    return {
        "outputs": {name: artifact.model_dump(mode="json") for name, artifact in outputs.items()},
        "steps": proof["steps"],
        "counts": {name: int(proof[name]) for name in ("rows", "tokens", "answer_tokens", "truncated")},
        "metrics": {
            # Both on the rows of the first step: before any step, and after the last.
            "loss_start": float(curve.rows[0]["loss"]),
            "loss_end": float(proof["first_rows_loss"]),
            "tokens_per_second": proof["tokens"] / max(proof["train_seconds"], 1e-3),
            "padding_share": 1 - proof["tokens"] / proof["padded_tokens"],
            "peak_rss_mb": float(max(other["peak_rss_mb"] for other in proofs)),
            "train_seconds": proof["train_seconds"],
            "stage_seconds": seconds,
        },
        "mlflow_run_id": curve.run_id,
    }


def _result(context: StageContext, plan: Plan, folder: str, trained: dict[str, Any], steps: int) -> StageResult:
    outputs = {name: Artifact.model_validate(value) for name, value in trained["outputs"].items()}
    files = {
        name.removeprefix("adapter/"): artifact for name, artifact in outputs.items() if name.startswith("adapter/")
    }
    return StageResult(
        outputs=outputs,
        counts=trained["counts"] | {"steps": steps},
        metrics=trained["metrics"],
        facts={
            "adapter_uri": f"{folder}/adapter",
            "adapter_sha256": digest_of(files),
            "training_fingerprint": plan.fingerprint,
            "mlflow_run_id": trained["mlflow_run_id"],
            "reused": steps == 0,
            "recipe": plan.recipe_name,
            "base_model": plan.base_model,
            "base_revision": plan.base_revision,
            "dataset_sha256": plan.dataset_sha256,
            "ranks": plan.world,
        },
        base_model=f"{plan.base_model}@{plan.base_revision}",
        gpus=plan.world if plan.recipe.distribution.accelerator == "cuda" and steps else 0,
    )


def _tags(context: StageContext, plan: Plan) -> dict[str, str]:
    return {
        "stage": "train",
        "run_folder": context.run,
        "training_fingerprint": plan.fingerprint,
        "dataset_sha256": plan.dataset_sha256,
        "base_model": plan.base_model,
        "base_revision": plan.base_revision,
        "recipe": plan.recipe_name,
    }


def _parameters(plan: Plan) -> dict[str, Any]:
    parts = plan.recipe.model_dump(mode="json")
    flat = {f"{part}.{key}": value for part in ("data", "lora", "optimisation") for key, value in parts[part].items()}
    return flat | {"recipe": plan.recipe_name, "ranks": plan.world, "deepspeed": plan.recipe.distribution.deepspeed}


def _give_up(curve: Curve, status: str) -> None:
    """Say in MLflow how it ended; the error on its way matters more than a server that is away."""
    try:
        curve.close(status, {})
    except ServiceUnavailable as error:
        log.warning("the MLflow run %s stays open: %s", curve.run_id, error)


STAGE = Stage("train", Options, run, needs=("validate_dataset",), graceful=True)
