"""What format is it? By content first, then by the ending; and the one function that takes a document apart.

Reads and writes nothing but its arguments. Fails with `DocumentRefused`: `format_is_known` for binary content that
nobody here reads, and what the format's own module says.
"""

import re
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePosixPath

from tasks.knowledge.extraction.archives import open_archive
from tasks.knowledge.extraction.code import extract_code, language_of
from tasks.knowledge.extraction.model import LONGEST_BESIDE, DocumentRefused, Extract
from tasks.knowledge.extraction.rows import extract_rows
from tasks.knowledge.extraction.text import decode, extract_text

EXTRACTOR = "extraction/3"
_PACKAGES = ("pypdfium2", "pdfplumber", "pdfminer.six", "python-docx", "lxml", "selectolax", "markdown-it-py")
_START = 65_536  # bytes by which binary content is told
_BINARY_SHARE = 0.1
# A comment that was read is not read again: to try each end of each comment takes time without end.
_HTML = re.compile(
    rb"\s*+(?:<\?xml[^>]*+>\s*+)?+(?:<!--(?>.*?-->)\s*+)*+<(?:!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)
_HTML_ENDINGS = {".html", ".htm", ".xhtml"}
_ROW_ENDINGS = {".csv", ".tsv", ".json", ".jsonl", ".ndjson"}
_CONTROL = bytes({*range(9), 11, *range(14, 32)} - {0x1B})
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_LOCKED = "EncryptedPackage".encode("utf-16-le")
_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_NOT_TEXT = {b"{\\rtf": "RTF", b"%!PS": "PostScript"}


def extractor() -> str:
    """Return what decides an extract: our own number, and the versions of the libraries. Equal texts, equal extracts."""
    return " ".join([EXTRACTOR, *(f"{name}=={_version(name)}" for name in _PACKAGES)])


def extract(uri: str, body: bytes) -> Extract:
    """Return what a document says, in this process and without limits (see Extractor). Raises DocumentRefused."""
    return _encodable(_extract(uri, body, format_of(uri, body)))


def format_of(uri: str, body: bytes) -> str:
    """Return `pdf`, `docx`, `html`, or `text` for everything that is characters. Raises DocumentRefused."""
    start = body[:_START]
    if _is_pdf(uri, start):
        return "pdf"
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return _archive(body)
    if start.startswith(_OLE) and _LOCKED in body:
        raise DocumentRefused(
            "document_is_open", "expected a document without a password, found an encrypted one. Next: save it without."
        )
    name = next((name for mark, name in _NOT_TEXT.items() if start.startswith(mark)), None)
    if name or is_binary(start):
        raise _unknown(name or _kind(uri, start))
    bare = start.removeprefix(b"\xef\xbb\xbf")
    if _HTML.match(bare[:4096]) or (ending_of(uri) in _HTML_ENDINGS and b"<" in bare):
        return "html"
    return "text"


def is_binary(start: bytes) -> bool:
    """Return whether bytes are no characters: more than a few of them are controls, or none of UTF-8.

    A text with a NUL or a damaged letter in it is a text, for the expectations to judge.
    """
    if not start or start.startswith(_MARKS):
        return False
    controls = len(start) - len(start.translate(None, _CONTROL))
    _text, invalid = decode(start)
    mixed = controls > 0 and controls + invalid > 2 * _BINARY_SHARE * len(start)
    return mixed or controls > _BINARY_SHARE * len(start)


def _is_pdf(uri: str, start: bytes) -> bool:
    """Return whether a PDF begins here: at once, or within 1 KB of what is no text that speaks of PDF files."""
    before, mark, _rest = start[:1024].partition(b"%PDF-")
    if not mark or not before.strip():
        return bool(mark)
    return not start.startswith((b"<", b"#")) and (ending_of(uri) == ".pdf" or is_binary(before) or is_binary(start))


def ending_of(uri: str) -> str:
    """Return the ending of the name in a URI, in small letters."""
    return PurePosixPath(uri.rsplit(":", 1)[-1]).suffix.lower()


def is_plain(uri: str, body: bytes) -> bool:
    """Return whether nothing but patterns of linear time would look at a text: no parser of somebody else's code.

    Raises DocumentRefused as format_of does.
    """
    if format_of(uri, body) != "text" or ending_of(uri) in {".md", ".markdown", ".mdx", *_ROW_ENDINGS}:
        return False
    # Behind a byte order mark may stand what the parsers of Markdown and JSON are for.
    return not body.lstrip().startswith((b"#", b"{", b"[", b"\xef\xbb\xbf", *_MARKS))


def _extract(uri: str, body: bytes, form: str) -> Extract:
    if form == "pdf":
        from tasks.knowledge.extraction.pdf import extract_pdf

        return extract_pdf(uri, body)
    if form == "docx":
        from tasks.knowledge.extraction.docx import extract_docx

        return extract_docx(uri, body)
    if form == "html":
        from tasks.knowledge.extraction.html import extract_html

        return extract_html(uri, body)
    ending = ending_of(uri)
    if ending in _ROW_ENDINGS or ending in {"", ".txt", ".log", ".dat"}:
        found = extract_rows(uri, body, ending)
        if found is not None:
            return found
    language = language_of(uri, body[:200].decode("utf-8", errors="replace"))
    return extract_code(uri, body, language) if language else extract_text(uri, body, ending)


def _archive(body: bytes) -> str:
    """Return what a ZIP archive is. Raises DocumentRefused."""
    with open_archive(body) as archive:
        names = set(archive.namelist())
    if "word/document.xml" in names:
        return "docx"
    known = {
        "xl/workbook.xml": "XLSX",
        "ppt/presentation.xml": "PPTX",
        "META-INF/container.xml": "EPUB",
        "content.xml": "ODF",
    }
    raise _unknown(next((kind for name, kind in known.items() if name in names), "a ZIP archive"))


def _kind(uri: str, start: bytes) -> str:
    """Return what binary content is called, for the reason."""
    import puremagic

    try:
        found = puremagic.from_string(start, mime=True, filename=PurePosixPath(uri).name)
        return "binary content" if not found or found.startswith("text/") else found
    except (puremagic.PureError, ValueError):
        return "binary content"


def _unknown(found: str) -> DocumentRefused:
    return DocumentRefused(
        "format_is_known",
        f"expected text, Markdown, HTML, PDF, DOCX, CSV, JSON lines or source code, found {found}. "
        "Next: convert it, or keep it out of the corpus.",
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _encodable(found: Extract) -> Extract:
    """Return an extract that can be written as UTF-8, and has nothing long beside its text.

    Halves of characters (JSON can name them) are counted and replaced.
    """
    text, broken = _SURROGATE.subn("\ufffd", found.text)  # one for one: the sections stay where they are
    return replace(
        found,
        title=_plain(found.title),
        text=text,
        invalid_bytes=found.invalid_bytes + broken,
        sections=tuple(replace(section, headings=tuple(map(_beside, section.headings))) for section in found.sections),
        hidden=_plain(found.hidden),
        metadata={_beside(name): _beside(value) for name, value in found.metadata.items()},
    )


_SURROGATE = re.compile("[\ud800-\udfff]")


def _beside(text: str) -> str:
    return _plain(text[:LONGEST_BESIDE])


def _plain(text: str) -> str:
    return _SURROGATE.sub("\ufffd", text).replace("\0", "\ufffd")
