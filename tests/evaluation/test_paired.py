"""The bootstrap: against a formula, against itself, and on numbers that can be checked by hand."""

import numpy
import pytest

from tasks.evaluation.paired import Score, difference, mean

HOW = {"resamples": 4000, "seed": 3}


def scores(losses: list[float], tokens: list[int] | None = None) -> list[Score]:
    sizes = tokens or [1] * len(losses)
    return [Score(str(n), loss, size) for n, (loss, size) in enumerate(zip(losses, sizes, strict=True))]


def test_means_are_weighted_by_token() -> None:
    assert mean(scores([2.0, 30.0], [1, 9]), **HOW).value == pytest.approx(3.2)
    assert difference(scores([1.0, 9.0], [1, 9]), scores([2.0, 27.0], [1, 9]), **HOW).value == pytest.approx(-1.9)


def test_the_interval_is_weighted_by_token_too() -> None:
    found = mean(scores([10.0, 99.0] * 100, [1, 99] * 100), **HOW)
    assert found.value == pytest.approx(1.09)
    assert 1.0 < found.low < found.value < found.high < 1.2


def test_the_interval_is_that_of_the_normal_formula() -> None:
    chance = numpy.random.default_rng(0)
    gaps = chance.normal(-0.1, 1.0, size=400)
    found = difference(scores(list(gaps + 5)), scores([5.0] * 400), resamples=20_000, seed=1)
    error = gaps.std() / 20
    assert found.low == pytest.approx(gaps.mean() - 1.96 * error, abs=0.01)
    assert found.high == pytest.approx(gaps.mean() + 1.96 * error, abs=0.01)


def test_it_is_paired() -> None:
    """Rows differ by 10 and the models by 0.1: only a paired comparison can tell the models apart."""
    hard = [float(n % 10) for n in range(60)]
    found = difference(scores([loss - 0.1 for loss in hard]), scores(hard), **HOW)
    assert found.low == pytest.approx(-0.1)
    assert found.high == pytest.approx(-0.1)


def test_the_same_seed_gives_the_same_interval_also_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    gaps = scores([0.1 * n for n in range(50)])
    assert mean(gaps, **HOW) == mean(gaps, **HOW)
    assert mean(gaps, resamples=4000, seed=4) != mean(gaps, **HOW)


def test_a_model_compared_with_itself_differs_by_nothing() -> None:
    found = difference(scores([1.0, 2.0, 3.0]), scores([1.0, 2.0, 3.0]), **HOW)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_95_percent_intervals_hold_the_truth_about_so_often() -> None:
    chance = numpy.random.default_rng(7)
    held = 0
    for seed in range(200):
        found = mean(scores(list(chance.exponential(1.0, size=60))), resamples=500, seed=seed)
        held += found.low <= 1.0 <= found.high
    assert 0.86 <= held / 200 <= 0.99


@pytest.mark.parametrize("other", [scores([1.0]), scores([1.0, 2.0], [1, 2]), []])
def test_other_rows_are_an_error(other: list[Score]) -> None:
    with pytest.raises(ValueError, match="the same rows"):
        difference(scores([1.0, 2.0]), other, **HOW)
    with pytest.raises(ValueError, match="the same rows"):
        difference([], [], **HOW)
