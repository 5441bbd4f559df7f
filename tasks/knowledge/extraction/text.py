"""Text files: bytes to characters, Markdown, reStructuredText and plain text.

Reads and writes nothing but its arguments; never fails: bytes that are not text are counted, and the expectations
say no to them. The patterns take time in proportion to a text's length, whatever it holds.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from tasks.knowledge.extraction.model import Extract, Kind, Section, one_line

# The closing marks of `## Title ##` are no part of the title; those of `## C#` are.
MARKDOWN_HEADING = re.compile(
    r"^ {0,3}#{1,6}[ \t]++(?P<title>(?:[^ \t\n]++|[ \t]++(?!#*+[ \t]*+$))++)[ \t]*+#*+[ \t]*+$", re.MULTILINE
)
UNDERLINED_HEADING = re.compile(r"^(?P<title>\S.*)\n(?P<mark>[=*\-~^\"#+])(?P=mark){2,}[ \t]*$", re.MULTILINE)
_HEADING_WITHIN = 2000  # characters: a first heading further down is not the title of the whole
_FIRST_LINE_HEADING = re.compile(r"#{1,6}[ \t]+\S")
_FRONT_MATTER = re.compile(r"---[ \t]*\n(?P<fields>(?:[^\n]*\n){0,200}?)(?:---|\.\.\.)[ \t]*(?:\n|$)")
_FIELD = re.compile(r"^(?P<name>title|author|date|language|lang|description)[ \t]*:[ \t]*(?P<value>\S.*)$", re.M | re.I)
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


_ONLY_MARKS = re.compile(r"([=*\-~^\"#+])\1*")
_BLOCKS: dict[str, Kind] = {"fence": "code", "code_block": "code", "table_open": "table"}


class Heading(NamedTuple):
    """A heading in a text: where its line begins, how deep it is, what it says."""

    start: int
    level: int
    title: str


def decode(body: bytes, declared: str | None = None) -> tuple[str, int]:
    """Return the characters, and the number of bytes that are none.

    The encoding is what a byte order mark says, else `declared`, else UTF-8: nothing is guessed.
    """
    mark, encoding = next((found for found in _MARKS if body.startswith(found[0])), (b"", declared or "utf-8"))
    rest = body[len(mark) :]
    text = rest.decode(encoding, errors="replace")
    invalid = 0
    if "\ufffd" in text:
        # A replacement character that was in the file itself is valid, and is not counted.
        own = rest.decode(encoding, errors="ignore").count("\ufffd")
        invalid = text.count("\ufffd") - own
    return text, invalid


def normalised(text: str) -> str:
    """Return a text with line ends as \\n, trimmed."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip("\n\t ")


def title_of(uri: str, text: str) -> str:
    """Return the first heading near the start, else the name in the URI."""
    start = text[:_HEADING_WITHIN]
    found = [match for pattern in (MARKDOWN_HEADING, UNDERLINED_HEADING) if (match := pattern.search(start))]
    if found:
        return min(found, key=lambda match: match.start())["title"].strip()
    return name_of(uri)


def name_of(uri: str) -> str:
    """Return the name in a URI as a title: without a well-known ending of texts, and with spaces."""
    name = PurePosixPath(uri.rsplit(":", 1)[-1])
    known = {".txt", ".md", ".rst", ".markdown", ".pdf", ".docx", ".html", ".htm", ".csv", ".tsv", ".jsonl"}
    return (name.stem if name.suffix.lower() in known else name.name).replace("_", " ").replace("-", " ")


def text_format(ending: str, text: str) -> str:
    """Return `markdown`, `rst` or `text`, by the ending, else by the headings."""
    if ending in {".md", ".markdown", ".mdx"}:
        return "markdown"
    if ending == ".rst":
        return "rst"
    if _FIRST_LINE_HEADING.match(text):
        return "markdown"
    return "rst" if UNDERLINED_HEADING.search(text) else "text"


def extract_text(uri: str, body: bytes, ending: str) -> Extract:
    """Return what a text file says, with a section for every heading."""
    characters, invalid = decode(body)
    text = normalised(characters)
    form = text_format(ending, text)
    metadata: dict[str, str] = {}
    if form == "markdown":
        metadata = front_matter(text)
        sections = markdown_sections(text)
    else:
        sections = tuple(by_headings(text, list(underlined(text)) if form == "rst" else []))
    title = metadata.pop("title", None) or title_of(uri, text)
    return Extract(title, text, invalid, form, sections, "", metadata)


def front_matter(text: str) -> dict[str, str]:
    """Return the simple fields between `---` lines at the start of a Markdown text."""
    match = _FRONT_MATTER.match(text)
    if not match:
        return {}
    fields = {found["name"].lower(): found["value"].strip().strip("'\"") for found in _FIELD.finditer(match["fields"])}
    if "lang" in fields:
        fields.setdefault("language", fields.pop("lang"))
    return {name: one_line(value) for name, value in fields.items() if value}


def underlined(text: str) -> Iterator[Heading]:
    """Yield the headings of a reStructuredText; a mark is as deep as the number of other marks seen before it."""
    levels: dict[str, int] = {}
    for match in UNDERLINED_HEADING.finditer(text):
        if not _ONLY_MARKS.fullmatch(match["title"].strip()):  # a line of marks above a line of marks is no heading
            yield Heading(match.start(), levels.setdefault(match["mark"], len(levels) + 1), one_line(match["title"]))


def by_headings(text: str, headings: list[Heading]) -> Iterator[Section]:
    """Yield the sections that headings make of a text."""
    if text and (not headings or headings[0].start > 0):
        yield Section(0)
    path: list[Heading] = []
    for heading in headings:
        path = [above for above in path if above.level < heading.level] + [heading]
        yield Section(heading.start, tuple(above.title for above in path))


def markdown_sections(text: str) -> tuple[Section, ...]:
    """Return the sections of a Markdown text: a new one at a heading, at a table, at a block of code, and after them."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table")
    parser.core.ruler.enableOnly(["normalize", "block"])  # where blocks stand is all that is asked
    match = _FRONT_MATTER.match(text)
    begin = match.end() if match else 0
    starts = [begin]
    starts += [found.end() for found in re.compile("\n").finditer(text, begin)]
    path: list[Heading] = []
    sections = [Section(0)] if text else []
    tokens = parser.parse(text[begin:])
    for position, token in enumerate(tokens):
        if token.level or token.map is None or token.nesting < 0:
            continue
        start = starts[min(token.map[0], len(starts) - 1)]
        if token.type == "heading_open":
            heading = Heading(start, int(token.tag[1]), one_line(tokens[position + 1].content))
            path = [above for above in path if above.level < heading.level] + ([heading] if heading.title else [])
        place = Section(start, tuple(above.title for above in path), None, _BLOCKS.get(token.type, "text"))
        if (place.headings, place.kind) != (sections[-1].headings, sections[-1].kind):
            if sections[-1].start == start:
                sections.pop()
            sections.append(place)
    return tuple(sections)
