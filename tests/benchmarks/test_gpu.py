"""`gpu_training` where there is no GPU: it says so; and its code runs on a CPU with a small shape."""

from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import gpu, result
from benchmarks.rank_runs import Shape, changed
from tasks.training.recipes import load_recipe


def test_without_a_gpu_nothing_is_measured_or_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "gpu_gigabytes", lambda: None)
    monkeypatch.setattr(result, "RESULTS", tmp_path / "results")
    assert command.main(["gpu_training"]) == 3
    assert "not measured: no GPU was found" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_the_comparison_runs_on_a_small_shape() -> None:
    """The same ranks, rows and figures as on a GPU, with ranks of this machine's CPU."""
    recipe = changed(
        gpu.packed_recipe(load_recipe("smoke_cpu"), rows_per_step=2, recompute=False),
        data={"max_tokens": 128, "system_prompt": ""},
        optimisation={"rows_per_batch": 1},
    )
    lengths = gpu.mixed_lengths(60, longest=100)
    ours, bare = gpu.compare(Shape(32, 64, 2, 4, 2), recipe, lengths, rounds=1)
    # Both trained on every row once; ours may fill its last step with packs taken twice.
    for run in (bare[0], ours[0]):
        assert sum(lengths) * 0.9 < sum(run.tokens) < sum(lengths) * 1.3
    assert len(bare[0].at) == 8  # 60 rows in batches of 8
    assert gpu.ratio(ours, bare) > 0
    assert 0 < ours[0].median("flops_utilisation") < 1
    assert [line.split(":")[0] for line in gpu.described("small", ours, bare)] == ["small ours", "small defaults"]
