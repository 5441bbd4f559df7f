"""Every recipe that can run on a CPU does, for real: DeepSpeed, two ranks, a small model."""

from pathlib import Path

import pytest

from tasks.training import adapters
from tasks.training.recipes import names
from tests.tiny_model import make_model
from tests.training.cpu_recipe import for_cpu, train

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize("name", names())
def test_it_trains(name: str, tmp_path: Path) -> None:
    # Four bits come in blocks of 64 weights: on some processors bitsandbytes cannot pack a narrower matrix.
    width = 128 if name == "qlora" else 32
    base = make_model(tmp_path / "base", tied=name == "pretrain_continue", width=width)
    recipe, config = for_cpu(name)
    proof, events = train(tmp_path / "job", base, recipe, config)
    losses = [event["loss"] for event in events if "loss" in event]
    assert proof["outcome"] == "complete"
    assert len(losses) == proof["steps"] == proof["step"] >= 3
    assert proof["first_rows_loss"] < losses[0]
    assert all(event["flops_utilisation"] > 0 for event in events if "loss" in event)
    if recipe.stopping.evaluate_every_steps:
        found = [event["validation_loss"] for event in events if "validation_loss" in event]
        assert len(found) == proof["steps"] // 2
        assert found[-1] < found[0]
    if recipe.optimisation.packing:
        assert proof["tokens"] > 0.8 * proof["padded_tokens"]
    if recipe.tuning == "full":
        adapters.finish_model(tmp_path / "job" / "model", base)
        assert (tmp_path / "job" / "model" / "tokenizer.json").is_file()
    else:
        adapters.finish(tmp_path / "job" / "adapter", tmp_path / "final", "package:tiny")
