"""How a text is written: characters nobody sees, damage by a wrong encoding, its language.

Reads and writes nothing but its arguments. Damage is what ftfy can undo with certainty: text that was encoded one way
and read another. The language is py3langid's, and only judged in long prose with a clear margin.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from tasks.screening.rules import Detector, Find, Models, Rule, Subject, finds

# Zero-width, bidirectional and tag characters. Joiners (U+200C, U+200D) belong to some scripts and to emoji, and are
# hidden only next to ASCII; a byte order mark only counts here when it is not the first character of a file. One variation
# selector belongs to the character before it (those of the supplement to an ideograph); more of them spell something else.
_SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
_IDEOGRAPHS = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HIDDEN = re.compile(
    "[\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\u180e\U000e0000-\U000e007f]"
    "|(?<=[ -~])[\u200c\u200d]|[\u200c\u200d](?=[ -~])"
    f"|(?<=[{_SELECTORS}])[{_SELECTORS}]+|(?<![{_IDEOGRAPHS}])[\U000e0100-\U000e01ef][{_SELECTORS}]*"
)
# What damage looks like at least: two characters beyond ASCII, or one of the letters that a lost no-break space leaves
# alone, one of them from the blocks that single-byte encodings have letters and signs in.
_SUSPECT = re.compile(r"[\x80-\u02ff\u0370-\u05ff\u2010-\u2122](?:[^\x00-\x7f]|(?<=[ÃÂ])[ ])")
_FENCED = re.compile(r"(?ms)^(`{3,}|~{3,})[^\n]*\n.*?^\1|`[^`\n]+`|https?://\S+")
_LETTERS_NEEDED = 200
_SAMPLE = 4000  # characters that are judged: more of them change no verdict, and the classifier reads 1 MB/s
_MARGIN = 4.0  # the best language must be so many times as likely as the best that may pass
_PROSE = ("text", "markdown", "rst", "html", "pdf", "docx")


def _hidden_characters(subject: Subject, _rule: Rule, _models: Models) -> Iterator[Find]:
    return iter(()) if subject.text.isascii() else finds(_HIDDEN.finditer(subject.text))


def _damage(subject: Subject, _rule: Rule, _models: Models) -> Iterator[Find]:
    """Yield what a repair would change, a stretch a line, with the repaired text."""
    if subject.text.isascii():
        return
    from ftfy import fix_encoding
    from ftfy.badness import is_bad

    for line_start, line in _suspect_lines(subject.text):
        if is_bad(line) and (repaired := fix_encoding(line)) != line:
            start, end, instead = _difference(line, repaired)
            yield Find(line_start + start, line_start + end, line[start:end], instead)


def _suspect_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that may be damaged, each with its offset."""
    match = _SUSPECT.search(text)
    while match:
        start = text.rfind("\n", 0, match.start()) + 1
        end = text.find("\n", match.start())
        end = len(text) if end < 0 else end
        yield start, text[start:end]
        match = _SUSPECT.search(text, end)


def _difference(before: str, after: str) -> tuple[int, int, str]:
    """Return the stretch in which two lines differ, and what stands there in the second."""
    shorter = min(len(before), len(after))
    start = next((at for at in range(shorter) if before[at] != after[at]), shorter)
    same = next((at for at in range(shorter - start) if before[-1 - at] != after[-1 - at]), shorter - start)
    return start, len(before) - same, after[start : len(after) - same]


@cache
def _classifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def classified(text: str) -> tuple[str, float]:
    """Return the likeliest language of a text, however short, and how likely it is: 0 to 1."""
    language, likely = _classifier().classify(text)
    return str(language), float(likely)


def language_of(text: str) -> list[tuple[str, float]]:
    """Return the languages a text may be in, the likeliest first; nothing for a text too short to tell."""
    prose = _FENCED.sub(" ", text[: 4 * _SAMPLE])[:_SAMPLE]
    if sum(map(str.isalpha, prose)) < _LETTERS_NEEDED:
        return []
    found: list[tuple[str, float]] = _classifier().rank(prose)
    return found


def _language(subject: Subject, rule: Rule, _models: Models) -> Iterator[Find]:
    """Yield one find, of no place in the text, for prose in another language than those that may pass."""
    if not rule.languages or subject.format not in _PROSE:
        return
    ranked = language_of(subject.text)
    if not ranked or ranked[0][0] in rule.languages:
        return
    best = max((score for name, score in ranked if name in rule.languages), default=0.0)
    if ranked[0][1] >= _MARGIN * best:
        yield Find(0, 0, ranked[0][0], "")


HIDDEN_CHARACTERS = Detector("hidden characters", _hidden_characters, (_HIDDEN.pattern,), mark="")
ENCODING_DAMAGE = Detector("damage by a wrong encoding", _damage, (_SUSPECT.pattern,), packages=("ftfy",))
LANGUAGE = Detector(
    "another language than the policy names",
    _language,
    (_FENCED.pattern, str((_LETTERS_NEEDED, _SAMPLE, _MARGIN, _PROSE))),
    packages=("py3langid",),
    actions=("block", "allow"),
    options=("languages",),
)
