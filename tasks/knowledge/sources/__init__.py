"""Where documents come from: `pydoc:topics`, a folder, or `s3://bucket/prefix`.

A source lists what there is (URI, stamp, bytes; never a body) in the byte order of URIs, and reads one document's bytes.
To add one: a class that keeps the protocol `Source`, and a line in `open_source` (docs/knowledge-sources.md). Fails with
`CorpusError` when a place cannot be read; a single bad document is refused with `DocumentRefused` when it is read.
"""

from tasks.errors import CorpusError
from tasks.knowledge.extraction.model import DocumentRefused
from tasks.knowledge.sources.base import Item, Source
from tasks.knowledge.sources.bucket import Bucket
from tasks.knowledge.sources.folder import Folder
from tasks.knowledge.sources.pydoc import PydocTopics
from tasks.settings import repository_path
from tasks.storage import Storage

__all__ = ["Bucket", "DocumentRefused", "Folder", "Item", "PydocTopics", "Source", "open_source"]

_FORMS = "pydoc:topics, a folder, or s3://bucket/prefix"


def open_source(uri: str, storage: Storage) -> Source:
    """Return the source that a corpus' URI names. Raises CorpusError."""
    if uri.startswith("s3://"):
        return Bucket(uri, storage)
    if uri == "pydoc:topics":
        return PydocTopics()
    scheme, colon, _rest = uri.partition(":")
    if colon and scheme.isalpha():
        raise CorpusError(f"expected a corpus ({_FORMS}), found {uri!r}. Next: correct MILLRACE_CORPUS.")
    return Folder(repository_path(uri))
