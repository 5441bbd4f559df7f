"""One training as a job of this machine: its folder, its ranks, and what is kept of it.

Reads what the plan names (rows, recipe, base model) and the newest checkpoint of the run. Writes the trained
weights and the loss curve below the plan's folder in S3, checkpoints below the run folder, and metrics to
MLflow while it trains. Node 0 does that for the whole training; other nodes only run their ranks and upload
their part of the checkpoints. Fails with `Preempted` (a checkpoint is saved), `TrainingDiverged`, `TryAgain` (a rank was
killed), `ServiceUnavailable`, and `MillraceError` when a rank failed or ended without proof.
"""

import json
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.contracts import Artifact, digest, stage_uri
from tasks.errors import MillraceError, Preempted, ServiceUnavailable, TrainingDiverged
from tasks.provenance import packages
from tasks.stage import StageContext
from tasks.training import adapters, elastic
from tasks.training.checkpoints import Checkpoints
from tasks.training.curve import Curve
from tasks.training.ranks import Ranks
from tasks.training.recipes import Recipe, deepspeed_config
from tasks.training.team import Team
from tasks.training.uploads import Uploads
from tasks.training.watch import Watch

log = logging.getLogger(__name__)

# Raise this when a change of the code changes what the same inputs train.
TRAINER_VERSION = 2


@dataclass(frozen=True)
class Plan:
    """What is to be trained, and the fingerprint of it."""

    recipe_name: str
    recipe: Recipe
    team: Team
    base_model: str
    base_folder: Path
    base_revision: str
    rows: dict[str, Artifact]  # `train`, and `validation` where the recipe asks for it
    dataset_sha256: str
    adapter: dict[str, Artifact]  # files of the adapter it starts from; empty: from the base model

    @property
    def fingerprint(self) -> str:
        """A digest of everything that decides the weights, but for the order in which ranks add numbers up.

        The number of ranks is no part of it: a training goes on with more or fewer, and its steps hold the same rows.
        """
        without = {"description", "evaluation", "checkpoints", "distribution"}
        return digest(
            {
                "rows": {name: artifact.sha256 for name, artifact in self.rows.items()},
                "recipe": self.recipe.model_dump(mode="json", exclude=without),
                "accelerator": self.recipe.distribution.accelerator,
                "deepspeed": deepspeed_config(self.recipe),
                "base_model": self.base_model,
                "base_revision": self.base_revision,
                "adapter": {name: artifact.sha256 for name, artifact in self.adapter.items()},
                "trainer": TRAINER_VERSION,
            }
        )

    @property
    def whole(self) -> bool:
        """Whether all weights are trained, so that the result is a model and not an adapter."""
        return self.recipe.tuning == "full"


class Job:
    """One try of a training on this node; `folder` is where the result goes in S3."""

    def __init__(self, context: StageContext, plan: Plan, folder: str) -> None:
        self.context, self.plan, self.folder = context, plan, folder
        recipe, team = plan.recipe, plan.team
        place = f"{stage_uri(context.run, context.stage)}/checkpoints"
        self.checkpoints = Checkpoints(
            context.storage, place, plan.fingerprint, team.world, recipe.checkpoints.keep, team.node, team.nodes
        )

    def run(self) -> dict[str, Any]:
        """Train; return what `training.json` says (on other nodes than 0: how it ended)."""
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="millrace-train-") as name:
            local = Path(name)
            earlier = self._prepare(local)
            with Ranks(local, self.plan.recipe, self.plan.team) as ranks:
                # While the ranks import torch, this process makes the MLflow run.
                curve = self._curve(earlier) if self.plan.team.node == 0 else None
                rows = curve.rows if curve is not None else []
                uploads = Uploads(local, lambda step, files: self.checkpoints.save(step, files, until(rows, step)))
                watch = Watch(self.context, self.plan.team, curve, uploads)
                try:
                    proofs = self._follow(ranks, watch, uploads)
                    if curve is None:
                        return {"steps": proofs[0]["step"], "proof": proofs[0]}
                    trained = self._keep(local, curve, proofs, watch, time.monotonic() - began)
                except MillraceError as error:
                    uploads.abandon()
                    if curve is not None:
                        give_up(curve, "KILLED" if isinstance(error, Preempted) else "FAILED")
                    raise
                curve.close("FINISHED", {name: float(value) for name, value in trained["metrics"].items()})
        return trained

    def _prepare(self, local: Path) -> list[dict[str, Any]]:
        """Lay out the job's folder; return the loss curve of an interrupted try that is continued."""
        plan, storage = self.plan, self.context.storage
        for name, artifact in plan.rows.items():
            storage.get_file(artifact, local / f"{name}.jsonl")
        adapter = storage.get_folder(plan.adapter, local / "start") if plan.adapter else None
        if plan.team.node == 0:
            self.checkpoints.clear_halves()
        restored = self.checkpoints.restore(local)
        deepspeed = deepspeed_config(plan.recipe)
        if restored is not None and restored.world != plan.team.world:
            elastic.convert(restored.folder, restored.world, plan.team.world)
            deepspeed = elastic.universal(deepspeed)
        job = {
            "recipe": plan.recipe.model_dump(mode="json"),
            "model": str(plan.base_folder),
            "adapter": str(adapter) if adapter else None,
            "deepspeed": deepspeed,
            "resume": str(restored.folder) if restored else None,
        }
        (local / "job.json").write_text(json.dumps(job), encoding="utf-8")
        return restored.curve if restored else []

    def _curve(self, earlier: list[dict[str, Any]]) -> Curve:
        name = f"{self.context.run.rstrip('/').rsplit('/', 1)[-1]} train"
        curve = Curve(self.context.settings, name, tags(self.context, self.plan), parameters(self.plan))
        curve.rows.extend(earlier)
        return curve

    def _follow(self, ranks: Ranks, watch: Watch, uploads: Uploads) -> list[dict[str, Any]]:
        """Wait for the ranks; return their proofs when they came to an end of the training, else raise."""
        ranks.follow(watch, self.context.stopping)
        proofs = ranks.proofs()
        proof = proofs[0]
        if proof["outcome"] == "diverged":
            raise TrainingDiverged(
                f"expected the loss to stay finite and near its course, found {proof['reason']} at step {proof['step']}. "
                "Next: look at the rows of that step and at the loss curve in MLflow; lower optimisation.learning_rate."
            )
        uploads.finish()
        if proof["outcome"] == "preempted":
            raise Preempted(
                f"expected {proof['steps']} steps, found SIGTERM after step {proof['step']}; a checkpoint is saved. "
                "Next: try again, it goes on from there."
            )
        if proof["outcome"] == "early_stop":
            log.info("stopped early after step %d of %d: %s", proof["step"], proof["steps"], proof["reason"])
        return proofs

    def _keep(
        self, local: Path, curve: Curve, proofs: list[dict[str, Any]], watch: Watch, seconds: float
    ) -> dict[str, Any]:
        """Check and upload what was trained; return it as `training.json` will say it."""
        plan, storage, proof = self.plan, self.context.storage, proofs[0]
        start = local / "start" if plan.adapter else None
        if plan.whole:
            kind, final = "model", adapters.finish_model(local / "model", plan.base_folder)
        else:
            kind, final = "adapter", adapters.finish(local / "adapter", local / "final", plan.base_model, start)
        outputs = {f"{kind}/{name}": item for name, item in storage.put_folder(f"{self.folder}/{kind}", final).items()}
        outputs["loss_curve"] = storage.put_rows(f"{self.folder}/loss_curve.jsonl", curve.rows)
        outputs["recipe"] = storage.put_json(f"{self.folder}/recipe.json", plan.recipe.model_dump(mode="json"))
        outputs["packages"] = storage.put_json(f"{self.folder}/packages.json", packages())
        return {
            "outputs": {name: artifact.model_dump(mode="json") for name, artifact in outputs.items()},
            "steps": proof["step"],
            "outcome": proof["outcome"],
            "counts": {name: int(proof[name]) for name in ("rows", "tokens", "answer_tokens", "truncated")},
            "metrics": metrics(curve.rows, proofs)
            | {"stage_seconds": seconds, "checkpoint_seconds": watch.checkpoint_seconds},
            "mlflow_run_id": curve.run_id,
        }


def until(rows: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """Return the part of a loss curve that a checkpoint of `step` goes on from."""
    return [row for row in list(rows) if row["step"] <= step]


def metrics(rows: list[dict[str, Any]], proofs: list[dict[str, Any]]) -> dict[str, float]:
    """Return the figures of a training from its curve and the proofs of its ranks."""
    proof, steps = proofs[0], [row for row in rows if "loss" in row]
    validation = [row["validation_loss"] for row in rows if "validation_loss" in row]
    found = {
        # Both on the rows of the first step: before any step, and after the last.
        "loss_start": float(steps[0]["loss"]),
        "loss_end": float(proof["first_rows_loss"]),
        "tokens_per_second": sum(row["tokens_per_second"] * row["step_seconds"] for row in steps)
        / max(sum(row["step_seconds"] for row in steps), 1e-6),
        "flops_utilisation": sum(row["flops_utilisation"] for row in steps) / len(steps),
        "padding_share": 1 - proof["tokens"] / proof["padded_tokens"],
        "peak_rss_mb": float(max(other["peak_rss_mb"] for other in proofs)),
        "train_seconds": proof["train_seconds"],
    }
    if validation:
        found["validation_loss"] = float(min(validation))
    if "gpu_memory_gb" in steps[-1]:
        found["gpu_memory_gb"] = max(row["gpu_memory_gb"] for row in steps)
    return found


def tags(context: StageContext, plan: Plan) -> dict[str, str]:
    """Return what MLflow's run is found by."""
    return {
        "stage": "train",
        "run_folder": context.run,
        "training_fingerprint": plan.fingerprint,
        "dataset_sha256": plan.dataset_sha256,
        "base_model": plan.base_model,
        "base_revision": plan.base_revision,
        "recipe": plan.recipe_name,
    }


def parameters(plan: Plan) -> dict[str, Any]:
    """Return the recipe as parameters of MLflow's run."""
    parts = plan.recipe.model_dump(mode="json")
    flat = {
        f"{part}.{key}": value
        for part in ("data", "lora", "optimisation")
        for key, value in (parts[part] or {}).items()
    }
    # Only what the fingerprint pins: MLflow refuses other values when a run is continued. The rest are tags.
    return flat | {"deepspeed": plan.recipe.distribution.deepspeed}


def give_up(curve: Curve, status: str) -> None:
    """Say in MLflow how it ended; the error on its way matters more than a server that is away."""
    try:
        curve.close(status, {})
    except ServiceUnavailable as error:
        log.warning("the MLflow run %s stays open: %s", curve.run_id, error)
