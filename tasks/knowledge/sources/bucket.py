"""The objects below an S3 prefix; a URI is the object's own.

Reads the listing (one request a thousand objects) and single objects. Writes temporary files while a listing is put
into order. Fails with `CorpusError` when the bucket may not be read, `ServiceUnavailable` when S3 does not answer, and
refuses single objects with `DocumentRefused`.
"""

from collections.abc import Iterator, Mapping

from botocore.exceptions import ClientError

from tasks.errors import BadInput, CorpusError, ManifestError
from tasks.knowledge.extraction.model import DocumentRefused
from tasks.knowledge.sources.base import Ignored, Item, moved, refuse_huge, unreadable
from tasks.knowledge.sources.ordered import in_order
from tasks.storage import Storage

# What S3 says of one object that may not be read, where others may be.
_OF_THE_OBJECT = {"AccessDenied", "InvalidObjectState", "KMS.DisabledException", "KMS.NotFoundException"}


class Bucket:
    """The documents below an S3 prefix."""

    def __init__(self, prefix: str, storage: Storage) -> None:
        self._prefix = prefix
        self._storage = storage
        self._ignored = Ignored()

    @property
    def ignored(self) -> Mapping[str, int]:
        """How many objects the last listing passed over, by ending."""
        return self._ignored.counts

    def list(self) -> Iterator[Item]:
        """Yield every object that may be a document. Raises CorpusError and ServiceUnavailable."""
        self._ignored = Ignored()
        yield from in_order(self._documents())

    def _documents(self) -> Iterator[Item]:
        """Yield the documents as S3 lists them: some servers do it in an order of their own."""
        try:
            for uri, size, etag in self._storage.list(self._prefix):
                below = uri.removeprefix(self._prefix).lstrip("/") or uri.rpartition("/")[2]
                if not uri.endswith("/") and not self._ignored.passes_over(below):
                    yield Item(uri, f"{etag}-{size}", size)
        except BadInput as error:
            raise CorpusError(str(error)) from error

    def read(self, item: Item, limit: int) -> bytes:
        """Return one object. Raises DocumentRefused, CorpusError and ServiceUnavailable."""
        refuse_huge(item, limit)
        try:
            # One byte more than was listed, to see that it did not grow; an empty object has no first byte to ask for.
            body = self._storage.get_start(item.uri, item.bytes + 1) if item.bytes else b""
            found = next((entry for entry in self._storage.list(item.uri) if entry[0] == item.uri), None)
        except ManifestError as error:
            raise unreadable(item.uri, "no such object any more") from error
        except BadInput as error:
            raise _refusal(item, error) from error
        if found is None:
            raise unreadable(item.uri, "no such object any more")
        stamp = f"{found[2]}-{found[1]}"
        if stamp != item.stamp or len(body) != item.bytes:
            raise moved(item, stamp)
        return body


def _refusal(item: Item, error: BadInput) -> DocumentRefused | CorpusError:
    """Return what S3's answer means: this object may not be read, or nothing here may."""
    cause = error.__cause__
    code = str(cause.response.get("Error", {}).get("Code", "")) if isinstance(cause, ClientError) else ""
    return unreadable(item.uri, code) if code in _OF_THE_OBJECT else CorpusError(str(error))
