"""What the parent and the child of an extraction say to each other: frames of a length and that many bytes.

No pickle: the child has read hostile documents, and nothing that it says is run. An answer is JSON. Reads and writes
the given streams only. Fails with `ValueError` when an answer is no answer.
"""

import json
import struct
from typing import Any, BinaryIO

from tasks.knowledge.extraction.model import DocumentRefused, Extract, Section

LENGTH = struct.Struct(">Q")
READY = b"ready"
OUT_OF_MEMORY = 77  # the child's exit code
MAX_ANSWER = 1 << 30  # bytes


def frames(content: bytes) -> tuple[bytes, bytes]:
    """Return what is sent for content: its length, and itself (which may be large, and is not copied)."""
    return LENGTH.pack(len(content)), content


def read_frame(stream: BinaryIO) -> bytes | None:
    """Return the next frame, or None where the stream ends."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    content = stream.read(length)
    return content if len(content) == length else None


def packed(found: Extract | DocumentRefused) -> bytes:
    """Return an extract or a refusal as JSON."""
    if isinstance(found, DocumentRefused):
        return json.dumps({"rule": found.rule, "reason": found.reason}).encode()
    sections = [[part.start, part.headings, part.page, part.kind] for part in found.sections]
    values = {**vars(found), "sections": sections, "metadata": dict(found.metadata)}
    return json.dumps(values, ensure_ascii=False).encode()


def unpacked(content: bytes) -> Extract:
    """Return the extract in an answer. Raises DocumentRefused where it is a refusal, ValueError where it is neither."""
    values: Any = json.loads(content)
    try:
        if "rule" in values:
            raise DocumentRefused(str(values["rule"]), str(values["reason"]))
        sections = [Section(int(start), tuple(path), page, kind) for start, path, page, kind in values.pop("sections")]
        return Extract(**values, sections=tuple(sections))
    except (TypeError, KeyError) as error:
        raise ValueError(f"expected an extract, found {error}") from error
