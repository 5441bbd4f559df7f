"""The sentence window chunker: a few sentences are searched by, those around them are shown.

Reads and writes nothing but its arguments. Sentences are put together up to an eighth of the limit; each such group
becomes a chunk whose `embedded` is the group and whose `text` is the group with as many of its neighbours on both
sides as fit. Every sentence is embedded once.
"""

from collections.abc import Sequence

from tasks.knowledge.chunking import boundaries
from tasks.knowledge.chunking.boundaries import trimmed
from tasks.knowledge.chunking.pieces import Chunk, Places, Section
from tasks.knowledge.chunking.recursive import Cutter, Span
from tasks.knowledge.chunking.tokens import Ruler, exact_counts

_SHARE = 8


class SentenceWindowChunker:
    """Cuts texts into sentences with their surroundings."""

    def __init__(self, cutter: Cutter) -> None:
        self._cutter = cutter

    def chunks(self, text: str, sections: Sequence[Section] = (), format: str = "text") -> list[Chunk]:
        """Return the chunks of `text`, in order."""
        if not text.strip():
            return []
        places = Places(sections)
        ruler = self._cutter.ruler(text)
        groups, _counts = self._cutter.finish(ruler, self._groups(ruler, places))
        windows = [self._window(ruler, groups, number) for number in range(len(groups))]
        counts = exact_counts(self._cutter.counter, ruler, windows)
        return [
            Chunk(number, text[start:end], start, end, count, text[slice(*group)], *places.over(*group))
            for number, (group, (start, end), count) in enumerate(zip(groups, windows, counts, strict=True))
        ]

    def _groups(self, ruler: Ruler, places: Places) -> list[Span]:
        """Return spans of one or a few sentences, none over a section's border."""
        text, groups = ruler.text, list[Span]()
        heads = [start for start, _level, _title in boundaries.headings(text)]
        ends = {match.end() for kind in (boundaries.SENTENCE, boundaries.BLANK) for match in kind.finditer(text)}
        borders = {*places.starts, *heads}
        start = 0
        edges = sorted({*ends, *borders, len(text)} - {0})
        for edge, after in zip(edges, [*edges[1:], len(text)], strict=True):
            full = ruler.tokens(start, after) * _SHARE > self._cutter.limit
            if edge == len(text) or edge in borders or full:
                if self._cutter.fits(ruler, start, edge):
                    groups += [span for span in [trimmed(text, start, edge)] if span]
                else:
                    groups += self._cutter.cut(ruler, start, edge)
                start = edge
        return groups

    def _window(self, ruler: Ruler, groups: Sequence[Span], number: int) -> Span:
        """Return the group with its neighbours, one more on each side in turn, as long as they fit."""
        first = last = number
        grown = True
        while grown:
            grown = False
            if first > 0 and self._fits(ruler, groups[first - 1][0], groups[last][1]):
                first, grown = first - 1, True
            if last + 1 < len(groups) and self._fits(ruler, groups[first][0], groups[last + 1][1]):
                last, grown = last + 1, True
        return groups[first][0], groups[last][1]

    def _fits(self, ruler: Ruler, start: int, end: int) -> bool:
        if not self._cutter.fits(ruler, start, end):
            return False
        if ruler.counted(start, end) is not None:
            return True
        return self._cutter.counter.count(ruler.text[start:end]) <= self._cutter.limit
