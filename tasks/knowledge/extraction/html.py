"""HTML to Markdown with places: headings, paragraphs, lists, tables, code; what a reader would not see apart.

Reads and writes nothing but its arguments; selectolax (lexbor) parses. What stands around the content (navigation,
footers, asides, forms' controls) is left out; `hidden` keeps comments and what styles hide. Fails with
`DocumentRefused`: `document_is_flat` when tags are nested too deep, which takes any parser of HTML ages.
"""

import re
from typing import TYPE_CHECKING

from tasks.knowledge.extraction.model import DocumentRefused, Extract, Writer, markdown_table, one_line
from tasks.knowledge.extraction.text import decode, name_of
from tasks.knowledge.extraction.visible import is_invisible

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser, LexborNode

MAX_DEPTH = 1000
_CLEARLY_TOO_DEEP = 5 * MAX_DEPTH  # told from the bytes: the parser itself would take minutes
_TAG = re.compile(rb"<(/?)([a-zA-Z][a-zA-Z0-9-]*)")
# Tags that need no end do not nest by being repeated.
_NO_END = {b"p", b"li", b"td", b"tr", b"th", b"dt", b"dd", b"option", b"thead", b"tbody", b"tfoot", b"colgroup"}
_NO_END |= {b"br", b"hr", b"img", b"input", b"meta", b"link", b"col", b"area", b"base", b"source", b"wbr", b"embed"}
_NO_END |= {b"param", b"track", b"optgroup", b"path", b"rect", b"circle", b"use"}
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([A-Za-z0-9_-]{3,20})", re.IGNORECASE)
_ONE_BYTE = re.compile(r"iso-8859-\d{1,2}|windows-125\d|koi8-[ru]|shift_jis|euc-jp|euc-kr|gb2312|gbk|gb18030|big5")

_DROPPED = {"script", "style", "noscript", "template", "svg", "math", "iframe", "object", "canvas", "audio", "video"}
_DROPPED |= {"nav", "footer", "aside", "button", "select", "input", "textarea", "head", "dialog"}
_BLOCKS = {
    "p",
    "div",
    "section",
    "article",
    "main",
    "header",
    "ul",
    "ol",
    "dl",
    "li",
    "dt",
    "dd",
    "blockquote",
    "figure",
}
_BLOCKS |= {"figcaption", "address", "details", "summary", "form", "fieldset", "hr", "body", "center", "table", "pre"}
_BLOCKS |= {"tr", "td", "th", "caption", "thead", "tbody", "tfoot", "h1", "h2", "h3", "h4", "h5", "h6"}
_CELLS = {"td", "th"}
_CAPTURED = {"h1", "h2", "h3", "h4", "h5", "h6", "pre"} | _CELLS
_NO_DATA = "table table, h1, h2, h3, h4, ul, ol, pre"  # a table with such in it lays the page out
_HEADING = re.compile(r"h[1-6]")


def extract_html(uri: str, body: bytes) -> Extract:
    """Return what a page says. Raises DocumentRefused."""
    from selectolax.lexbor import LexborHTMLParser

    refuse_deep(body)
    characters, invalid = decode(body, declared_charset(body))
    tree = LexborHTMLParser(characters.replace("\0", "\ufffd"))
    walk = _Walk()
    if tree.body is not None:
        walk.page(tree.body)
    head = tree.css_first("title")
    title = one_line(head.text()) if head is not None else ""
    first = tree.css_first("h1")
    if not title and first is not None:
        title = one_line(first.text())
    writer = walk.writer
    hidden = "\n".join(walk.hidden)
    return Extract(title or name_of(uri), writer.text, invalid, "html", writer.sections, hidden, _metadata(tree))


def refuse_deep(body: bytes) -> None:
    """Refuse tags that are nested clearly too deep, before a parser sees them. Raises DocumentRefused."""
    depth = 0
    for match in _TAG.finditer(body):
        if match[2].lower() in _NO_END:
            continue
        depth = max(0, depth - 1) if match[1] else depth + 1
        if depth > _CLEARLY_TOO_DEEP:
            raise _too_deep()


def declared_charset(body: bytes) -> str | None:
    """Return the encoding that the page names near its start, where it is another than UTF-8 and known."""
    match = _CHARSET.search(body[:2048])
    name = match[1].decode().lower() if match else ""
    return name if _ONE_BYTE.fullmatch(name) else None


def _too_deep() -> DocumentRefused:
    return DocumentRefused(
        "document_is_flat",
        f"expected tags nested at most {MAX_DEPTH:,} deep, found more. Next: simplify the page.",
    )


def _metadata(tree: "LexborHTMLParser") -> dict[str, str]:
    found: dict[str, str] = {}
    page = tree.css_first("html")
    language = page.attributes.get("lang") if page is not None else None
    if language:
        found["language"] = language
    for node in tree.css("meta[name]"):
        name, content = (node.attributes.get("name") or "").lower(), node.attributes.get("content")
        if name in {"author", "description", "keywords", "date"} and content:
            found[name] = one_line(content)
    return found


class _Walk:
    """Walks a page from its first node to its last, without calling itself: pages may be nested as deep as they like."""

    def __init__(self) -> None:
        self.writer = Writer()
        self.hidden: list[str] = []
        self._run: list[str] = []  # inline content that waits for the end of its block
        self._capture_depth = 0  # of the heading, block of code or cell that the run belongs to; 0: none
        self._lists = 0
        self._item = ""  # what the next block begins with, at the start of a list's item
        self._after_item = False
        self._rows: list[list[str]] | None = None  # of the table of data we are in

    def page(self, body: "LexborNode") -> None:
        """Write what the page says. Raises DocumentRefused."""
        node, depth = body.first_child, 1
        while node is not None:
            if depth > MAX_DEPTH:
                raise _too_deep()
            entered = self._enter(node, depth)
            if entered and node.first_child is not None:
                node, depth = node.first_child, depth + 1
                continue
            if entered:
                self._leave(node, depth)
            while node.next is None:
                depth -= 1
                if depth == 0 or node.parent is None:
                    return self._flush()
                node = node.parent
                self._leave(node, depth)
            node = node.next
        return None

    def _enter(self, node: "LexborNode", depth: int) -> bool:
        """Begin a node; return whether what it holds is to be looked at."""
        tag = node.tag or ""
        if node.is_text_node:
            self._run.append(node.text_content or "")
            return False
        if self._left_out(node):
            return False
        if tag == "br":
            self._run.append("\n")
        elif tag == "img":
            self._run.append(node.attributes.get("alt") or "")
        elif self._capture_depth:
            self._run.append(" " if tag in _BLOCKS else "`" if self._is_code(node) else "")
        elif tag in _CAPTURED and (tag not in _CELLS or self._rows is not None):
            self._flush()
            self._capture_depth = depth
        elif tag in _BLOCKS:
            self._begin(node, tag)
        elif self._is_code(node):
            self._run.append("`")
        return True

    def _begin(self, node: "LexborNode", tag: str) -> None:
        """Begin a block."""
        self._flush()
        self._lists += tag in {"ul", "ol"}
        if tag == "li":
            self._item = "  " * max(0, self._lists - 1) + "- "
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag == "table" and node.css_first(_NO_DATA) is None:
            self._rows = []

    def _leave(self, node: "LexborNode", depth: int) -> None:
        """End a node that was begun."""
        tag = node.tag or ""
        if self._capture_depth:
            if depth == self._capture_depth:
                self._capture_depth = 0
                self._captured(tag)
            else:
                self._run.append(" " if tag in _BLOCKS else "`" if self._is_code(node) else "")
        elif tag in _BLOCKS:
            self._flush()
            self._item = "" if tag == "li" else self._item
            self._lists -= tag in {"ul", "ol"}
            if tag == "table" and self._rows is not None:
                self.writer.block(markdown_table(self._rows), "table")
                self._rows = None
        elif self._is_code(node):
            self._run.append("`")

    def _captured(self, tag: str) -> None:
        """Write what was gathered for a heading, a block of code or a cell."""
        text = "".join(self._run)
        self._run.clear()
        if _HEADING.fullmatch(tag):
            self.writer.heading(int(tag[1]), text)
        elif tag in _CELLS and self._rows is not None:
            if not self._rows:
                self._rows.append([])
            self._rows[-1].append(text)
        elif text.strip():
            fence = "```" if "```" not in text else "~~~~"
            code = text.removeprefix("\n").rstrip()
            self.writer.block(f"{fence}\n{code}\n{fence}", "code")
        self._after_item = False

    def _flush(self) -> None:
        """Write the inline content gathered so far as a block."""
        text = one_line("".join(self._run))
        self._run.clear()
        if text:
            self.writer.block(self._item + text, close=self._after_item and bool(self._item))
            self._after_item, self._item = bool(self._item), ""

    def _is_code(self, node: "LexborNode") -> bool:
        """Return whether a node is code within a line; in a block of code nothing is marked."""
        if node.tag not in {"code", "kbd", "samp"}:
            return False
        above = node.parent
        return above is None or above.tag != "pre"

    def _left_out(self, node: "LexborNode") -> bool:
        """Return whether a node is not content; what is invisible goes into `hidden`."""
        found = ""
        if node.is_comment_node:
            found = node.comment_content or ""
        elif node.tag in _DROPPED:
            return True
        elif node.is_element_node and node.attributes and is_invisible(node.attributes):
            found = node.text(separator=" ")
        else:
            return not node.is_element_node
        if found.strip():
            self.hidden.append(one_line(found))
        return True
