"""Where documents come from: `pydoc:topics`, a folder, or `s3://bucket/prefix`.

A source lists what there is (URI, digest, bytes) and reads one document's bytes. Text files are those
ending in .txt, .md or .rst; everything else in a folder is not a document. To add a source: a class with
`list` and `read`, and a line in `open_source`. Fails with `CorpusError` when the place cannot be read.

The digest of an S3 object is its ETag and length, so that listing reads no object; a folder's files are
read, because a file's time stamp proves nothing.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tasks.errors import BadInput, CorpusError
from tasks.settings import repository_path
from tasks.storage import Storage

SUFFIXES = (".txt", ".md", ".rst")
_FORMS = "pydoc:topics, a folder, or s3://bucket/prefix"


@dataclass(frozen=True)
class Item:
    """A document as its source lists it; `sha256` changes whenever the bytes do."""

    uri: str
    sha256: str
    bytes: int


class Source(Protocol):
    """A place that holds documents."""

    def list(self) -> Iterator[Item]:
        """Yield every document there is, in the order of their URIs. Raises CorpusError."""
        ...

    def read(self, uri: str) -> bytes:
        """Return the bytes of a listed document. Raises CorpusError when it is gone."""
        ...


class PydocTopics:
    """The language reference that every Python carries: one document a topic."""

    prefix = "pydoc:topics/"

    def list(self) -> Iterator[Item]:
        """Yield every topic."""
        from pydoc_data.topics import topics

        for key in sorted(topics):
            body = topics[key].encode()
            yield Item(self.prefix + key, hashlib.sha256(body).hexdigest(), len(body))

    def read(self, uri: str) -> bytes:
        """Return one topic."""
        from pydoc_data.topics import topics

        key = uri.removeprefix(self.prefix)
        if key not in topics:
            raise CorpusError(f"expected a topic of this Python at {uri}, found none. Next: run sync_knowledge again.")
        return topics[key].encode()


class Folder:
    """The text files below a folder. A URI is the path below it: `file:RELATIVE/PATH`."""

    prefix = "file:"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def list(self) -> Iterator[Item]:
        """Yield every text file below the folder; links that lead out of it are refused."""
        if not self._folder.is_dir():
            raise CorpusError(f"expected a corpus folder at {self._folder}, found none. Next: correct MILLRACE_CORPUS.")
        try:
            names = sorted(path.relative_to(self._folder).as_posix() for path in _text_files(self._folder))
        except OSError as error:
            raise _unreadable(str(self._folder), error) from error
        for name in names:
            body = self.read(self.prefix + name)
            yield Item(self.prefix + name, hashlib.sha256(body).hexdigest(), len(body))

    def read(self, uri: str) -> bytes:
        """Return one file."""
        root = self._folder.resolve()
        path = (root / uri.removeprefix(self.prefix)).resolve()
        if not path.is_relative_to(root):
            raise CorpusError(
                f"expected {uri} inside the corpus folder, found a link that leads out. Next: remove the link."
            )
        try:
            return path.read_bytes()
        except OSError as error:
            raise _unreadable(uri, error) from error


class Bucket:
    """The text objects below an S3 prefix; a URI is the object's own."""

    def __init__(self, prefix: str, storage: Storage) -> None:
        self._prefix = prefix
        self._storage = storage

    def list(self) -> Iterator[Item]:
        """Yield every text object below the prefix; one request a thousand objects, no object is read."""
        try:
            found = [item for item in self._storage.list(self._prefix) if item[0].lower().endswith(SUFFIXES)]
        except BadInput as error:
            raise CorpusError(str(error)) from error
        for uri, size, etag in sorted(found):
            yield Item(uri, hashlib.sha256(f"{etag} {size}".encode()).hexdigest(), size)

    def read(self, uri: str) -> bytes:
        """Return one object."""
        try:
            return self._storage.get_bytes(uri)
        except BadInput as error:
            raise CorpusError(str(error)) from error


def open_source(corpus: str, storage: Storage) -> Source:
    """Return the source that `corpus` names. Raises CorpusError."""
    if corpus.startswith("s3://"):
        return Bucket(corpus, storage)
    if corpus == "pydoc:topics":
        return PydocTopics()
    scheme, colon, _rest = corpus.partition(":")
    if colon and scheme.isalpha():
        raise CorpusError(f"expected a corpus ({_FORMS}), found {corpus!r}. Next: correct MILLRACE_CORPUS.")
    return Folder(repository_path(corpus))


def _text_files(folder: Path) -> Iterator[Path]:
    """Yield the text files below `folder`. Raises OSError for a folder that cannot be read (rglob would pass over it)."""

    def fail(error: OSError) -> None:
        raise error

    for place, _folders, files in os.walk(folder, onerror=fail):
        for name in files:
            if name.lower().endswith(SUFFIXES):
                yield Path(place) / name


def _unreadable(place: str, error: OSError) -> CorpusError:
    return CorpusError(
        f"expected to read {place}, found {error.strerror or error}. Next: check that it exists and who may read it."
    )
