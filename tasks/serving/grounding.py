"""How much of an answer its documents support, by the words both hold. Pure: reads and writes nothing.

The share of the answer's content words that stand in the documents shown or in the question: unigram precision, as ROUGE
(Lin 2004) counts it with the answer as the candidate. It is cheap enough for every answer, and a fall of its mean over a
night is a sign that answers left their documents. It proves nothing about one answer: a wrong sentence can be made of the
documents' words. Words of one or two letters and the commonest English ones carry nothing and are not counted.
"""

import re
from collections.abc import Iterable

_WORD = re.compile(r"\w{3,}")
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "the and for are but not you your with this that from have has had was were will would can could should its "
        "they them their then than there here what when where which who how why all any each use used using into also "
        "one two may might must more most some such only other does did done been being about after before over",
    )
)


def grounded(answer: str, sources: Iterable[str]) -> float | None:
    """Return the share of the answer's content words found in `sources`, 0 to 1; None where it has none."""
    words = _words(answer)
    if not words:
        return None
    known = set().union(*(_words(source) for source in sources))
    return len(words & known) / len(words)


def _words(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.lower()) if word not in _COMMON}
