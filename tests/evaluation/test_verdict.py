"""The gate's table: only an interval below zero, on enough rows, of a changed model, promotes."""

import math
from typing import Any

import pytest

from tasks.evaluation.verdict import NEEDED, judge
from tasks.training.recipes import load_recipe

BOUNDS = load_recipe("demo").evaluation
METRICS = {
    "base_loss": 4.0, "candidate_loss": 3.0, "difference": -1.0, "difference_low": -1.2, "difference_high": -0.8,
}  # fmt: skip
FACTS = {"rows": 60, "output_changed": True, "weights_sha256": "new", "champion_weights_sha256": None}


def word(metrics: dict[str, Any] | None = None, facts: dict[str, Any] | None = None) -> str:
    return judge(METRICS | (metrics or {}), FACTS | (facts or {}), BOUNDS).word


def test_a_better_candidate_is_promoted() -> None:
    verdict = judge(METRICS, FACTS, BOUNDS)
    assert verdict.word == "promote"
    assert "-1.000 against the base model on 60 rows" in verdict.reason
    assert "the champion" in judge(METRICS, FACTS | {"champion_weights_sha256": "old"}, BOUNDS).reason


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_no_number_holds(name: str, value: float) -> None:
    assert word({name: value}) == "hold"


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_figure_holds(name: str) -> None:
    verdict = judge({key: value for key, value in METRICS.items() if key != name}, FACTS, BOUNDS)
    assert verdict.word == "hold"
    assert name in verdict.reason


@pytest.mark.parametrize(
    ("metrics", "facts", "expected"),
    [
        ({}, {"rows": BOUNDS.min_rows}, "promote"),
        ({}, {"rows": BOUNDS.min_rows - 1}, "hold"),
        ({}, {"rows": None}, "hold"),
        ({}, {"output_changed": False}, "hold"),
        ({}, {"output_changed": None}, "hold"),
        ({}, {"champion_weights_sha256": "new"}, "hold"),
        ({"difference_high": 0.0}, {}, "review"),
        ({"difference_high": BOUNDS.review_margin}, {}, "review"),
        ({"difference_high": BOUNDS.review_margin * 1.01}, {}, "hold"),
        ({"difference": 0.5, "difference_low": 0.1, "difference_high": 0.9}, {}, "hold"),
        ({"difference": 0.0, "difference_low": 0.0, "difference_high": 0.0}, {}, "hold"),
        ({"difference": -2.0}, {}, "hold"),
        ({"candidate_loss": 4.5}, {"champion_weights_sha256": "old"}, "review"),
    ],
)
def test_the_table(metrics: dict[str, Any], facts: dict[str, Any], expected: str) -> None:
    assert word(metrics, facts) == expected


def test_nothing_at_all_holds() -> None:
    assert judge({}, {}, BOUNDS).word == "hold"


def test_an_earlier_measurement_names_the_adapter() -> None:
    earlier = {"rows": 60, "output_changed": True, "adapter_sha256": "new", "champion_adapter_sha256": None}
    assert judge(METRICS, earlier, BOUNDS).word == "promote"
    verdict = judge(METRICS, earlier | {"champion_adapter_sha256": "new"}, BOUNDS)
    assert (verdict.word, "nothing new" in verdict.reason) == ("hold", True)
