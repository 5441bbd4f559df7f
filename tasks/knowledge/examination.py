"""What a document must pass before it is indexed, or learned from: extraction, the screening policy, the suite of documents.

Reads the policy and the suite; writes nothing. One function for `read_documents`, for the replay of what is in quarantine,
and for the training examples made from a corpus, so that all three judge alike. Never fails for what is wrong with one
document: that is a rejection.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from tasks.knowledge import quarantine
from tasks.knowledge.cache import text_sha256
from tasks.knowledge.extraction import Extract
from tasks.knowledge.quarantine import Rejection
from tasks.knowledge.sources import DocumentRefused
from tasks.screening import Policy, carry, load_policy, screen
from tasks.settings import Settings
from tasks.validation import validate

SUITE = "documents"


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

    Screening comes before the suite, so that no reason or excerpt of its rules repeats a secret.
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
        row = _screened(body, extract, _without(policy, allowed), found)
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


def _screened(body: Body, extract: Extract, policy: Policy, found: Examination) -> dict[str, Any] | None:
    """Return the row of a document as the policy lets it pass; None, and its rejections, where it does not."""
    outcome = screen(extract.text, policy, hidden=extract.hidden, format=extract.format)
    if outcome.blocked:
        found.rejected += quarantine.rejections(body.uri, outcome.text, outcome.blocked)
        return None
    if outcome.hits:
        found.redactions[body.uri] = dict(sorted(outcome.hits.items()))
    # Short texts that stand beside the text, or in it again; of these no rule would say that they hold NUL.
    clean = cache(lambda text: screen(text.replace("\x00", ""), policy).text)
    starts = carry([section.start for section in extract.sections], outcome.edits)
    sections = [
        {
            "start": start,
            "headings": [clean(heading) if outcome.hits else heading for heading in section.headings],
            "page": section.page,
            "kind": section.kind,
        }
        for section, start in zip(extract.sections, starts, strict=True)
    ]
    return {
        "uri": body.uri,
        "title": clean(extract.title),
        "text": outcome.text,
        "format": extract.format,
        "sections": sections,
        "metadata": {name: clean(value) for name, value in extract.metadata.items()},
        "invalid_bytes": extract.invalid_bytes,
        "content_sha256": body.content_sha256,
        "text_sha256": text_sha256(outcome.text),
        "bytes": len(body.body),
        "stamp": body.stamp,
    }


def _without(policy: Policy, rules: frozenset[str]) -> Policy:
    """Return the policy with the rules of an acceptance switched off."""
    changed = {
        name: rule.model_copy(update={"action": "allow"}) for name, rule in policy.rules.items() if name in rules
    }
    return policy.model_copy(update={"rules": {**policy.rules, **changed}}) if changed else policy
