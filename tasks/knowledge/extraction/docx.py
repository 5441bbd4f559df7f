"""Word documents (DOCX) to Markdown with places: headings, paragraphs, lists, tables; hidden text apart.

Reads and writes nothing but its arguments; python-docx opens the package. Text within content controls, links and
accepted insertions is read; deleted text, headers, footers, comments and pictures are not. Fails with
`DocumentRefused`: `document_is_whole`, `document_is_open`, `document_is_no_bomb`.
"""

import io
import re
from collections.abc import Iterator
from typing import Any

from tasks.knowledge.extraction.archives import damaged, open_archive, refuse_entities
from tasks.knowledge.extraction.model import Extract, Writer, markdown_table, one_line
from tasks.knowledge.extraction.text import name_of

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_HEADING = re.compile(r"heading ([1-9])", re.IGNORECASE)
_BREAKS = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}
_CONTAINERS = {f"{_W}sdt", f"{_W}sdtContent", f"{_W}customXml", f"{_W}ins", f"{_W}moveTo", f"{_W}smartTag"}
_SMALLEST = 4  # half points: nobody reads what is smaller


def extract_docx(uri: str, body: bytes) -> Extract:
    """Return what a Word document says. Raises DocumentRefused."""
    import docx
    from docx.opc.exceptions import PackageNotFoundError
    from lxml.etree import LxmlError  # type: ignore[import-untyped]

    with open_archive(body) as archive:
        refuse_entities(archive)
    try:
        document = docx.Document(io.BytesIO(body))
        reading = _Reading({style.style_id: (style.name or "") for style in document.styles})
        reading.blocks(document.element.body)
        properties = document.core_properties
    except (PackageNotFoundError, LxmlError, KeyError, ValueError, AttributeError) as error:
        raise damaged(error) from error
    found = {
        "author": properties.author,
        "created": properties.created.isoformat() if properties.created else "",
        "language": properties.language,
        "keywords": properties.keywords,
        "subject": properties.subject,
    }
    writer = reading.writer
    title = one_line(properties.title or "") or reading.title or name_of(uri)
    metadata = {name: one_line(value) for name, value in found.items() if value}
    return Extract(title, writer.text, 0, "docx", writer.sections, "\n".join(reading.hidden), metadata)


class _Reading:
    """Reads the body of a document, element by element."""

    def __init__(self, styles: dict[str, str]) -> None:
        self.writer = Writer()
        self.hidden: list[str] = []
        self.title = ""
        self._styles = styles
        self._in_list = False

    def blocks(self, parent: Any) -> None:
        """Write the paragraphs and tables below an element, those within content controls too."""
        for element in parent:
            if element.tag == f"{_W}p":
                self._paragraph(element)
            elif element.tag == f"{_W}tbl":
                rows = [[self._cell(cell) for cell in _below(row, f"{_W}tc")] for row in _below(element, f"{_W}tr")]
                self.writer.block(markdown_table(rows), "table")
                self._in_list = False
            elif element.tag in _CONTAINERS:
                self.blocks(element)

    def _paragraph(self, element: Any) -> None:
        text = self._text(element)
        style = self._styles.get(_value(element, f"{_W}pPr/{_W}pStyle") or "", "")
        heading = _HEADING.match(style)
        if heading or style.lower() == "title":
            self.writer.heading(int(heading[1]) if heading else 1, text)
            self.title = self.title or one_line(text)
        elif style.lower().startswith("list") or element.find(f"{_W}pPr/{_W}numPr") is not None:
            level = int(_value(element, f"{_W}pPr/{_W}numPr/{_W}ilvl") or 0)
            self.writer.block("  " * min(level, 8) + f"- {one_line(text)}" if text.strip() else "", close=self._in_list)
            self._in_list = True
            return
        else:
            self.writer.block(text.strip())
        self._in_list = False

    def _cell(self, element: Any) -> str:
        return " ".join(self._text(paragraph) for paragraph in element.iter(f"{_W}p"))

    def _text(self, paragraph: Any) -> str:
        """Return the visible text of a paragraph."""
        parts: list[str] = []
        for run in paragraph.iter(f"{_W}r"):
            text = "".join((child.text or "") if child.tag == f"{_W}t" else _BREAKS.get(child.tag, "") for child in run)
            if text.strip() and _is_hidden(run):
                self.hidden.append(one_line(text))
            else:
                parts.append(text)
        return "".join(parts)


def _below(parent: Any, tag: str) -> Iterator[Any]:
    """Yield the elements of a tag right below another, those within content controls too."""
    for element in parent:
        if element.tag == tag:
            yield element
        elif element.tag in _CONTAINERS:
            yield from _below(element, tag)


def _is_hidden(run: Any) -> bool:
    """Return whether a run is marked as hidden, white on no ground of its own, or too small to see."""
    properties = run.find(f"{_W}rPr")
    if properties is None:
        return False
    vanish = properties.find(f"{_W}vanish")
    if vanish is not None and vanish.get(f"{_W}val", "true") not in {"0", "false", "off"}:
        return True
    size = _value(properties, f"{_W}sz") or ""
    if size.isdigit() and int(size) <= _SMALLEST:
        return True
    ground = properties.find(f"{_W}shd")
    fill = (ground.get(f"{_W}fill") or "auto").lower() if ground is not None else "auto"
    colour = (_value(properties, f"{_W}color") or "auto").lower()
    marked = properties.find(f"{_W}highlight") is not None
    return not marked and colour == ("ffffff" if fill == "auto" else fill) and colour != "auto"


def _value(element: Any, path: str) -> str | None:
    found = element.find(path)
    value: str | None = found.get(f"{_W}val") if found is not None else None
    return value
