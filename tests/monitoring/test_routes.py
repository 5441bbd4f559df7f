"""The decision table, row by row, and the words that go with it."""

from typing import Any

import pytest

from tasks.monitoring.figures import BY_NAME, EMBEDDING, FIGURES, change
from tasks.monitoring.routes import Findings, explain, route


def outcome(drifted: bool, harm: bool = False, reference: float | None = 1.0) -> dict[str, Any]:
    return {
        "drifted": drifted,
        "harm": harm,
        "change": -0.2 if drifted else 0.0,
        "reference": reference,
        "current": None if reference is None else reference - (0.2 if drifted else 0.0),
        "p_adjusted": 0.001,
        "reference_rows": 200,
        "current_rows": 210,
    }


def findings(*drifted: str, worse: tuple[str, ...] = (), **changes: Any) -> Findings:
    names = [EMBEDDING, *(figure.name for figure in FIGURES)]
    tests = {
        name: outcome(name in {*drifted, *worse}, name in worse, None if name == EMBEDDING else 1.0) for name in names
    }
    values: dict[str, Any] = {
        "enough": True, "reference_rows": 200, "current_rows": 210, "least_requests": 100, "tests": tests,
        "topics": [{"kind": "appeared", "before": 0.0, "now": 0.1, "examples": ["How do I bake?"]}],
    }  # fmt: skip
    return Findings(**(values | changes))


HITS, ANSWERS = ("no_good_hit",), ("negative",)


@pytest.mark.parametrize(
    ("found", "action", "cause", "detail"),
    [
        (findings(worse=HITS, enough=False), "none", "none", "too_few_requests"),
        (findings(), "none", "none", "no_drift"),
        (findings(EMBEDDING), "none", "none", "questions_moved"),
        (findings(EMBEDDING, "best_score"), "none", "none", "questions_moved"),  # searches find more than before
        (findings(EMBEDDING, worse=HITS, missing_documents=3), "refresh_knowledge", "knowledge", "index_is_behind"),
        (findings(worse=("best_score",), changed_documents=1), "refresh_knowledge", "knowledge", "index_is_behind"),
        (findings(worse=("refused",), corrections=12), "train_again", "knowledge", "answers_are_in_corrections"),
        (findings(worse=HITS), "refresh_knowledge", "knowledge", "topics_missing"),
        (findings(worse=HITS, refreshed_before=True), "alert", "knowledge", "documents_needed"),
        (findings(worse=HITS, corpus_problem="gone"), "alert", "knowledge", "corpus_unreadable"),
        (findings(worse=(*HITS, *ANSWERS)), "refresh_knowledge", "knowledge", "topics_missing"),
        (findings(worse=ANSWERS, corrections=12), "train_again", "behaviour", "answers_worse"),
        (findings(worse=("ungrounded",), corrections=12, missing_documents=9), "train_again", "behaviour", "answers_worse"),
        (findings(worse=ANSWERS), "alert", "behaviour", "corrections_needed"),
        (findings(golden_fell="recall@5 0.9 -> 0.2", worse=HITS), "alert", "knowledge", "golden_fell"),
        (findings(golden_fell="recall@5 0.9 -> 0.2", enough=False), "alert", "knowledge", "golden_fell"),
        (findings("latency_ms"), "alert", "traffic", "service_changed"),
        (findings("failed", "question_length"), "alert", "traffic", "service_changed"),
        (findings(rate=4.0), "alert", "traffic", "flood"),
        (findings(rate=4.0, worse=HITS, corrections=20), "alert", "traffic", "flood"),
        (findings(explained=["no_good_hit"], surges={"client": 0.4}), "alert", "traffic", "one_source"),
        (findings(explained=["negative"], surges={"client": 0.4}, worse=HITS), "refresh_knowledge", "knowledge", "topics_missing"),
        (findings(worse=HITS, quarantined_share=0.3, recorded_rows=300), "alert", "traffic", "log_broken"),
        (findings(enough=False, quarantined_share=1.0, recorded_rows=300), "alert", "traffic", "log_broken"),
        (findings(enough=False, quarantined_share=0.3, recorded_rows=3), "none", "none", "too_few_requests"),
    ],
)  # fmt: skip
def test_each_row_of_the_table(found: Findings, action: str, cause: str, detail: str) -> None:
    chosen = route(found)
    assert (chosen.action, chosen.cause, chosen.detail) == (action, cause, detail)


def test_the_reason_fits_on_a_screen_and_says_what_was_found() -> None:
    found = findings(EMBEDDING, worse=("best_score", *HITS), corrections=12)
    text = explain(found, route(found))
    assert text.splitlines()[0] == (
        "the best score of a search moved; more questions find no good document; the questions moved: the index has every "
        "document, so what they lack is taken from the reviewers: the model is trained again, on 12 new accepted corrections."
    )
    assert "Cause: knowledge." in text
    assert "best_score drifted: 1 -> 0.8, corrected p 0.001 (210 now, 200 before)" in text
    assert "Topic that appeared, 10.0% of the questions (before: 0.0%):\n- How do I bake?" in text
    assert "latency_ms" in text.split("did not drift: ")[1]
    assert len(text.splitlines()) <= 20


def test_a_change_is_measured_by_its_figure() -> None:
    assert change(BY_NAME["latency_ms"], 100, 140) == pytest.approx(1.4)
    assert change(BY_NAME["latency_ms"], 150, 100) == pytest.approx(1.5)
    assert change(BY_NAME["best_score"], 0.50, 0.40) == pytest.approx(-0.1)
    assert change(BY_NAME["latency_ms"], 0.0, 5.0) == 5.0  # below a millisecond a ratio says nothing
