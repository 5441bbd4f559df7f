"""Objects in S3 as a backup needs them: listed with what tells a change, read and written as streams.

Adds to `tasks.storage` what no stage needs. Fails as it does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from boto3.s3.transfer import TransferConfig

from tasks.errors import BadInput, ManifestError
from tasks.storage import Storage, _answering, split_uri

# Two parts in flight: 32 MB of memory at most, for an object of up to 160 GB (S3 takes 10,000 parts).
_TRANSFER = TransferConfig(multipart_threshold=16 * 2**20, multipart_chunksize=16 * 2**20, max_concurrency=2)


@dataclass(frozen=True)
class Listed:
    """One object as a listing tells it."""

    uri: str
    bytes: int
    etag: str
    modified: str


@dataclass(frozen=True)
class Opened:
    """An object that is being read."""

    body: Any
    etag: str
    content_type: str
    metadata: dict[str, str]


class ObjectStore(Storage):
    """A client of one S3 endpoint."""

    def entries(self, prefix: str) -> Iterator[Listed]:
        """Yield every object whose URI starts with `prefix`."""
        bucket, key = split_uri(prefix)
        with _answering(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key):
                for item in page.get("Contents", []):
                    uri = f"s3://{bucket}/{item['Key']}"
                    yield Listed(uri, item["Size"], item["ETag"].strip('"'), item["LastModified"].isoformat())

    def read(self, uri: str) -> Opened | None:
        """Begin to read an object, or return None when it is gone."""
        bucket, key = split_uri(uri)
        try:
            with _answering(uri):
                found = self._client.get_object(Bucket=bucket, Key=key)
        except ManifestError:
            return None
        return Opened(found["Body"], found["ETag"].strip('"'), found["ContentType"], found.get("Metadata", {}))

    def etag(self, uri: str) -> str | None:
        """Return the ETag of an object, or None when it is gone."""
        head = self._head(uri)
        return str(head["ETag"]).strip('"') if head else None

    def digest(self, uri: str) -> str | None:
        """Return the SHA-256 that was recorded with an object when it was written, or None."""
        head = self._head(uri)
        return str(head["Metadata"]["sha256"]) if head and "sha256" in head["Metadata"] else None

    def upload(self, uri: str, source: IO[bytes], extra: dict[str, Any]) -> None:
        """Write a stream, in parts where it is large."""
        bucket, key = split_uri(uri)
        with _answering(uri):
            self._client.upload_fileobj(source, bucket, key, ExtraArgs=extra, Config=_TRANSFER)

    def move(self, uri: str, to: str) -> None:
        """Copy an object within the store, then delete it: a kill between both leaves two, never none."""
        (bucket, key), (to_bucket, to_key) = split_uri(uri), split_uri(to)
        with _answering(uri):
            self._client.copy({"Bucket": bucket, "Key": key}, to_bucket, to_key)
        self.delete(uri)

    def delete(self, uri: str) -> None:
        """Delete an object."""
        bucket, key = split_uri(uri)
        with _answering(uri):
            self._client.delete_object(Bucket=bucket, Key=key)

    def require_bucket(self, name: str) -> None:
        """Prove that a bucket answers. Raises BadInput, ServiceUnavailable."""
        try:
            with _answering(f"s3://{name}"):
                self._client.head_bucket(Bucket=name)
        except ManifestError as error:
            raise BadInput(f"expected a bucket {name}, found none. Next: make it, or correct its name.") from error
