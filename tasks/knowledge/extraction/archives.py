"""Is a ZIP archive safe to open? What it would grow to, and whether it is locked.

Reads and writes nothing but its arguments; nothing is decompressed before its declared size was looked at, and Python's
zipfile never gives more than that. Fails with `DocumentRefused`: `document_is_whole`, `document_is_open`, `document_is_no_bomb`.
"""

import io
import zipfile
import zlib

from tasks.knowledge.extraction.model import DocumentRefused

MAX_BYTES = 500_000_000
MAX_RATIO = 100
_SMALL = 5_000_000  # bytes that hurt nobody, however well they were compressed
_ENCRYPTED = 0x1
_ENTITIES = tuple(
    word.encode(encoding) for word in ("<!ENTITY", "<!DOCTYPE") for encoding in ("utf-8", "utf-16-le", "utf-16-be")
)


def open_archive(body: bytes) -> zipfile.ZipFile:
    """Return the archive, after looking at what it declares. Raises DocumentRefused."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(body))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise damaged(error) from error
    members = archive.infolist()
    size = sum(member.file_size for member in members)
    if size > MAX_BYTES or (size > _SMALL and size > MAX_RATIO * len(body)):
        raise DocumentRefused(
            "document_is_no_bomb",
            f"expected an archive that grows to at most {MAX_RATIO} times its size and {MAX_BYTES:,} bytes, "
            f"found {len(body):,} bytes that declare {size:,}. Next: save the document anew, or remove it.",
        )
    if any(member.flag_bits & _ENCRYPTED for member in members):
        raise DocumentRefused(
            "document_is_open",
            "expected a document without a password, found an encrypted archive. Next: save it without.",
        )
    return archive


def refuse_entities(archive: zipfile.ZipFile) -> None:
    """Refuse XML that declares entities (Office never does): they can grow without bound. Raises DocumentRefused."""
    for member in archive.infolist():
        if not member.filename.lower().endswith((".xml", ".rels")):
            continue
        try:
            content = archive.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, OSError) as error:
            raise damaged(error) from error
        if any(mark in content for mark in _ENTITIES):
            raise DocumentRefused(
                "document_is_no_bomb",
                f"expected XML without declarations of entities, found one in {member.filename}. Next: save the document anew.",
            )


def damaged(error: Exception) -> DocumentRefused:
    """Return the refusal of an archive that cannot be read."""
    return DocumentRefused(
        "document_is_whole", f"expected a whole archive, found {error or type(error).__name__}. Next: replace the file."
    )
