"""What every source has in common: an item as it is listed, the protocol, and which files are no documents.

Reads and writes nothing.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from tasks.knowledge.extraction.model import DocumentRefused

# Plain binary kinds by their ending: what is kept beside documents and source code, and holds no text.
_IGNORED = {
    "pictures": ".png .jpg .jpeg .gif .bmp .ico .icns .webp .avif .heic .tif .tiff .svg .svgz .psd .eps .ai .xcf",
    "sound and film": ".mp3 .wav .flac .ogg .m4a .aac .mp4 .m4v .mov .avi .mkv .webm .wmv",
    "fonts": ".ttf .otf .woff .woff2 .eot",
    "archives": ".zip .gz .tgz .bz2 .xz .zst .7z .rar .tar .whl .jar .war .deb .rpm .dmg .iso .cab .lz4 .br",
    "programs": ".exe .dll .so .dylib .a .o .lib .obj .pyc .pyo .pyd .class .wasm .bin .apk .msi .node",
    "data": ".npy .npz .pkl .pickle .pt .pth .safetensors .gguf .onnx .h5 .parquet .arrow .feather .avro .orc .sqlite "
    ".db .mo .swp .swo",
}
IGNORED = frozenset(" ".join(_IGNORED.values()).split())
HIDDEN = "(hidden)"
FOLDER_LINK = "(link to a folder)"


@dataclass(frozen=True)
class Item:
    """A document as its source lists it; `stamp` changes whenever the bytes may have changed."""

    uri: str
    stamp: str
    bytes: int


class Source(Protocol):
    """A place that holds documents."""

    @property
    def ignored(self) -> Mapping[str, int]:
        """How many files the last listing passed over, by ending; complete when the listing is."""
        ...

    def list(self) -> Iterator[Item]:
        """Yield every document there is, in the byte order of their URIs; no body is read.

        Raises CorpusError when the place cannot be read, ServiceUnavailable when it does not answer.
        """
        ...

    def read(self, item: Item, limit: int) -> bytes:
        """Return the bytes of a listed document, at most `limit` of them.

        Raises DocumentRefused for what is wrong with this document, CorpusError for what is wrong with the place, and
        ServiceUnavailable when it does not answer.
        """
        ...


class Ignored:
    """Counts what a listing passes over."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def passes_over(self, path: str) -> bool:
        """Return whether a path below the source is no document, and count it then."""
        parts = path.split("/")
        ending = PurePosixPath(parts[-1]).suffix.lower()
        if any(is_hidden(part) for part in parts):
            self.counts[HIDDEN] += 1
        elif ending in IGNORED:
            self.counts[ending] += 1
        else:
            return False
        return True


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is kept from view by its name."""
    return name.startswith(".") or name == "__pycache__"


def refuse_huge(item: Item, limit: int) -> None:
    """Refuse a document that is listed as larger than allowed. Raises DocumentRefused."""
    if item.bytes > limit:
        raise DocumentRefused(
            "document_is_not_huge",
            f"expected at most {limit:,} bytes, found {item.bytes:,}; it was not read. "
            "Next: split it, or raise MILLRACE_MAX_DOCUMENT_MB.",
        )


def moved(item: Item, found: str) -> DocumentRefused:
    """Return the refusal of a document that is not what was listed."""
    return DocumentRefused(
        "document_holds_still",
        f"expected {item.uri} as it was listed ({item.stamp}), found {found}: it changed since, or while it was read. "
        "Next: nothing; the next sync reads it again.",
    )


def unreadable(uri: str, found: str) -> DocumentRefused:
    """Return the refusal of a document that cannot be read."""
    return DocumentRefused(
        "document_is_readable",
        f"expected to read {uri}, found {found}. Next: check the file and who may read it.",
    )
