"""What a chunker takes and gives: places in a text, and chunks. Reads and writes nothing."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

Kind = Literal["text", "table", "code"]


class Section(Protocol):
    """A stretch of a text with one place, as the extraction gives it; it ends where the next section begins."""

    @property
    def start(self) -> int:
        """Offset into the text."""

    @property
    def headings(self) -> tuple[str, ...]:
        """Path of headings above it, outermost first."""

    @property
    def page(self) -> int | None:
        """1-based page, where the format has pages."""

    @property
    def kind(self) -> Kind:
        """What the stretch holds."""


@dataclass(frozen=True)
class Place:
    """A section that was found by a chunker, not by the extraction."""

    start: int
    headings: tuple[str, ...] = ()
    page: int | None = None
    kind: Kind = "text"


@dataclass(frozen=True)
class Chunk:
    """A piece of a text: `text == source[start:end]`, which a reader is shown, and `embedded`, which is searched by.

    `tokens` are those of `text`, special tokens not counted; `embedded` never has more than the limit. `headings` are
    those above the place where the chunk starts, `covered` the names of all headings above any of it; it stands on
    `page` to `last_page`. Where more is shown than is embedded, all of these are about what is embedded.
    """

    ordinal: int
    text: str
    start: int
    end: int
    tokens: int
    embedded: str
    headings: tuple[str, ...] = ()
    page: int | None = None
    last_page: int | None = None
    covered: tuple[str, ...] = ()


class Chunker(Protocol):
    """Cuts texts. The same text, sections and format always give the same chunks."""

    def chunks(self, text: str, sections: Sequence[Section] = (), format: str = "text") -> list[Chunk]:
        """Return the chunks of `text`, in order; none for a text of white space."""


class Stand(NamedTuple):
    """Where a stretch stands, as a Chunk tells it."""

    headings: tuple[str, ...]
    page: int | None
    last_page: int | None
    covered: tuple[str, ...]


class Places:
    """The sections of a text, looked up by position."""

    def __init__(self, sections: Sequence[Section]) -> None:
        self._sections = sorted(sections, key=lambda section: section.start)
        self.starts = [section.start for section in self._sections]

    def at(self, position: int) -> Section:
        """Return the section that holds a position; a nameless one before the first."""
        index = bisect_right(self.starts, position) - 1
        return self._sections[index] if index >= 0 else Place(0)

    def over(self, start: int, end: int) -> "Stand":
        """Return where a stretch that is not empty stands."""
        sections = [self.at(start), *self._sections[bisect_right(self.starts, start) : bisect_left(self.starts, end)]]
        pages = [section.page for section in sections if section.page is not None]
        return Stand(
            sections[0].headings,
            pages[0] if pages else None,
            pages[-1] if pages else None,
            tuple(dict.fromkeys(name for section in sections for name in section.headings)),
        )

    def stretches(self, length: int) -> list[tuple[int, int, Section]]:
        """Return (start, end, section) over a whole text of that length, without empty stretches."""
        edges = [0, *self.starts, length]
        known: list[Section] = [Place(0), *self._sections]
        return [
            (start, end, section)
            for start, end, section in zip(edges[:-1], edges[1:], known, strict=True)
            if start < end
        ]
