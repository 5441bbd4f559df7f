"""Bytes of a text document to its text and title.

Reads and writes nothing but its arguments; never fails: what is wrong with a document is for the
expectations to say (`invalid_bytes` counts the bytes that are not UTF-8). Change EXTRACTOR when the
outcome changes: it is part of an index version's fingerprint.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

EXTRACTOR = "text/1"

MARKDOWN_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(?P<title>.+?)[ \t]*#*[ \t]*$", re.MULTILINE)
UNDERLINED_HEADING = re.compile(r"^(?P<title>\S.*)\n(?P<mark>[=*\-~^\"#+])(?P=mark){2,}[ \t]*$", re.MULTILINE)
_HEADING_WITHIN = 2000  # characters: a first heading further down is not the title of the whole


@dataclass(frozen=True)
class Extract:
    """What a document says."""

    title: str
    text: str
    invalid_bytes: int


def extract(uri: str, body: bytes) -> Extract:
    """Return text (line ends as \\n, no byte order mark, trimmed) and title (first heading, else the name in the URI)."""
    text = body.decode("utf-8-sig", errors="replace")
    # A replacement character that was in the file itself is valid UTF-8, and is not counted.
    invalid = text.count("\ufffd") - body.count("\ufffd".encode())
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip("\n\t ")
    return Extract(title_of(uri, text), text, invalid)


def title_of(uri: str, text: str) -> str:
    """Return the first heading near the start, else the name in the URI."""
    start = text[:_HEADING_WITHIN]
    found = [match for pattern in (MARKDOWN_HEADING, UNDERLINED_HEADING) if (match := pattern.search(start))]
    if found:
        return min(found, key=lambda match: match.start())["title"].strip()
    name = PurePosixPath(uri.rsplit(":", 1)[-1])
    return (name.stem if name.suffix in {".txt", ".md", ".rst"} else name.name).replace("_", " ").replace("-", " ")
