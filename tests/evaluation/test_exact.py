"""The exact test of yes-or-no answers: its level, counted out over all outcomes, and that more lost rows never help."""

from math import comb

import numpy
import pytest

from tasks.evaluation.exact import p_lost

MARGINS = (0.0, 0.02, 0.1)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("won", [0, 1, 3])
def test_p_falls_with_each_row_that_is_lost(margin: float, won: int) -> None:
    """Of 8 to 40 rows the champion passed 7 in 8, all, or some; the candidate loses one more of them each time."""
    for rows in (*range(8, 13), 16, 24, 31, 40) if won else range(8, 41):
        passed = {rows - won, rows * 7 // 8, rows // 2}
        found = [p_lost(rows, lost, won, margin) for lost in range(rows - won + 1)]
        for most in passed:
            told = [p for p in found[: most + 1] if p < 1]
            assert all(left > right for left, right in zip(told, told[1:], strict=False)), (rows, most)
        assert found == sorted(found, reverse=True)
        assert found[-1] < 0.05 or won, "all are lost"


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("rows", [8, 13, 24])
def test_it_errs_no_more_often_than_it_says(rows: int, margin: float) -> None:
    outcomes = [(lost, won) for lost in range(rows + 1) for won in range(rows + 1 - lost)]
    likely = {outcome: p_lost(rows, *outcome, margin) for outcome in outcomes}
    for level in (0.05, 0.002):
        speaks = [outcome for outcome, p in likely.items() if p <= level]
        assert speaks or level < 0.05
        for chance in numpy.linspace(0, (1 - margin) / 2, 40):  # to win a row; to lose one is likelier by the margin
            found = sum(
                comb(rows, lost) * comb(rows - lost, won)
                * (chance + margin) ** lost * chance**won * max(0.0, 1 - 2 * chance - margin) ** (rows - lost - won)
                for lost, won in speaks
            )  # fmt: skip
            assert found <= level * (1 + 1e-6)


def test_what_can_be_worked_out_by_hand() -> None:
    assert p_lost(10, 10, 0, 0.0) == pytest.approx(0.5**10)  # lost or won like a coin, all ten lost
    assert p_lost(10, 10, 0, 0.2) == pytest.approx(0.6**10)  # 60 lost and 40 won in 100
    # Of two rows one is lost and none won, or both lost, where each is lost as seldom as won: 2 q (1 - 2 q) + q², at most at q = 1/3.
    assert p_lost(2, 1, 0, 0.0) == pytest.approx(1 / 3)
    assert p_lost(8, 1, 1, 0.0) == p_lost(8, 0, 0, 0.02) == p_lost(10, 1, 0, 0.1) == 1


def test_the_cases_that_a_bootstrap_passed() -> None:
    """Of few rows, resamples that held only the bad ones made a champion's loss look like chance."""
    found = [p_lost(8, lost, 0, 0.02) for lost in range(3, 9)]
    assert found == pytest.approx([0.066, 0.040, 0.017, 0.009, 0.006, 0.005], abs=0.001)
    assert p_lost(9, 7, 0, 0.1) < 0.01


def test_many_rows_are_counted_too() -> None:
    assert p_lost(2000, 60, 20, 0.05) == 1
    assert p_lost(2000, 160, 20, 0.05) == pytest.approx(0.001, abs=0.001)


@pytest.mark.parametrize("wrong", [(0, 0, 0, 0.0), (8, 5, 4, 0.0), (8, -1, 0, 0.0), (8, 1, 0, 1.0)])
def test_what_cannot_be_is_an_error(wrong: tuple[int, int, int, float]) -> None:
    with pytest.raises(ValueError, match="expected rows"):
        p_lost(*wrong)
