"""Which cause a night's findings have, and what it leads to. Pure: a table with a reason.

Three causes, told apart by what got worse:

- `knowledge`: searches find less than they did. The model is good, its documents are not (any more).
- `behaviour`: searches find what they did, and answers or their ratings are worse.
- `traffic`: what came in is odd (one client, a flood, failures, slow answers), or what was recorded is broken. Neither
  documents nor training would mend it; a person looks.

Questions that moved while nobody is worse off have the cause `none`: a new subject that is answered well needs nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tasks.monitoring.figures import EMBEDDING

Action = Literal["none", "refresh_knowledge", "train_again", "alert"]
Cause = Literal["none", "knowledge", "behaviour", "traffic"]
DAGS: dict[str, str] = {"refresh_knowledge": "sync_knowledge", "train_again": "fine_tune"}
MOST_QUARANTINED = 0.05
MOST_RATE = 3.0
HITS = {"best_score", "no_good_hit", "refused"}
ANSWERS = {"grounded", "ungrounded", "negative"}
SERVICE = {"latency_ms", "failed", "tokens", "question_length", "other_language", "answer_length"}

_SAYS = {
    EMBEDDING: "the questions moved",
    "best_score": "the best score of a search moved",
    "no_good_hit": "more questions find no good document",
    "refused": "another share of questions is answered 'I do not know'",
    "grounded": "answers hold another share of their documents' words",
    "ungrounded": "more answers leave their documents",
    "negative": "another share of ratings is bad",
    "question_length": "questions changed their length",
    "other_language": "another share of questions is in another language",
    "answer_length": "answers changed their length",
    "tokens": "requests take another number of tokens",
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
    """Every test, without whoever stands out where that was tested."""
    topics: Sequence[Mapping[str, Any]] = ()
    """Topics that appeared or grew: kind, shares `before` and `now`, example questions."""
    surges: Mapping[str, float] = field(default_factory=dict)
    """Share of the one `client` or `question` that grew most, where one did."""
    explained: Sequence[str] = ()
    """What was worse, and is not without whoever stands out."""
    rate: float | None = None
    """Requests an hour over the reference's."""
    quarantined_share: float = 0.0
    recorded_rows: int = 0
    """Requests of the current window, broken ones too."""
    golden_fell: str | None = None
    """What the golden questions found now and before, where that fell."""
    corrections: int = 0
    """Accepted corrections that the live release's training has not seen."""
    missing_documents: int = 0
    changed_documents: int = 0
    named_documents: Sequence[str] = ()
    """Some of the documents that are missing or changed."""
    corpus_problem: str | None = None
    refreshed_before: bool = False
    """The knowledge was refreshed for this, and the corpus had nothing more."""

    @property
    def drifted(self) -> list[str]:
        """Names of the figures that drifted."""
        return sorted(name for name, test in self.tests.items() if test["drifted"])

    @property
    def harm(self) -> set[str]:
        """Names of the figures that drifted to where users are worse off."""
        return {name for name, test in self.tests.items() if test["harm"]}


@dataclass(frozen=True)
class Route:
    """An action, its cause, the case in one word, and the sentence for it. `held_by` is the brake that held it."""

    action: Action
    cause: Cause
    detail: str
    sentence: str
    held_by: str | None = None


def route(found: Findings) -> Route:
    """Return what the findings lead to: the first row that fits.

    | found | cause | action |
    | --- | --- | --- |
    | the log holds many broken rows | traffic | alert |
    | the golden questions find less | knowledge | alert |
    | too few requests | none | none |
    | a flood | traffic | alert |
    | worse, but not without the client or question that surged | traffic | alert |
    | searches find less, the corpus cannot be read | knowledge | alert |
    | searches find less, the corpus has documents that the index lacks or that changed | knowledge | refresh_knowledge |
    | searches find less, the index has every document, reviewers wrote corrections | knowledge | train_again |
    | searches find less, the index has every document | knowledge | refresh_knowledge once, then alert |
    | answers or ratings are worse, searches are not, no corrections to learn from | behaviour | alert |
    | answers or ratings are worse, searches are not | behaviour | train_again |
    | failures, or lengths, language, latency, tokens moved | traffic | alert |
    | questions moved, nobody is worse off | none | none |
    | nothing | none | none |
    """
    if found.quarantined_share > MOST_QUARANTINED and found.recorded_rows >= found.least_requests:
        text = f"{found.quarantined_share:.0%} of the recorded requests break a rule, so the log itself is broken"
        return Route("alert", "traffic", "log_broken", text)
    if found.golden_fell:
        text = f"the golden questions find less than when the index was checked ({found.golden_fell}); a person should look"
        return Route("alert", "knowledge", "golden_fell", text)
    if not found.enough:
        text = f"fewer than {found.least_requests} requests in a window, so nothing is judged"
        return Route("none", "none", "too_few_requests", text)
    if found.rate is not None and found.rate >= MOST_RATE:
        text = f"{found.rate:.1f} times as many requests an hour as before; a person should look"
        return Route("alert", "traffic", "flood", text)
    if found.explained and not found.harm:
        return Route("alert", "traffic", "one_source", _surged(found))
    if found.harm & HITS:
        return _knowledge(found)
    if found.harm & ANSWERS and not found.corrections:
        text = "answers are worse, and too few accepted corrections say how they should be; reviewers should look"
        return Route("alert", "behaviour", "corrections_needed", text)
    if found.harm & ANSWERS:
        text = (
            "searches find what they did and answers are worse, so the model is trained again, "
            f"on {found.corrections} new accepted corrections"
        )
        return Route("train_again", "behaviour", "answers_worse", text)
    return _service(found)


def _service(found: Findings) -> Route:
    if SERVICE.intersection(found.drifted):
        text = "neither documents nor training would mend this; a person should look"
        return Route("alert", "traffic", "service_changed", text)
    if found.drifted:
        return Route("none", "none", "questions_moved", "nobody is worse off, so nothing is done")
    return Route("none", "none", "no_drift", "no figure drifted")


def _knowledge(found: Findings) -> Route:
    if found.corpus_problem is not None:
        text = f"the corpus cannot be read ({found.corpus_problem})"
        return Route("alert", "knowledge", "corpus_unreadable", text)
    if found.missing_documents + found.changed_documents:
        text = (
            f"the corpus has {found.missing_documents} documents that the index lacks and {found.changed_documents} that "
            "changed, so the knowledge is refreshed first"
        )
        return Route("refresh_knowledge", "knowledge", "index_is_behind", text)
    if found.corrections:
        text = (
            "the index has every document, so what they lack is taken from the reviewers: the model is trained again, "
            f"on {found.corrections} new accepted corrections"
        )
        return Route("train_again", "knowledge", "answers_are_in_corrections", text)
    if not found.refreshed_before:
        text = "the corpus lists nothing new, so every source is read once more; what is missing is listed below"
        return Route("refresh_knowledge", "knowledge", "topics_missing", text)
    text = "the corpus was read again and has nothing on this; somebody must add documents on what is listed below"
    return Route("alert", "knowledge", "documents_needed", text)


def _surged(found: Findings) -> str:
    who = " and ".join(f"one {name} is {share:.0%} of the requests" for name, share in sorted(found.surges.items()))
    worse = ", ".join(found.explained)
    return f"{who}, and without it nothing is worse ({worse} were); a person should look"


def explain(found: Findings, chosen: Route) -> str:
    """Return the reason of a decision: at most a screen, the gist first."""
    moved = "; ".join(_SAYS.get(name, name) for name in found.drifted)
    lines = [(f"{moved}: " if moved else "") + chosen.sentence + "."]
    lines.append(f"Cause: {chosen.cause}. Windows: {found.current_rows} requests now, {found.reference_rows} before.")
    lines += [_line(name, test) for name, test in sorted(found.tests.items()) if test["drifted"]]
    if still := [name for name, test in sorted(found.tests.items()) if not test["drifted"]]:
        lines.append(f"- did not drift: {', '.join(still)}")
    if found.named_documents:
        lines.append(f"- missing or changed, among others: {', '.join(found.named_documents)}")
    for topic in found.topics:
        lines.append(
            f"Topic that {topic['kind']}, {topic['now']:.1%} of the questions (before: {topic['before']:.1%}):"
        )
        lines += [f"- {question}" for question in topic["examples"]]
    return "\n".join(lines)


def _line(name: str, test: Mapping[str, Any]) -> str:
    sizes = f"{test['current_rows']} now, {test['reference_rows']} before"
    if test["reference"] is None:
        return f"- {name} drifted: corrected p {test['p_adjusted']:.4g} ({sizes})"
    return f"- {name} drifted: {test['reference']:.4g} -> {test['current']:.4g}, corrected p {test['p_adjusted']:.4g} ({sizes})"
