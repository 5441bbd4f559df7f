"""What a document must pass before it is indexed, or learned from: extraction, the screening policy, the suite of documents.

Reads the policy and the suite; writes nothing. One function for `read_documents`, for the replay of what is in quarantine,
and for the training examples made from a corpus, so that all three judge alike. Never fails for what is wrong with one
document: that is a rejection.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tasks.knowledge import quarantine
from tasks.knowledge.cache import text_sha256
from tasks.knowledge.extraction import Extract
from tasks.knowledge.quarantine import Rejection
from tasks.knowledge.sources import DocumentRefused
from tasks.screening import Policy, Screened, carry, load_policy, screen
from tasks.settings import Settings
from tasks.validation import load_suite, validate

SUITE = "documents"
_HUGE, _NUL = "text_is_not_huge", "text_has_no_nul"
_LONGEST = 1_000  # characters of a heading or a value of metadata: every chunk has a copy
_TO_EXCERPT = 10_000  # characters that are screened for the excerpt of a text that is not


@dataclass(frozen=True)
class Body:
    """The bytes of one document, as they were fetched."""

    uri: str
    stamp: str
    content_sha256: str
    body: bytes


class Extracts(Protocol):
    """What turns bytes into text: `tasks.knowledge.extraction.Extractor`, or its `extract` in this process."""

    def extract(self, uri: str, body: bytes) -> Extract:
        """Return what a document says. Raises DocumentRefused."""
        ...


@dataclass
class Examination:
    """The rows of the good documents, why the others are rejected, and how often which rule redacted what."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    redactions: dict[str, Mapping[str, int]] = field(default_factory=dict)


def examine(
    bodies: Sequence[Body],
    extractor: Extracts,
    accepted: Mapping[str, frozenset[str]] | None = None,
    settings: Settings | None = None,
) -> Examination:
    """Examine documents; `accepted` maps a content to the rules against which a person accepted it.

    `settings` name the models that some rules need; without them those rules look for nothing.

    Screening comes before the suite, so that no reason or excerpt of its rules repeats a secret; but nothing that is too
    long for the suite is screened.
    """
    found, policy = Examination(), load_policy(settings=settings)
    rows: list[dict[str, Any]] = []
    for body in bodies:
        allowed = (accepted or {}).get(body.content_sha256, frozenset())
        try:
            extract = extractor.extract(body.uri, body.body)
        except DocumentRefused as refused:
            found.rejected.append(Rejection(body.uri, refused.rule, refused.reason, ""))
            continue
        if _NUL in allowed:  # Postgres takes none; one for one, so that the sections stay where they are
            extract = replace(extract, text=extract.text.replace("\x00", "\ufffd"))
        own = _without(policy, allowed)
        if _HUGE not in allowed and (reason := _too_long(extract)):
            excerpt = screen(extract.text[:_TO_EXCERPT], own).text
            found.rejected += quarantine.rejections(body.uri, excerpt, {_HUGE: reason})
            continue
        row = _screened(body, extract, own, found)
        if row is not None:
            rows.append(row | {"allowed": allowed})
    for row, broken in zip(rows, validate(SUITE, rows).rows, strict=True):
        allowed = row.pop("allowed")
        told = {rule: reason for rule, reason in broken.items() if rule not in allowed}
        if told:
            found.rejected += quarantine.rejections(row["uri"], row["text"], told)
        else:
            found.rows.append(row)
    return found


def _too_long(extract: Extract) -> str | None:
    """Return why a document is too long to be looked at: all that it says counts, hidden or not."""
    rule = next((one for one in load_suite(SUITE)["expectations"] if one["meta"]["rule"] == _HUGE), None)
    length = sum(map(len, (extract.text, extract.title, extract.hidden, *extract.metadata.values())))
    if rule is None or length <= rule["kwargs"]["max_value"]:
        return None
    return f"expected {rule['meta']['expected']}, found {length:,} (with title, metadata and what is hidden)"


class _Beside:
    """The short texts that stand beside a document's text: each as the policy lets it pass, and what was found in it."""

    def __init__(self, policy: Policy) -> None:
        self._policy = _without(policy, frozenset({"language"}))  # a title is no sample of one
        self.found: dict[str, Screened] = {}

    def clean(self, text: str) -> str:
        """Return a text screened; of these no rule would say that they hold NUL."""
        if text not in self.found:
            self.found[text] = screen(text.replace("\x00", ""), self._policy)
        return self.found[text].text


def _screened(body: Body, extract: Extract, policy: Policy, found: Examination) -> dict[str, Any] | None:
    """Return the row of a document as the policy lets it pass; None, and its rejections, where it does not."""
    outcome, beside = screen(extract.text, policy, hidden=extract.hidden, format=extract.format), _Beside(policy)
    title, metadata = (
        beside.clean(extract.title),
        {name: beside.clean(value) for name, value in extract.metadata.items()},
    )
    hits = Counter(outcome.hits)
    for side, screened in beside.found.items():
        if side not in extract.text:  # else it was counted there
            hits.update(screened.hits)
    starts = carry([section.start for section in extract.sections], outcome.edits)
    sections = [
        {
            "start": start,
            # They stand in the text again: where nothing was found there, nothing is in them.
            "headings": [_short(beside.clean(heading) if outcome.hits else heading) for heading in section.headings],
            "page": section.page,
            "kind": section.kind,
        }
        for section, start in zip(extract.sections, starts, strict=True)
    ]
    blocked = {
        rule: (reason, part.text) for part in (*beside.found.values(), outcome) for rule, reason in part.blocked.items()
    }
    if blocked:
        for rule, (reason, text) in blocked.items():
            found.rejected += quarantine.rejections(body.uri, text, {rule: reason})
        return None
    if hits:
        found.redactions[body.uri] = dict(sorted(hits.items()))
    return {
        "uri": body.uri,
        "title": title,
        "text": outcome.text,
        "format": extract.format,
        "sections": sections,
        "metadata": _shortened(metadata),
        "invalid_bytes": extract.invalid_bytes,
        "content_sha256": body.content_sha256,
        "text_sha256": text_sha256(outcome.text),
        "bytes": len(body.body),
        "stamp": body.stamp,
    }


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _shortened(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return metadata with short values; `shortened` names those that were longer."""
    longer = [name for name, value in metadata.items() if len(value) > _LONGEST]
    short = {name: _short(value) for name, value in metadata.items()}
    return short | {"shortened": ", ".join(longer)} if longer else short


def _without(policy: Policy, rules: frozenset[str]) -> Policy:
    """Return the policy with the rules of an acceptance switched off."""
    changed = {
        name: rule.model_copy(update={"action": "allow"}) for name, rule in policy.rules.items() if name in rules
    }
    return policy.model_copy(update={"rules": {**policy.rules, **changed}}) if changed else policy
