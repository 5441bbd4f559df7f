"""The bootstrap: against a formula, against itself, and on numbers that can be checked by hand."""

import numpy
import pytest

from tasks.evaluation.paired import Drawn, Score, difference, draw, mean

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


def drawn(gaps: list[list[float]], weights: list[list[float]] | None = None, resamples: int = 1000) -> Drawn:
    values = numpy.array(gaps)
    return draw(
        values, numpy.ones_like(values) if weights is None else numpy.array(weights), resamples=resamples, seed=3
    )


def test_few_rows_do_not_err_more_often_than_is_said() -> None:
    """The percentile bootstrap says below zero of equal models in 5 to 7 % of such trials, where 2.5 % are allowed."""
    chance = numpy.random.default_rng(5)
    for rows in (8, 12, 40):
        tokens = numpy.maximum(1, numpy.round(numpy.exp(chance.normal(3.6, 0.8, (1500, rows)))))
        gaps = chance.standard_t(3, (1500, rows)) * tokens
        low, high = draw(gaps, tokens, resamples=400, seed=1).ends()
        assert (high < 0).mean() <= 0.04
        assert (low > 0).mean() <= 0.04


def test_a_p_value_is_small_where_the_interval_lies_above() -> None:
    chance = numpy.random.default_rng(6)
    found = drawn(list(chance.normal(0.4, 1.0, (300, 30))))
    low, _high = found.ends()
    # An end of the 95 % interval is the bound that values like these are 2.5 % likely at.
    for bound in (0.0, 0.3):
        assert ((found.p_above(bound) <= 0.025) == (low > bound)).mean() >= 0.99
    assert (found.p_above(0.0) <= found.p_above(0.3)).all()


def test_a_few_rows_that_all_break_are_as_likely_as_coins() -> None:
    found = drawn([[1.0] * 10, [0.0] * 10, [-1.0] * 10])
    assert found.p_above(0.0).tolist() == [0.5**10, 1.0, 1.0]
    assert found.p_above(1.0).tolist() == [1.0, 1.0, 1.0]


def test_resamples_without_a_spread_do_not_speak_for_the_candidate() -> None:
    """Of 8 rows with 6 lost, one resample in ten holds lost ones only; p was 0.11 by them, and more than with 4 lost."""
    found = drawn([[1.0] * lost + [0.0] * (8 - lost) for lost in range(1, 8)]).p_above(0.02)
    assert (numpy.diff(found) < 0).all() and found[-2] < 0.01


def test_resamples_of_rows_that_do_not_differ_have_no_infinite_interval() -> None:
    low, high = drawn([[0.0] * 19 + [1.0]]).ends()
    assert -0.1 < low[0] < 0 < 0.05 < high[0] < 0.5


def test_comparisons_are_drawn_together_as_they_are_alone() -> None:
    one, two = [1.0, 5.0, 2.0, 9.0], [0.0, 1.0, 0.0, -3.0]
    both = drawn([one, two], [[1, 2, 3, 4], [1, 1, 1, 1]])
    for place, (gaps, weights) in enumerate(((one, [1.0, 2, 3, 4]), (two, [1.0] * 4))):
        alone = drawn([gaps], [weights])
        assert numpy.allclose([end[place] for end in both.ends()], [end[0] for end in alone.ends()])
        assert both.value[place] == pytest.approx(sum(gaps) / sum(weights))


def test_one_row_has_no_spread() -> None:
    found = mean(scores([2.0]), **HOW)
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_no_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        drawn([[]])
