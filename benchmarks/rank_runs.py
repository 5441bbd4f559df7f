"""Small trainings for benchmarks: a model made on the spot, random texts, and the ranks that train on them.

WORKER is what the stage `train` starts as a rank; BARE is Transformers' own trainer (`benchmarks.bare_rank`) under the
same launcher, with the same environment, model and rows. Both write a line a step, and the time of
a step is what lies between two lines: whatever a loop does in between is in it.
"""

import json
import multiprocessing
import random
import statistics
import string
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.settings import REPOSITORY
from tasks.training.ranks import command, environment
from tasks.training.recipes import Recipe, deepspeed_config
from tasks.training.team import Team

WORKER, BARE = "tasks.training.worker", "benchmarks.bare_rank"
_WARM = 3  # steps that are not counted: the first ones allocate memory and choose kernels


@dataclass(frozen=True)
class Shape:
    """A Llama by its sizes."""

    hidden: int
    intermediate: int
    blocks: int
    heads: int
    key_heads: int
    vocabulary: int = 512


@dataclass(frozen=True)
class Run:
    """The steps of one training: when each ended, its useful tokens, and rank 0's lines."""

    at: list[float]
    tokens: list[int]
    lines: list[dict[str, Any]]

    @property
    def step_seconds(self) -> list[float]:
        """Seconds between the ends of steps."""
        return [after - before for before, after in zip(self.at[_WARM:], self.at[_WARM + 1 :], strict=False)]

    @property
    def tokens_per_second(self) -> float:
        """Useful tokens of all ranks a second, over all counted steps."""
        return sum(self.tokens[_WARM + 1 :]) / (self.at[-1] - self.at[_WARM])

    def median(self, name: str) -> float:
        """Return the median of a figure that the lines have."""
        return statistics.median(float(line[name]) for line in self.lines[_WARM:])


def make_model(folder: Path, shape: Shape, device: str, precision: str) -> None:
    """Write a model of this shape with random weights, made on the device, in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=_make_model, args=(folder, shape, device, precision))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"making a model ended with exit code {process.exitcode}")


def _make_model(folder: Path, shape: Shape, device: str, precision: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tests.tiny_model import make_tokenizer

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.blocks, num_attention_heads=shape.heads, num_key_value_heads=shape.key_heads,
        max_position_embeddings=8192, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, precision))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def rows(lengths: list[int], seed: int = 0) -> list[dict[str, Any]]:
    """Return examples of random letters of about so many tokens (a letter is one), half of them the answer."""
    chance = random.Random(seed)
    found = []
    for number, length in enumerate(lengths):
        text = "".join(chance.choices(string.ascii_lowercase + " ", k=max(2, length - 6)))
        half = len(text) // 2
        messages = [{"role": "user", "content": text[:half]}, {"role": "assistant", "content": text[half:]}]
        found.append(
            {
                "id": str(number), "messages": messages, "source": f"source {number}", "origin": "curated",
                "split": "train", "provenance": {"made_by": "benchmarks"},
            }
        )  # fmt: skip
    return found


def changed(recipe: Recipe, **parts: dict[str, Any]) -> Recipe:
    """Return the recipe with some values of some parts replaced."""
    values = recipe.model_dump(mode="json")
    for part, new in parts.items():
        values[part] |= new
    return Recipe.model_validate(values)


def train(
    folder: Path, module: str, model: Path, recipe: Recipe, examples: list[dict[str, Any]], defaults: bool = False
) -> Run:
    """Run the one rank of a training to its end and return its steps. Raises RuntimeError when it fails."""
    _lay_out(folder, model, recipe, examples, defaults)
    _start(folder, module, recipe, Team(1))
    return read(folder)


def train_in_turns(
    folder: Path, model: Path, recipe: Recipe, examples: list[dict[str, Any]], team: Team, rounds: int
) -> list[tuple[Run, Run]]:
    """Train `rounds` times with our worker and with the bare trainer, in turns and in the same ranks; return (ours, bare)."""
    turns = []
    for number in range(rounds):
        pair = [(f"ours-{number}", True), (f"bare-{number}", False)]
        turns += pair if number % 2 else pair[::-1]  # neither always comes first
    for name, _ours in turns:
        _lay_out(folder / name, model, recipe, examples, False)
    (folder / "turns.json").write_text(json.dumps(turns), encoding="utf-8")
    _start(folder, BARE, recipe, team)
    return [(read(folder / f"ours-{number}"), read(folder / f"bare-{number}")) for number in range(rounds)]


def _lay_out(folder: Path, model: Path, recipe: Recipe, examples: list[dict[str, Any]], defaults: bool) -> None:
    folder.mkdir(parents=True)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in examples)
    job = {
        "recipe": recipe.model_dump(mode="json"),
        "model": str(model),
        "adapter": None,
        "deepspeed": deepspeed_config(recipe),
        "resume": None,
        "defaults": defaults,
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")


def _start(folder: Path, module: str, recipe: Recipe, team: Team) -> None:
    started = [module if part == WORKER else part for part in command(folder, team)]
    done = subprocess.run(
        started, cwd=REPOSITORY, env=environment(recipe), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the ranks of {module} ended with exit code {done.returncode}: {done.stdout[-2000:]}")


def read(folder: Path) -> Run:
    """Return the steps of a training that wrote its lines to `folder`."""
    with (folder / "events.rank0.jsonl").open(encoding="utf-8") as file:
        lines = [line for line in map(json.loads, file) if "checkpoint" not in line and "validation_loss" not in line]
    tokens = [line.get("tokens") or round(line["tokens_per_second"] * line["step_seconds"]) for line in lines]
    return Run([line["at"] for line in lines], tokens, lines)
