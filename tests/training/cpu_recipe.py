"""Recipes for GPUs, made to run on this machine's CPU, and a run of them with two real ranks."""

import json
import logging
from pathlib import Path
from typing import Any

from tasks.training.ranks import Ranks
from tasks.training.recipes import Recipe, deepspeed_config, load_recipe
from tasks.training.team import Team
from tests.tiny_model import pair

RANKS = 2
TOKENS = 128
Events = list[dict[str, Any]]


def for_cpu(name: str) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe and its DeepSpeed configuration for two CPU ranks.

    Replaced are, in the recipe: accelerator and number of ranks, bfloat16 by float32, packs and rows of `TOKENS` tokens,
    at most 2 rows a batch and 4 a step, one epoch, a learning rate that shows on a model of 40,000 weights, and a
    validation every second step where the recipe has one. In the DeepSpeed configuration: bfloat16, communication that
    overlaps and pinned memory, which the CPU accelerator does not have. All else is the recipe's own: method, tuning, adapter,
    ZeRO stage, offloading, gathering, packing, checkpointing of activations, weight decay, dropout, beta.
    """
    raw, config = load_recipe(name).model_dump(mode="json"), deepspeed_config(load_recipe(name))
    raw["distribution"] |= {"accelerator": "cpu", "ranks": RANKS, "nodes": 1}
    batch = min(2, raw["optimisation"]["rows_per_batch"])
    raw["optimisation"] |= {"epochs": 1, "rows_per_step": 4, "rows_per_batch": batch, "learning_rate": 0.01}
    raw["optimisation"]["precision"] = "fp32"
    raw["data"]["max_tokens"] = TOKENS
    if raw["stopping"]["evaluate_every_steps"] is not None:
        raw["stopping"]["evaluate_every_steps"] = 2
    config.pop("bf16", None)
    zero = config["zero_optimization"] | {"overlap_comm": False}
    for part in ("offload_optimizer", "offload_param"):
        if part in zero:
            zero[part] = zero[part] | {"pin_memory": False}
    return Recipe.model_validate(raw), config | {"zero_optimization": zero}


def rows(method: str, count: int, first: int = 0) -> list[dict[str, Any]]:
    """Return rows that a small model learns something from in a few steps."""
    found = []
    for number in range(first, first + count):
        row = pair(f"row{number}", f"What is {number}?", f"It is the number {number}, " + "and more " * (number % 5))
        if method == "dpo":
            row["rejected"] = f"Nobody knows {number}."
        if method == "pretrain":
            row = {"id": row["id"], "text": row["messages"][1]["content"], "source": "m", "origin": "corpus"}
        found.append(row)
    return found


def train(
    folder: Path, base: Path, recipe: Recipe, config: dict[str, Any], count: int = 40, adapter: Path | None = None
) -> tuple[dict[str, Any], Events]:
    """Run the ranks in `folder`; return the proof and the events of rank 0."""
    folder.mkdir(exist_ok=True)
    write(folder / "train.jsonl", rows(recipe.method, count))
    if recipe.stopping.evaluate_every_steps is not None:
        write(folder / "validation.jsonl", rows(recipe.method, 5, first=count))
    job = {
        "recipe": recipe.model_dump(mode="json"),
        "model": str(base),
        "adapter": str(adapter) if adapter else None,
        "deepspeed": config,
        "resume": None,
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    events: Events = []
    assert isinstance(recipe.distribution.ranks, int)
    with Ranks(folder, recipe, Team(recipe.distribution.ranks)) as ranks:
        ranks.follow(lambda rank, event: events.append(event) if rank == 0 else None, lambda: False)
        proofs = ranks.proofs()
    logging.info("proof: %s", proofs[0])
    return proofs[0], events


def write(path: Path, items: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
