"""What extraction gives: text with places, or a named refusal.

Reads and writes nothing but its arguments. `Writer` puts a text together out of headings and blocks, as Markdown,
and keeps the places right; it fails with `DocumentRefused` (`document_is_no_bomb`) when a text grows out of bounds.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tasks.errors import DataError

Kind = Literal["text", "table", "code"]
MAX_CHARACTERS = 50_000_000  # of text that a parser makes; what is larger is no document, and would fill the memory
# Of a heading or a value of metadata. Twice what is kept in the end: screening sees what begins before the end whole.
LONGEST_BESIDE = 2_000
_SPACE = re.compile(r"[\s\0]+")


class DocumentRefused(DataError):
    """One document cannot be read or taken apart: it belongs into quarantine, and the others go on."""

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(rule, reason)  # both, so that it survives pickling
        self.rule = rule
        self.reason = reason

    def __str__(self) -> str:
        """Return the reason, with the name of the rule."""
        return f"{self.rule}: {self.reason}"


@dataclass(frozen=True)
class Section:
    """A stretch of an Extract's text with one place: it begins at `start` and ends where the next section begins."""

    start: int
    headings: tuple[str, ...] = ()
    page: int | None = None
    kind: Kind = "text"


@dataclass(frozen=True)
class Extract:
    """What a document says, and where in it.

    `text` has \\n line ends, no byte order mark, and is trimmed. `invalid_bytes` are bytes that are not text in the
    encoding that was found. `hidden` is what a reader would not see; it is not in `text`.
    """

    title: str
    text: str
    invalid_bytes: int
    format: str = "text"
    sections: tuple[Section, ...] = ()
    hidden: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


class Writer:
    """Puts a text together, block by block, and remembers where which heading, page and kind begins."""

    def __init__(self) -> None:
        self.page: int | None = None
        self._parts: list[str] = []
        self._length = 0
        self._path: list[tuple[int, str]] = []
        self._sections: list[Section] = []

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._parts)

    @property
    def sections(self) -> tuple[Section, ...]:
        """The sections so far."""
        return tuple(self._sections)

    def enter(self, level: int, title: str) -> None:
        """Be below a heading from here on, without writing it: it stands in a block that follows."""
        self.leave(level)
        self._path.append((level, title))

    def leave(self, level: int = 1) -> None:
        """Be below no heading of this level or a deeper one from here on."""
        while self._path and self._path[-1][0] >= level:
            self._path.pop()

    def heading(self, level: int, title: str) -> None:
        """Write a heading as Markdown; what follows stands below it."""
        title = one_line(title)
        if title:
            self.enter(level, title)
            self.block(f"{'#' * min(level, 6)} {title}")

    def block(self, text: str, kind: Kind = "text", *, close: bool = False, apart: bool = False) -> None:
        """Write a block, apart from the one before it by a blank line, or `close` to it on the next line.

        `apart` gives it a section of its own, whatever the one before it is.
        """
        text = text.strip("\n").rstrip()
        text = text if self._parts else text.lstrip("\n\t ")
        if not text:
            return
        if self._parts:
            self._add("\n" if close else "\n\n")
        place = Section(self._length, tuple(title for _level, title in self._path), self.page, kind)
        last = self._sections[-1] if self._sections else None
        if apart or last is None or (last.headings, last.page, last.kind) != (place.headings, place.page, place.kind):
            self._sections.append(place)
        self._add(text)

    def _add(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)
        if self._length > MAX_CHARACTERS:
            raise DocumentRefused(
                "document_is_no_bomb",
                f"expected at most {MAX_CHARACTERS:,} characters of text, found more. Next: split the document.",
            )


def one_line(text: str) -> str:
    """Return a text with every run of white space as one space, trimmed."""
    return _SPACE.sub(" ", text).strip()


def markdown_table(rows: list[list[str]]) -> str:
    """Return rows of cells as a Markdown table whose first row is the header; empty rows are left out."""
    rows = [[one_line(cell).replace("|", "\\|") for cell in row] for row in rows]
    rows = [row for row in rows if any(row)]
    if not rows:
        return ""
    width = max(map(len, rows))
    lines = ["| " + " | ".join(row + [""] * (width - len(row))) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * width, *lines[1:]])
