"""`trainer_overhead` and `checkpoint_overhead`: what our loop costs beside the training itself.

Both train a small model made on the spot with two real ranks; `checkpoint_overhead` does so as the stage `train`
does, with MLflow and with uploads to S3, in a stack of its own. The ways that are compared take turns.
"""

import os
import statistics
import tempfile
import uuid
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.rank_runs import Shape, changed, make_model, rows, train_in_turns
from benchmarks.result import Result
from tasks.training.recipes import Recipe, load_recipe
from tasks.training.team import Team

TRAINER, CHECKPOINTS = 0.03, 0.05
RANKS, TOKENS, ROWS_PER_STEP = 2, 256, 16
TRAINER_STEPS, TRAINER_ROUNDS = 10, 7
CHECKPOINT_STEPS, CHECKPOINT_ROUNDS, MINUTES = 80, 2, 0.25
NEVER = 10**9  # steps between checkpoints: none is made
_SHAPE = Shape(hidden=256, intermediate=704, blocks=4, heads=4, key_heads=4)


def trainer_overhead() -> Result:
    """Time of a step of our ranks over that of Transformers' own trainer with the same arguments."""
    recipe = _recipe({"every_steps": NEVER})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", _SHAPE, "cpu", "float32")
        examples = rows([TOKENS] * ROWS_PER_STEP * TRAINER_STEPS)
        runs = train_in_turns(folder / "runs", folder / "model", recipe, examples, Team(RANKS), TRAINER_ROUNDS)
    ours, bare = ([statistics.median(run.step_seconds) for run in side] for side in zip(*runs, strict=True))
    ratios = [a / b for a, b in zip(ours, bare, strict=True)]
    overhead = statistics.median(ratios) - 1
    return Result(
        figure=f"{overhead:+.1%} of the time of a step",
        bound=f"{TRAINER:.0%}",
        holds=overhead <= TRAINER,
        details=[
            f"ours: {_listed(ours)} ms a step; the bare trainer: {_listed(bare)} ms",
            f"each round: {', '.join(f'{ratio - 1:+.1%}' for ratio in ratios)}",
            f"{RANKS} ranks, {ROWS_PER_STEP} rows of {TOKENS} tokens a step, {TRAINER_STEPS} steps a turn, LoRA, ZeRO-2",
        ],
    )


def checkpoint_overhead() -> Result:
    """Time of a training with checkpoints at the computed interval, uploaded to S3, over the same without."""
    from local.stack import EmbeddedStack

    runs: dict[str, list[dict[str, float]]] = {"with": [], "without": []}
    with tempfile.TemporaryDirectory() as name, EmbeddedStack(Path(name) / "stack") as stack:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MILLRACE_")}
        with patch.dict(os.environ, kept | stack.env, clear=True):
            make_model(Path(name) / "model", _SHAPE, "cpu", "float32")
            for _ in range(CHECKPOINT_ROUNDS):
                for way, every in (("without", NEVER), ("with", None)):
                    recipe = _recipe({"every_steps": every, "max_lost_minutes": MINUTES, "keep": 100})
                    runs[way].append(_job(Path(name) / "model", recipe))
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(runs["with"], runs["without"], strict=True)]
    overhead = statistics.median(ratios) - 1
    made = [int(run["checkpoints"]) for run in runs["with"]]
    blocked = sum(run["blocked"] for run in runs["with"]) / sum(run["seconds"] for run in runs["with"])
    return Result(
        figure=f"{overhead:+.1%} of the run time",
        bound=f"{CHECKPOINTS:.0%}",
        holds=overhead <= CHECKPOINTS and min(made) >= 2,
        details=[
            f"each round: {', '.join(f'{ratio - 1:+.1%}' for ratio in ratios)}; steps stood still for {blocked:.1%}",
            f"checkpoints a run: {made}, at most {MINUTES * 60:g} s apart (the recipes' default: 5 minutes), "
            f"{runs['with'][0]['megabytes']:.1f} MB each",
            f"runs with: {_seconds(runs['with'])} s; without: {_seconds(runs['without'])} s",
        ],
    )


def _recipe(checkpoints: dict[str, Any]) -> Recipe:
    return changed(
        load_recipe("smoke_cpu"),
        data={"max_tokens": TOKENS, "system_prompt": ""},
        lora={"last_layers": None},
        optimisation={
            "epochs": 1,
            "rows_per_step": ROWS_PER_STEP,
            "rows_per_batch": ROWS_PER_STEP // RANKS,
            "packing": False,
        },
        distribution={"ranks": RANKS},
        checkpoints=checkpoints,
    )


def _job(model: Path, recipe: Recipe) -> dict[str, float]:
    """Train as the stage does; return seconds from the first step to the last, and what was saved."""
    from tasks.contracts import Artifact
    from tasks.settings import load_settings
    from tasks.stage import StageContext
    from tasks.storage import Storage
    from tasks.training.job import Job, Plan

    settings = load_settings()
    storage = Storage(settings.s3_endpoint_url)
    name = uuid.uuid4().hex
    run = f"s3://{settings.s3_bucket}/runs/benchmark/{name}"
    examples = rows([TOKENS] * ROWS_PER_STEP * CHECKPOINT_STEPS)
    plan = Plan(
        recipe_name="benchmark", recipe=recipe, team=Team(RANKS), base_model="made on the spot", base_folder=model,
        base_revision=name, rows={"train": storage.put_rows(f"{run}/train.jsonl", examples)}, dataset_sha256=name, adapter={},
    )  # fmt: skip
    folder = f"s3://{settings.s3_bucket}/models/{name}"
    trained = Job(StageContext(settings, storage, run, "train", None, {}), plan, folder).run()
    kept = Artifact.model_validate(trained["outputs"]["loss_curve"])
    curve = [row["at"] for row in storage.get_rows(kept) if "loss" in row]
    saved = list(storage.list(f"{run}/train/checkpoints/"))
    complete = [uri for uri, _size, _etag in saved if uri.endswith("/checkpoint.json")]
    return {
        "seconds": curve[-1] - curve[0],
        "checkpoints": len(complete),
        "megabytes": sum(size for _uri, size, _etag in saved) / max(1, len(complete)) / 1e6,
        "blocked": float(trained["metrics"]["checkpoint_seconds"]),
    }


def _listed(seconds: list[float]) -> str:
    return ", ".join(f"{1000 * value:.0f}" for value in seconds)


def _seconds(runs: list[dict[str, float]]) -> str:
    return ", ".join(f"{run['seconds']:.1f}" for run in runs)
