"""The structure chunker: chunks that stay within their section, for Markdown, RST, HTML and DOCX.

Reads and writes nothing but its arguments. A text is divided at its sections (those of the extraction; where it gives
none with headings, those of the text's own Markdown or underlined headings). Small neighbours under the same heading of level
2 are put together as long as they fit; across headings of levels 1 and 2 only where one of both is tiny with all that
stands under it. What does not fit is cut inside: prose where a reader would pause, tables between rows, code between
blank lines and lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from tasks.knowledge.chunking import boundaries
from tasks.knowledge.chunking.boundaries import trimmed
from tasks.knowledge.chunking.pieces import Chunk, Place, Places, Section
from tasks.knowledge.chunking.recursive import Cutter
from tasks.knowledge.chunking.tokens import Ruler

_KINDS = {"text": boundaries.TEXT, "table": boundaries.TABLE, "code": boundaries.CODE}
Stretch = tuple[int, int, Section]
_TINY = 6  # a section of less than a sixth of the limit may join a neighbour


@dataclass(frozen=True)
class _Piece:
    """Text that becomes one chunk, its headings of levels 1 and 2, and whether its section of either level is tiny."""

    start: int
    end: int
    top: tuple[str, ...]
    tiny: tuple[bool, bool]


class StructureChunker:
    """Cuts texts that have sections."""

    def __init__(self, cutter: Cutter, overlap: int = 0) -> None:
        self._cutter, self._overlap = cutter, overlap

    def chunks(self, text: str, sections: Sequence[Section] = (), format: str = "text") -> list[Chunk]:
        """Return the chunks of `text`, in order."""
        if not text.strip():
            return []
        if not any(section.headings for section in sections):
            sections = with_headings(text, sections)
        places = Places(sections)
        ruler = self._cutter.ruler(text)
        pieces = self._pieces(ruler, places)
        spans = [span for piece in self._joined(ruler, pieces) if (span := trimmed(text, piece.start, piece.end))]
        return self._cutter.made(ruler, spans, places)

    def _pieces(self, ruler: Ruler, places: Places) -> list[_Piece]:
        """Return every section as a piece, and those that do not fit as several."""
        stretches = places.stretches(len(ruler.text))
        pieces: list[_Piece] = []
        for (start, end, section), *tiny in zip(
            stretches, *(self._tiny(ruler, stretches, n) for n in (1, 2)), strict=True
        ):
            top = section.headings[:2]
            if self._cutter.fits(ruler, start, end):
                pieces.append(_Piece(start, end, top, (tiny[0], tiny[1])))
                continue
            spans = self._cutter.cut(ruler, start, end, (), _KINDS[section.kind], self._overlap)
            pieces += [_Piece(*span, top, (False, False)) for span in spans]
        return pieces

    def _tiny(self, ruler: Ruler, stretches: Sequence[Stretch], level: int) -> list[bool]:
        """Return for every stretch whether all of its section of that level is tiny."""
        found: list[bool] = []
        for _headings, group in groupby(stretches, key=lambda stretch: stretch[2].headings[:level]):
            same = list(group)
            found += [ruler.tokens(same[0][0], same[-1][1]) * _TINY < self._cutter.limit] * len(same)
        return found

    def _joined(self, ruler: Ruler, pieces: Sequence[_Piece]) -> list[_Piece]:
        """Return the pieces with neighbours put together that belong together and fit."""
        joined: list[_Piece] = []
        for piece in pieces:
            last = joined[-1] if joined else None
            if last and _related(last, piece) and self._cutter.fits(ruler, last.start, piece.end):
                joined[-1] = _Piece(
                    last.start, piece.end, piece.top, (last.tiny[0] and piece.tiny[0], last.tiny[1] and piece.tiny[1])
                )
            else:
                joined.append(piece)
        return joined


def with_headings(text: str, sections: Sequence[Section] = ()) -> list[Place]:
    """Return sections after the headings that stand in a text itself, with the pages and kinds of `sections`."""
    known = Places(sections)
    found = [(start, level, title) for start, level, title in boundaries.headings(text)]
    path: list[tuple[int, str]] = []
    places: dict[int, Place] = {
        start: Place(start, (), known.at(start).page, known.at(start).kind) for start in known.starts
    }
    headings: list[tuple[int, tuple[str, ...]]] = []
    for start, level, title in found:
        path = [*((above, name) for above, name in path if above < level), (level, title)]
        headings.append((start, tuple(name for _level, name in path)))
        at = known.at(start)
        places[start] = Place(start, headings[-1][1], at.page, at.kind)
    under = Places([Place(start, names) for start, names in headings])
    return [
        Place(place.start, under.at(place.start).headings, place.page, place.kind)
        for place in sorted(places.values(), key=lambda place: place.start)
    ]


def _related(one: _Piece, other: _Piece) -> bool:
    """Tell whether two neighbours may share a chunk if they fit."""
    if one.top == other.top:
        return True
    level = 1 if one.top[:1] == other.top[:1] else 0  # the outermost heading that they do not share
    return one.tiny[level] or other.tiny[level]
