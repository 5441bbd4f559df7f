"""PDF to text with pages, headings of the outline, ruled tables as Markdown, and the document's own metadata.

Reads and writes nothing but its arguments; pypdfium2 reads, and pdfplumber only looks for tables on pages with ruled
lines. Scanned pages hold no text: nothing is recognised here. Fails with `DocumentRefused`: `document_is_whole`,
`document_is_open`. To be run in a child process (`Extractor`): a hostile PDF can kill or occupy the parser.
"""

import io
import re
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.knowledge.extraction.model import DocumentRefused, Extract, Writer, markdown_table, one_line
from tasks.knowledge.extraction.text import name_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_END_WITHIN = 4096  # bytes at the end in which %%EOF stands
_LINEARIZED = re.compile(rb"/Linearized\b[^>]{0,200}?/L\s+(\d+)")
_RULES = 6  # drawn paths below which no page has a ruled table
_MOST_RULES = 5000  # and above which it is a drawing
_NUMBER = re.compile(r"^(?:(?:\d+|[IVXLC]+|[A-Z])[.)])*(?:\d+)?\s+")
_WORTHLESS = re.compile(r"untitled.*|microsoft \w+ - .*|document\d*|.*\.(docx?|tex|dvi|indd|pages|odt)", re.IGNORECASE)
_DATE = re.compile(r"^D:(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d).*$")
_HYPHEN = re.compile("(?:\ufffe|\u0002)\n?")  # how pdfium shows a word's hyphen at the end of a line


class Mark(NamedTuple):
    """An entry of the outline: its page (from 0), its depth (from 1), its title."""

    page: int
    level: int
    title: str


def extract_pdf(uri: str, body: bytes) -> Extract:
    """Return what a PDF says. Raises DocumentRefused."""
    import pypdfium2  # type: ignore[import-untyped]

    refuse_truncated(body)
    try:
        document = pypdfium2.PdfDocument(body)
    except pypdfium2.PdfiumError as error:
        raise _refusal(error) from error
    try:
        marks = _outline(document)
        writer = Writer()
        by_page = {page: list(group) for page, group in groupby(marks, key=lambda mark: mark.page)}
        for number in range(len(document)):
            writer.page = number + 1
            below = by_page.get(number, [])
            for text, kind in _page(document, number, body):
                _write(writer, text, kind, below)
            for mark in below:  # their words are not on the page: what follows is at least not below the heading before
                writer.leave(mark.level)
        metadata = _metadata(document)
    except pypdfium2.PdfiumError as error:
        raise _refusal(error) from error
    finally:
        document.close()
    title = metadata.pop("title", "")
    if not title or _WORTHLESS.fullmatch(title):
        title = marks[0].title if marks else name_of(uri)
    return Extract(title, writer.text, 0, "pdf", writer.sections, "", metadata)


def refuse_truncated(body: bytes) -> None:
    """Refuse a PDF whose end is missing: the parser would give the pages it finds, and say nothing. Raises DocumentRefused."""
    match = _LINEARIZED.search(body[:2048])
    declared = int(match[1]) if match else 0
    if b"%%EOF" in body[-_END_WITHIN:] and len(body) >= declared:
        return
    found = f"{len(body):,} of {declared:,} bytes" if declared > len(body) else "no %%EOF at its end"
    raise DocumentRefused("document_is_whole", f"expected a whole PDF, found {found}. Next: replace the file.")


def _refusal(error: Exception) -> DocumentRefused:
    said = str(error).rstrip(".")
    if "password" in str(error).lower() or "security" in str(error).lower():
        return DocumentRefused(
            "document_is_open", f"expected a PDF without a password, found {said}. Next: save it without."
        )
    return DocumentRefused("document_is_whole", f"expected a whole PDF, found {said}. Next: replace the file.")


def _outline(document: Any) -> list[Mark]:
    """Return the entries of the outline that lead to a page, in the order of pages."""
    marks = []
    for entry in document.get_toc():
        target = entry.get_dest()
        page = target.get_index() if target else None
        title = one_line(entry.get_title() or "")
        if page is not None and title:
            marks.append(Mark(page, entry.level + 1, title))
    return sorted(marks, key=lambda mark: mark.page)


def _metadata(document: Any) -> dict[str, str]:
    found = {name.lower(): one_line(value) for name, value in document.get_metadata_dict(skip_empty=True).items()}
    names = {
        "title": "title",
        "author": "author",
        "subject": "subject",
        "keywords": "keywords",
        "creationdate": "created",
    }
    kept = {name: found[key] for key, name in names.items() if found.get(key)}
    if "created" in kept:
        kept["created"] = _DATE.sub(r"\1-\2-\3T\4:\5:\6", kept["created"])
    return kept


def _page(document: Any, number: int, body: bytes) -> "Iterator[tuple[str, str]]":
    """Yield the stretches of a page, as text or table, from its top to its bottom."""
    import pypdfium2.raw as raw  # type: ignore[import-untyped]

    page = document[number]
    try:
        text = page.get_textpage()
        rules = sum(1 for _ in page.get_objects(filter=[raw.FPDF_PAGEOBJ_PATH], max_depth=2))
        tables = _tables(body, number) if _RULES <= rules <= _MOST_RULES else []
        if not tables:
            yield _clean(text.get_text_range()), "text"
            return
        width, height = page.get_size()
        top = height
        for (left, above, right, below), rows in tables:
            yield _clean(text.get_text_bounded(0, height - above, width, top)), "text"
            for start, end in ((0, left), (right, width)):
                if end > start:
                    yield _clean(text.get_text_bounded(start, height - below, end, height - above)), "text"
            yield markdown_table(rows), "table"
            top = height - below
        yield _clean(text.get_text_bounded(0, 0, width, top)), "text"
    finally:
        page.close()


def _tables(body: bytes, number: int) -> list[tuple[tuple[float, float, float, float], list[list[str]]]]:
    """Return the ruled tables of a page, from the top: where they stand, and their rows; of two that overlap, the first."""
    import pdfplumber
    from pdfminer.pdfexceptions import PDFException
    from pdfplumber.utils.exceptions import PdfminerException

    try:
        with pdfplumber.open(io.BytesIO(body), pages=[number + 1]) as document:
            page = document.pages[0]
            if page.bbox[:2] != (0, 0) or page.rotation:
                return []  # its coordinates are not those of pdfium
            found = sorted(page.find_tables(), key=lambda table: table.bbox[1])
            tables = [(table.bbox, [[cell or "" for cell in row] for row in table.extract()]) for table in found]
    except (PDFException, PdfminerException, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return []  # pdfium could read the page: its text is there, without the table's rows and columns
    kept: list[tuple[tuple[float, float, float, float], list[list[str]]]] = []
    for box, rows in tables:
        filled = sum(bool(cell.strip()) for row in rows for cell in row)
        if len(rows) > 1 and len(rows[0]) > 1 and filled > 2 and (not kept or box[1] >= kept[-1][0][3]):
            kept.append((box, rows))
    return kept


def _clean(text: str) -> str:
    return _HYPHEN.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _write(writer: Writer, text: str, kind: str, marks: list[Mark]) -> None:
    """Write a stretch of a page, cut before the lines in which headings of the outline stand."""
    if kind == "table":
        return writer.block(text, "table")
    done = 0
    for mark in list(marks):
        place = _find(text, mark.title, done)
        if place is None:
            continue
        marks.remove(mark)
        start = text.rfind("\n", 0, place[0]) + 1
        writer.block(text[done : max(done, start)])
        writer.enter(mark.level, one_line(text[place[0] : place[1]]))
        done = max(done, start)
    writer.block(text[done:])
    return None


def _find(text: str, title: str, start: int) -> tuple[int, int] | None:
    """Return where a title stands in a text, whatever white space and numbering are between."""
    for wanted in (title, _NUMBER.sub("", title)):
        words = wanted.split()
        if words:
            match = re.compile(r"\s+".join(map(re.escape, words)), re.IGNORECASE).search(text, start)
            if match:
                return match.span()
    return None
