"""Bootstrap intervals and the gate's verdict, on figures made for the purpose."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tasks.knowledge import bootstrap
from tasks.knowledge.bootstrap import differences, intervals
from tasks.knowledge.measure import Measurement
from tasks.knowledge.retrieval_gate import COMPARED, MIN_QUESTIONS, compared, verdict


@dataclass(frozen=True)
class Bounds:
    """As the options of check_index."""

    min_recall_at_5: float = 0.6
    min_ann_recall: float = 0.95
    retrieval_margin: float = 0.02


def measured(recalls: list[float], ndcgs: list[float] | None = None, ann: float = 1.0) -> Measurement:
    rows: list[dict[str, Any]] = [
        {"id": str(number), "recall_at_5": recall, "ndcg_at_10": ndcg, "ann_recall": ann}
        for number, (recall, ndcg) in enumerate(zip(recalls, ndcgs or recalls, strict=True))
    ]
    names = (*COMPARED, "ann_recall")
    return Measurement({name: float(np.mean([row[name] for row in rows])) for name in names}, rows)


def test_an_interval_is_that_of_the_theory_and_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(1)
    rows = [{"a": value, "b": 1.0} for value in chance.normal(0.5, 0.2, size=400)]
    found = intervals(rows, ["a", "b"])
    half = 1.96 * np.std([row["a"] for row in rows]) / 20
    assert found["a"].value == pytest.approx(np.mean([row["a"] for row in rows]))
    assert found["a"].value - found["a"].low == pytest.approx(half, rel=0.06)
    assert found["a"].high - found["a"].value == pytest.approx(half, rel=0.06)
    assert (found["b"].low, found["b"].value, found["b"].high) == (1, 1, 1)
    assert intervals(rows, ["a", "b"]) == found
    monkeypatch.setattr(bootstrap, "_BLOCK", 1_000)
    assert intervals(rows, ["a"])["a"].low == pytest.approx(found["a"].low, abs=0.002), "in blocks as well"


def test_a_difference_is_paired_by_question() -> None:
    chance = np.random.default_rng(2)
    hard = chance.uniform(0, 1, size=100)
    before = [{"id": str(number), "m": value} for number, value in enumerate(hard)]
    now = [{"id": str(number), "m": value - 0.01} for number, value in reversed(list(enumerate(hard)))]
    found = differences(now, before, ["m"])["m"]
    assert (found.low, found.high) == (pytest.approx(-0.01), pytest.approx(-0.01)), "what is hard for both cancels out"


def test_other_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same questions"):
        differences([{"id": "a", "m": 1}], [{"id": "b", "m": 1}], ["m"])
    with pytest.raises(ValueError, match="at least one"):
        intervals([], ["m"])


def test_equal_versions_pass() -> None:
    same = measured([1.0] * 30 + [0.0] * 10)
    assert verdict(same, same, Bounds()) == []
    assert verdict(same, None, Bounds()) == []


def test_bounds_hold_without_an_earlier_version() -> None:
    reasons = verdict(measured([0.0, 1.0], ann=0.9), None, Bounds())
    assert reasons == [
        "expected recall_at_5 of at least 0.600, found 0.500",
        "expected ann_recall of at least 0.950, found 0.900",
    ]
    assert verdict(measured([float("nan"), 1.0]), None, Bounds()), "what is no number is not above a bound"


def test_a_loss_beyond_the_margin_is_refused_with_few_questions_too() -> None:
    now, before = measured([1.0] * 4 + [0.0]), measured([1.0] * 5)
    assert verdict(now, before, Bounds()) == [
        f"expected {name} within 0.020 of the current version's 1.000, found 0.800" for name in COMPARED
    ]
    assert verdict(now, before, Bounds(retrieval_margin=0.2)) == [], "what is on the margin is within it"


def test_a_small_loss_that_is_no_chance_is_refused() -> None:
    before = measured([0.8] * 200)
    now = measured([0.8] * 200, [0.79 if number % 2 else 0.8 for number in range(200)])
    (reason,) = verdict(now, before, Bounds())
    assert reason.startswith(
        "expected ndcg_at_10 no worse than the current version's 0.800, found 0.795: a loss between 0.00"
    )
    assert "(95 %) on 200 questions" in reason


def test_a_small_loss_that_may_be_chance_passes() -> None:
    values = [1.0 if number % 3 else 0.0 for number in range(200)]
    changed = [1 - value if number in {0, 1, 4, 9, 13} else value for number, value in enumerate(values)]
    now, before = measured(changed), measured(values)
    assert -0.02 < compared(now, before)["recall_at_5"].value < 0
    assert verdict(now, before, Bounds()) == []


def test_few_questions_say_nothing_about_small_losses() -> None:
    count = MIN_QUESTIONS - 1
    assert verdict(measured([0.79] * count), measured([0.8] * count), Bounds()) == []
    assert len(verdict(measured([0.79] * (count + 1)), measured([0.8] * (count + 1)), Bounds())) == 2


def test_a_better_version_passes_whatever_the_interval() -> None:
    assert verdict(measured([0.9] * 100), measured([0.7] * 100), Bounds()) == []
