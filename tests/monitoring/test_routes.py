"""The decision table, row by row, and the words that go with it."""

from typing import Any

import pytest

from tasks.monitoring.figures import EMBEDDING, FIGURES, change, level, matters
from tasks.monitoring.routes import Findings, explain, route


def outcome(drifted: bool, moved: float = 0.0, reference: float | None = 1.0) -> dict[str, Any]:
    return {
        "drifted": drifted,
        "change": moved,
        "reference": reference,
        "current": None if reference is None else reference + moved,
        "p_adjusted": 0.001,
        "reference_rows": 200,
        "current_rows": 210,
    }


def findings(*drifted: str, fell: bool = True, **changes: Any) -> Findings:
    names = [EMBEDDING, *(figure.name for figure in FIGURES)]
    tests = {name: outcome(name in drifted, reference=None if name == EMBEDDING else 1.0) for name in names}
    if "best_score" in drifted:
        tests["best_score"] = outcome(True, -0.2 if fell else 0.2)
    values: dict[str, Any] = {
        "enough": True, "reference_rows": 200, "current_rows": 210, "least_requests": 100, "tests": tests,
        "new_topics": ["How do I bake?"], "corrections": 12, "missing_documents": 0, "changed_documents": 0,
    }  # fmt: skip
    return Findings(**(values | changes))


@pytest.mark.parametrize(
    ("found", "action", "cause"),
    [
        (findings(EMBEDDING, enough=False), "none", "too_few_requests"),
        (findings(), "none", "no_drift"),
        (findings(EMBEDDING), "train_again", "topics_changed"),
        (findings(EMBEDDING, "best_score"), "train_again", "topics_changed"),
        (findings(EMBEDDING, missing_documents=3), "refresh_knowledge", "index_is_behind"),
        (findings("best_score", missing_documents=3), "refresh_knowledge", "index_is_behind"),
        (findings("best_score", changed_documents=1), "refresh_knowledge", "index_is_behind"),
        (findings("best_score"), "alert", "retrieval_fell"),
        (findings("best_score", fell=False), "alert", "service_changed"),
        (findings("best_score", fell=False, missing_documents=3), "alert", "service_changed"),
        (findings(EMBEDDING, corpus_problem="gone"), "alert", "corpus_unreadable"),
        (findings("latency_ms"), "alert", "service_changed"),
        (findings("failed", "question_length"), "alert", "service_changed"),
    ],
)
def test_each_row_of_the_table(found: Findings, action: str, cause: str) -> None:
    chosen = route(found)
    assert (chosen.action, chosen.cause) == (action, cause)


def test_the_reason_fits_on_a_screen_and_says_what_was_found() -> None:
    found = findings(EMBEDDING, "best_score")
    text = explain(found, route(found))
    assert text.splitlines()[0] == (
        "the best score of a search moved; the questions moved: the index has every document, so the model is trained "
        "again, on 12 new accepted corrections."
    )
    assert "best_score drifted: 1 -> 0.8, corrected p 0.001 (210 now, 200 before)" in text
    assert "- How do I bake?" in text and "- latency_ms did not drift" in text
    assert len(text.splitlines()) <= 20


def test_a_significant_change_must_also_matter() -> None:
    by_name = {figure.name: figure for figure in FIGURES}
    latency, score, failed = by_name["latency_ms"], by_name["best_score"], by_name["failed"]
    assert not matters(latency, change(latency, 100, 140)) and matters(latency, change(latency, 150, 100))
    assert not matters(score, change(score, 0.50, 0.52)) and matters(score, change(score, 0.50, 0.40))
    assert level(failed, [0, 0, 0, 1]) == 0.25 and matters(failed, change(failed, 0.0, 0.06))
    assert change(latency, 0.0, 5.0) == 5.0  # below a millisecond a ratio says nothing
