"""Which drift leads to which action, and the words for it. Pure: a table with a reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tasks.monitoring.figures import EMBEDDING

Action = Literal["none", "refresh_knowledge", "train_again", "alert"]
DAGS: dict[str, str] = {"refresh_knowledge": "sync_knowledge", "train_again": "fine_tune"}

_SAYS = {
    EMBEDDING: "the questions moved",
    "best_score": "the best score of a search moved",
    "question_length": "questions changed their length",
    "latency_ms": "answers take another time",
    "failed": "another share of requests fails",
}


@dataclass(frozen=True)
class Findings:
    """What is known when a decision is made."""

    enough: bool
    reference_rows: int
    current_rows: int
    least_requests: int
    tests: Mapping[str, Mapping[str, Any]]
    new_topics: Sequence[str]
    corrections: int
    """Accepted corrections that the live release's training has not seen."""
    missing_documents: int
    changed_documents: int
    corpus_problem: str | None = None

    @property
    def drifted(self) -> list[str]:
        """Names of the figures that drifted."""
        return sorted(name for name, test in self.tests.items() if test["drifted"])

    @property
    def retrieval_fell(self) -> bool:
        """Whether searches find less than before."""
        score = self.tests.get("best_score")
        return score is not None and bool(score["drifted"]) and score["change"] < 0


@dataclass(frozen=True)
class Route:
    """An action, the cause in one word (part of the evidence's key), and the sentence for it."""

    action: Action
    cause: str
    sentence: str


def route(found: Findings) -> Route:
    """Return what the findings lead to.

    | drifted | corpus has documents the index lacks | action |
    | --- | --- | --- |
    | too few requests, or nothing | | none |
    | questions moved, or retrieval fell | yes | refresh_knowledge |
    | questions moved, or retrieval fell | cannot be read | alert |
    | questions moved | no | train_again |
    | retrieval fell alone | no | alert |
    | only length, latency or failures | | alert |
    """
    if not found.enough:
        return Route(
            "none", "too_few_requests", f"fewer than {found.least_requests} requests in a window, so nothing is judged"
        )
    if not found.drifted:
        return Route("none", "no_drift", "no figure drifted")
    asked = EMBEDDING in found.drifted
    if asked or found.retrieval_fell:
        return _knowledge(found, asked)
    return Route("alert", "service_changed", "neither documents nor training would mend this; a person should look")


def _knowledge(found: Findings, asked: bool) -> Route:
    if found.corpus_problem is not None:
        return Route("alert", "corpus_unreadable", f"the corpus cannot be read ({found.corpus_problem})")
    waiting = found.missing_documents + found.changed_documents
    if waiting:
        return Route(
            "refresh_knowledge",
            "index_is_behind",
            f"the corpus has {found.missing_documents} documents that the index lacks and {found.changed_documents} that changed, "
            "so the knowledge is refreshed first",
        )
    if asked:
        return Route(
            "train_again",
            "topics_changed",
            f"the index has every document, so the model is trained again, on {found.corrections} new accepted corrections",
        )
    return Route(
        "alert", "retrieval_fell", "the index has every document and the questions did not move; a person should look"
    )


def explain(found: Findings, chosen: Route) -> str:
    """Return the reason of a decision: at most a screen, the gist first."""
    moved = "; ".join(_SAYS.get(name, name) for name in found.drifted)
    lines = [(f"{moved}: " if moved else "") + chosen.sentence + "."]
    lines.append(f"Windows: {found.current_rows} requests now, {found.reference_rows} before.")
    lines += [_line(name, test) for name, test in sorted(found.tests.items())]
    if EMBEDDING in found.drifted and found.new_topics:
        lines += ["New questions, furthest from the earlier ones:", *(f"- {question}" for question in found.new_topics)]
    return "\n".join(lines)


def _line(name: str, test: Mapping[str, Any]) -> str:
    state = "drifted" if test["drifted"] else "did not drift"
    sizes = f"{test['current_rows']} now, {test['reference_rows']} before"
    if test["reference"] is None:
        return f"- {name} {state}: corrected p {test['p_adjusted']:.4g} ({sizes})"
    return f"- {name} {state}: {test['reference']:.4g} -> {test['current']:.4g}, corrected p {test['p_adjusted']:.4g} ({sizes})"
