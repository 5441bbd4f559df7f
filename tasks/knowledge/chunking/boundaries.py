"""Where a reader would pause: headings, blank lines, sentences, lines, words. Reads and writes nothing."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

BLANK = re.compile(r"\n[ \t]*\n\s*")
SENTENCE = re.compile(r"[.!?:][\"')\]]*\s+|[。！？｡][\"'”’」』）]*\s*")
LINE = re.compile(r"\n\s*")
WORD = re.compile(r"\s+")
MARK = re.compile(r"[^\w\s]+")

# By what a stretch holds, best first: a chunk may end where one of these ends.
TEXT = (BLANK, SENTENCE, LINE, WORD, MARK)
TABLE = (LINE, WORD, MARK)
CODE = (BLANK, LINE, WORD, MARK)

# These begin with a line end, which is found fast; a text is searched with one before it.
_NUMBERED = re.compile(r"\n {0,3}(#{1,6})[ \t]+(\S.*)")
_UNDERLINE = re.compile(r"\n([=*\-~^\"#+])\1{2,}[ \t]*(?=\n|\Z)")
_FENCE = re.compile(r"\n {0,3}(?:```|~~~)")


def headings(text: str) -> list[tuple[int, int, str]]:
    """Return (place, level, title) of the Markdown and underlined headings of a text, in order.

    Levels of underlined headings are those of their marks, in the order in which the text brings them.
    """
    found: dict[int, tuple[int, str]] = {}
    after_end = f"\n{text}"
    fences = [match.start() for match in _FENCE.finditer(after_end)]
    fences = fences[: len(fences) // 2 * 2]  # the last of an odd number closes nothing
    marks: list[str] = []
    for match in _UNDERLINE.finditer(text):
        start = text.rfind("\n", 0, match.start()) + 1
        title = text[start : match.start()]
        if not title or title[0].isspace() or not title.strip(match[1] + " \t"):
            continue
        over = text.rfind("\n", 0, max(0, start - 1)) + 1  # a line above it of the same mark belongs to it
        if start and text[over : start - 1].strip() and not text[over : start - 1].strip(match[1] + " \t"):
            start = over
        if match[1] not in marks:
            marks.append(match[1])
        found[start] = (marks.index(match[1]) + 1, title.strip())
    for match in _NUMBERED.finditer(after_end):
        found[match.start()] = (len(match[1]), match[2].rstrip("# \t") or match[2])
    return [(start, *found[start]) for start in sorted(found) if bisect_right(fences, start) % 2 == 0]


def best(
    text: str, least: int, most: int, places: Sequence[int] = (), kinds: Sequence[re.Pattern[str]] = TEXT
) -> int | None:
    """Return the last boundary of the best kind in (least, most], or None; `places` are better than every kind."""
    index = bisect_right(places, most) - 1
    if index >= 0 and places[index] > least:
        return places[index]
    for kind in kinds:
        ends = [match.end() for match in kind.finditer(text, least, most)]
        if ends and ends[-1] > least:
            return ends[-1]
    return None


def first(text: str, least: int, most: int, places: Sequence[int] = ()) -> int:
    """Return the first place in [least, most) at which something begins: a section, a sentence, a line, a word."""
    index = bisect_left(places, least)
    if index < len(places) and places[index] < most:
        return places[index]
    for kind in (SENTENCE, LINE, WORD):
        found = next((match.end() for match in kind.finditer(text, least, most) if match.end() < most), None)
        if found is not None:
            return found
    return least


def trimmed(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Return the span without white space at its ends, or None when nothing is left."""
    piece = text[start:end]
    inner = piece.strip()
    if not inner:
        return None
    start += len(piece) - len(piece.lstrip())
    return start, start + len(inner)


def halves(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Return a span as two, cut at white space near its middle where there is some; one character stays whole."""
    if end - start < 2:
        return [(start, end)]
    middle = (start + end) // 2
    spaces = [match.end() + start for match in WORD.finditer(text[start:end])]
    at = min(spaces, key=lambda position: abs(position - middle), default=middle)
    return [span for span in (trimmed(text, start, at), trimmed(text, at, end)) if span]
