"""What a training survives, for real: preemption, other numbers of ranks, a second node, a loss that goes wrong.

The tiny model on CPU with gloo: what is proven is the bookkeeping of optimizer, schedule, data position and random
state, which is the same code on GPUs.
"""

import json
import os
import signal
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.settings import repository_path
from tests.training.bench import TINY, Bench, copy_dataset, validate_new

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.long]
# Resumed on the same number of ranks a step computes the same numbers; on another one it adds them up in another order.
SAME, OTHER = 1e-6, 2e-4
STEPS = 30
LORA = {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": ["q_proj", "v_proj", "down_proj"], "last_layers": None}


def recipe(folder: Path, **changes: dict[str, Any]) -> str:
    """Write the recipe of the tiny model with changes of its parts, and more steps. Returns its path."""
    values: dict[str, Any] = yaml.safe_load(repository_path(TINY).read_text())
    values["optimisation"] |= {"rows_per_step": 4, "rows_per_batch": 1, "epochs": 5}
    for part, change in changes.items():
        values[part] = values.get(part, {}) | change
    path = folder / f"{uuid.uuid4().hex}.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def losses(bench: Bench, run: str) -> list[float]:
    rows = list(bench.storage.get_rows(bench.manifest(run, "train").outputs["loss_curve"]))
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1)), "every step once"
    return [row["loss"] for row in steps]


def forget(bench: Bench) -> None:
    """Remove what was trained, so that the same inputs are trained again."""
    bench.storage.delete_prefix(f"{bench.bucket}/models/")


def undisturbed(bench: Bench, run: str, **options: str) -> list[float]:
    """Return the losses of a training of the same dataset that nobody disturbs, and forget what it trained."""
    other = copy_dataset(bench, run)
    bench.train(other, **options)
    found = losses(bench, other)
    forget(bench)
    return found


def stop_after(bench: Bench, run: str, steps: int, **options: str) -> str:
    """Start a training, send it SIGTERM once it has told `steps` losses, and return its log.

    Not by `progress.json`: it is written every second, in which the tiny model makes half of its steps.
    """
    bench.plan(run, **options)
    process = bench.start("train", run, **options)
    assert process.stderr is not None
    lines: list[str] = []
    while sum("{'loss': " in line for line in lines) < steps:
        lines.append(process.stderr.readline())
        assert lines[-1], f"it ended before step {steps}: {''.join(lines)[-3000:]}"
    process.send_signal(signal.SIGTERM)
    log = "".join(lines) + process.stderr.read()
    assert process.wait() == 75, log[-3000:]
    assert "Preempted" in log
    return log


@pytest.fixture(scope="module")
def dataset(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run folder with a dataset; tests train on copies of it."""
    return validate_new(bench, tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def baseline(bench: Bench, dataset: str, tiny: str, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of an undisturbed training with two ranks and without dropout."""
    path = recipe(tmp_path_factory.mktemp("recipe"), lora=LORA)
    return undisturbed(bench, dataset, recipe=path, base_model=tiny)


def test_a_killed_training_has_the_curve_of_an_undisturbed_one(
    bench: Bench, dataset: str, tiny: str, tmp_path: Path
) -> None:
    options = {"recipe": recipe(tmp_path, lora=LORA | {"dropout": 0.1}), "base_model": tiny}
    expected = undisturbed(bench, dataset, **options)
    run = copy_dataset(bench, dataset)
    assert "after step" in stop_after(bench, run, 3, **options)
    process = bench.start("train", run, **options)
    _out, log = process.communicate()
    assert process.returncode == 0, log[-3000:]
    assert "going on from step" in log, "not from the beginning"
    assert bench.manifest(run, "train").counts["steps"] == STEPS
    assert losses(bench, run) == pytest.approx(expected, abs=SAME)


EIGHT = pytest.mark.skipif(
    not os.environ.get("TEST_EIGHT_RANKS") and (os.cpu_count() or 1) < 8,
    reason="eight ranks want eight processors; TEST_EIGHT_RANKS=1 runs them on fewer",
)


@pytest.mark.parametrize(("more", "fewer"), [(4, 2), pytest.param(8, 4, marks=EIGHT)])
def test_it_goes_on_with_fewer_ranks_and_with_more(
    bench: Bench, dataset: str, baseline: list[float], tiny: str, tmp_path: Path, more: int, fewer: int
) -> None:
    forget(bench)
    rows = {"rows_per_step": more, "epochs": 5 * more // 4}
    whole, many, few = (
        recipe(tmp_path, lora=LORA, optimisation=rows, distribution={"ranks": ranks}) for ranks in (2, more, fewer)
    )
    expected = baseline if more == 4 else undisturbed(bench, dataset, recipe=whole, base_model=tiny)
    run = copy_dataset(bench, dataset)
    stop_after(bench, run, 3, recipe=many, base_model=tiny)
    log = stop_after(bench, run, 3, recipe=few, base_model=tiny)
    assert f"was made by {more} ranks: it is converted for {fewer}" in log
    bench.plan(run, recipe=many, base_model=tiny)
    process = bench.start("train", run, recipe=many, base_model=tiny)
    _out, log = process.communicate()
    assert process.returncode == 0, log[-3000:]
    assert f"was made by {fewer} ranks: it is converted for {more}" in log
    assert bench.manifest(run, "train").facts["ranks"] == more
    assert losses(bench, run) == pytest.approx(expected, abs=OTHER)


def test_two_nodes_train_as_one_machine_does(
    bench: Bench, dataset: str, baseline: list[float], tiny: str, tmp_path: Path
) -> None:
    """Two stages on this machine, each with one rank, as two pods of a Job would be."""
    forget(bench)
    path = recipe(tmp_path, lora=LORA, checkpoints={"every_steps": 10}, distribution={"ranks": 1, "nodes": 2})
    run = copy_dataset(bench, dataset)
    bench.plan(run, recipe=path, base_model=tiny, node_count="2")
    processes = [start_node(bench, run, node, recipe=path, base_model=tiny) for node in (0, 1)]
    logs = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], logs
    assert losses(bench, run) == pytest.approx(baseline, abs=OTHER)
    assert bench.manifest(run, "train").facts["ranks"] == 2
    part = bench.storage.read_manifest(f"{run}/train/part-node-1/manifest.json")
    assert part is not None
    assert part.counts == {"steps": STEPS}
    checkpoint = json.loads(bench.storage.get_bytes(f"{run}/train/checkpoints/step-00000020/checkpoint.json"))
    assert checkpoint["world"] == 2
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(checkpoint["files"]), "both nodes gave their part"


def start_node(bench: Bench, run: str, node: int, **options: str) -> "subprocess.Popen[str]":
    place = {"MILLRACE_NODE_RANK": str(node), "MILLRACE_MASTER_ADDRESS": "127.0.0.1"}
    bench.environment |= place
    try:
        return bench.start("train", run, **options, **({"part": f"node-{node}"} if node else {}))
    finally:
        for name in place:
            del bench.environment[name]


def test_a_loss_that_goes_wrong_ends_the_training_for_good(
    bench: Bench, dataset: str, tiny: str, tmp_path: Path
) -> None:
    forget(bench)
    run = copy_dataset(bench, dataset)
    path = recipe(tmp_path, optimisation={"learning_rate": 1e30, "max_grad_norm": 1e30, "warmup_share": 0.0})
    found = bench.train(run, expect=2, recipe=path, base_model=tiny)
    assert "TrainingDiverged: expected the loss to stay finite" in found["log"]
    assert bench.storage.read_manifest(f"{run}/train/manifest.json") is None
    assert not any("/adapter/" in uri for uri, _, _ in bench.storage.list(f"{bench.bucket}/models/"))


def test_it_ends_when_the_validation_loss_no_longer_improves(bench: Bench, tiny: str, tmp_path: Path) -> None:
    forget(bench)
    stopping = {"evaluate_every_steps": 3, "patience": 2, "min_improvement": 100.0}
    path = recipe(tmp_path, lora=LORA, data={"train_rows": 24, "validation_rows": 8}, stopping=stopping)
    run = validate_new(bench, tmp_path, path)
    found = bench.train(run, recipe=path, base_model=tiny)
    assert (found["facts"]["outcome"], found["counts"]["steps"]) == ("early_stop", 9)
    rows = list(bench.storage.get_rows(bench.manifest(run, "train").outputs["loss_curve"]))
    validation = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    assert list(validation) == [3, 6, 9]
    assert found["metrics"]["validation_loss"] == min(validation.values())
