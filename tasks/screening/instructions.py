"""Instructions to a language model inside a document (indirect prompt injection), visible or hidden.

Reads and writes nothing but its arguments. The phrases are in phrases.py and are looked for in a folded copy, so that
case, spacing, invisible characters and letters of other scripts hide nothing; words written l i k e   t h i s are
read as words. A find in quotes is the whole quotation with its marks, so that a corpus about prompt injection can
allow quotations.
"""

import re
from collections.abc import Iterator

from tasks.screening.folding import Folded, folded, smuggled
from tasks.screening.other_languages import OTHER_LANGUAGES
from tasks.screening.phrases import ENGLISH
from tasks.screening.rules import Detector, Find, Models, Rule, Subject, at_literals

# A run of single letters with something between them: long enough for "ignore previous", too long for a list of names.
_SPELLED = re.compile(r"(?<![^\W_])(?:[^\W\d_][ \t._*/|,-]{1,3}){11,}[^\W\d_](?![^\W_])")
_SPELLED_AT_ALL = re.compile(
    r"[ \t._*/|,-][^\W\d_][ \t._*/|,-]{1,3}[^\W\d_][ \t._*/|,-]{1,3}[^\W\d_](?![^\W_])"
)  # cheap
_SPELLED_PHRASE = re.compile(
    r"(?:ignore|disregard|forget)(?:all|any|the|your|of|these|those)*(?:previous|prior|above|preceding|earlier|your)(?:instructions?|prompts?|directions|guidelines)"
    r"|systemprompt|donottelltheuser"
)
FAMILIES = (*ENGLISH, *OTHER_LANGUAGES)
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "„": "“"}
_LONGEST_QUOTATION = 300


def instructions(text: str) -> list[tuple[int, int]]:
    """Return the places of a text that speak to a language model, in order, none within another."""
    view = folded(text)
    places = [view.place(start, end) for start, end in _phrases(view)]
    # [INST] is Llama's mark, [inst] an index into a list.
    places = [(start, end) for start, end in places if text[start:end] not in ("[inst]", "[/inst]")]
    kept: list[tuple[int, int]] = []
    for start, end in sorted(places):
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
    return kept


def _phrases(view: Folded) -> Iterator[tuple[int, int]]:
    for family in FAMILIES:
        if family.needs and not any(word in view.copy for word in family.needs):
            continue
        for match in at_literals(family.pattern, view.copy, family.beginnings):
            yield match.span()
    if not _SPELLED_AT_ALL.search(view.copy):
        return
    for match in _SPELLED.finditer(view.copy):
        if _SPELLED_PHRASE.search(re.sub(r"[\W_]", "", match[0])):
            yield match.span()


def quotation(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the place of the quotation that begins right before a place, or the place itself."""
    closing = _QUOTES.get(text[start - 1]) if start else None
    if closing is None:
        return start, end
    closed = text.find(closing, end, end + _LONGEST_QUOTATION)
    if closed < 0 or "\n\n" in text[end:closed]:
        return start, end
    return start - 1, closed + 1


def _injected(subject: Subject, _rule: Rule, _models: Models) -> Iterator[Find]:
    for place in instructions(subject.text):
        start, end = quotation(subject.text, *place)
        yield Find(start, end, subject.text[start:end])


def _invisible(subject: Subject, rule: Rule, _models: Models) -> Iterator[Find]:
    """Yield one find, of no place in the text, for hidden text that speaks to a model or is long."""
    hidden = subject.hidden
    if hidden and (len(hidden.split()) > rule.words or instructions(hidden)):
        yield Find(0, 0, hidden, "")


def hidden_of(text: str, hidden: str) -> str:
    """Return the hidden text of a document: what its format hid, and what tag characters spell."""
    return "\n".join(filter(None, (hidden, smuggled(text))))


_DECIDED_BY = (*(family.pattern.pattern for family in FAMILIES), _SPELLED.pattern, _SPELLED_PHRASE.pattern)
INJECTED_INSTRUCTIONS = Detector("instructions to a language model", _injected, _DECIDED_BY)
INVISIBLE_TEXT = Detector("text that readers do not see", _invisible, _DECIDED_BY, options=("words",))
