"""Screening itself: a text, or many named ones, through every rule of a policy.

Reads and writes nothing but its arguments (the rules that use models read those). A reason never repeats what was found.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tasks.screening.edits import Edits, apply
from tasks.screening.instructions import hidden_of
from tasks.screening.policy import DETECTORS, Policy
from tasks.screening.rules import Detector, Find, Rule, Subject


@dataclass(frozen=True)
class Screened:
    """A text as it may go on, and how often each rule was hit; `blocked` texts may not go on at all."""

    text: str
    hits: Mapping[str, int]
    blocked: Mapping[str, str]
    edits: Edits = ()  # what `carry` needs to move offsets into the old text


@dataclass
class Outcome:
    """What screening made of many texts: those that go on, the reasons of the others, and the redactions."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    blocked: dict[str, dict[str, str]] = field(default_factory=dict)
    masked: dict[str, str] = field(default_factory=dict)  # an excerpt of a blocked item that repeats no secret
    redactions: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def redacted_by_rule(self) -> dict[str, int]:
        """How many places each rule redacted."""
        total: Counter[str] = Counter()
        for found in self.redactions.values():
            total.update(found)
        return dict(sorted(total.items()))


def screen(text: str, policy: Policy, hidden: str = "", format: str = "text") -> Screened:  # noqa: A002 (as in Extract)
    """Return the text with everything masked that a rule found, the hits, and the reasons to block it.

    `hidden` is what the document's format kept from readers, `format` that of its Extract.
    """
    hits: dict[str, int] = {}
    blocked: dict[str, str] = {}
    edits = []
    hidden = hidden_of(text, hidden)
    for name, detector in DETECTORS.items():
        rule = policy.rules[name]
        if rule.action == "allow":
            continue
        found = _kept(detector.find(Subject(text, hidden, format), rule, policy.models), rule)
        if not found:
            continue
        hits[name] = len(found)
        text, done = apply(text, [_place(name, detector, find) for find in found])
        edits.append(done)
        if rule.action == "block":
            blocked[name] = f"expected no text with {detector.what} (screening policy), found {len(found)}"
    return Screened(text, hits, blocked, tuple(edits))


def screen_all(
    items: Iterable[tuple[str, list[str]]],
    policy: Policy,
    hidden: Mapping[str, str] | None = None,
    formats: Mapping[str, str] | None = None,
) -> Outcome:
    """Screen the texts of every named item; one that is blocked takes the whole item with it."""
    outcome = Outcome()
    for item, texts in items:
        kind = (formats or {}).get(item, "text")
        found = [screen(text, policy, format=kind) for text in texts]
        if unseen := (hidden or {}).get(item):
            found.append(screen("", policy, hidden=unseen, format=kind))
        blocked = {rule: reason for part in found for rule, reason in part.blocked.items()}
        if blocked:
            outcome.blocked[item] = blocked
            outcome.masked[item] = " ".join(part.text for part in found[: len(texts)])
            continue
        outcome.texts[item] = [part.text for part in found[: len(texts)]]
        hits: Counter[str] = Counter()
        for part in found:
            hits.update(part.hits)
        if hits:
            outcome.redactions[item] = dict(sorted(hits.items()))
    return outcome


def _kept(found: Iterable[Find], rule: Rule) -> list[Find]:
    """Return the finds that no allow-list excuses, in order, none within another."""
    kept: list[Find] = []
    for find in sorted(found, key=lambda find: (find.start, -find.end)):
        overlaps = bool(kept) and find.start < kept[-1].end
        if not overlaps and not any(pattern.fullmatch(find.found) for pattern in rule.allow):
            kept.append(find)
    return kept


def _place(name: str, detector: Detector, find: Find) -> tuple[int, int, str]:
    mark = f"[{name}]" if detector.mark is None else detector.mark
    return find.start, find.end, mark if find.instead is None else find.instead
