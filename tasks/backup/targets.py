"""Where backups are kept: a folder, or a prefix of a bucket that is not one of those backed up.

Reads and writes keys below the target, as streams: nothing large is held in memory. A key appears whole or not at
all. Fails with `BadInput` for a place that cannot be used (a full disk among them), `ManifestError` for bytes
that are missing or differ, `ServiceUnavailable` when S3 does not answer.
"""

import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from tasks.backup.store import ObjectStore
from tasks.errors import BadInput, ManifestError
from tasks.settings import Settings
from tasks.storage import _answering, split_uri

BLOCK = 1024 * 1024


class Hashing(io.RawIOBase):
    """A stream that counts and digests what is read through it."""

    def __init__(self, source: IO[bytes]) -> None:
        super().__init__()
        self._source, self._digest, self.bytes = source, hashlib.sha256(), 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes."""
        block = self._source.read(-1 if size is None else size)
        self._digest.update(block)
        self.bytes += len(block)
        return block

    @property
    def sha256(self) -> str:
        """Digest of all that was read."""
        return self._digest.hexdigest()


class Target(Protocol):
    """A place of backups."""

    name: str

    def put(self, key: str, source: IO[bytes]) -> None:
        """Write a stream to its end."""

    def open(self, key: str) -> Any:
        """Return a context manager that yields a stream. Raises ManifestError when there is nothing."""

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys that start with `prefix`."""

    def delete(self, key: str) -> None:
        """Remove a key; nothing happens when it is not there."""


def open_target(settings: Settings, place: str) -> Target:
    """Return the target at `place`: s3://bucket/prefix or a folder. Raises BadInput."""
    if not place.startswith("s3://"):
        return FolderTarget(Path(place))
    bucket, _key = split_uri(place)
    endpoint = settings.backup_endpoint_url or settings.s3_endpoint_url
    if bucket in backed_up(settings) and endpoint == settings.s3_endpoint_url:
        raise BadInput(
            f"expected a bucket of its own for backups, found {bucket}, which is backed up itself: it would be lost with what "
            "it keeps. Next: make another bucket, in another region or account where you can."
        )
    return BucketTarget(ObjectStore(endpoint), place, settings.backup_kms_key)


def backed_up(settings: Settings) -> tuple[str, ...]:
    """Return the buckets that a backup holds: that of Millrace, and those of `MILLRACE_BACKUP_BUCKETS`."""
    more = [name.strip() for name in (settings.backup_buckets or "").split(",") if name.strip()]
    return tuple(dict.fromkeys([settings.s3_bucket, *more]))


class FolderTarget:
    """A folder, readable by its owner only. Its disk is yours to encrypt, and to keep elsewhere."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()
        self.name = str(self._folder)
        for parent in (self._folder, *self._folder.parents):
            if (parent / "stack.json").exists() and (parent / "secrets.json").exists():
                raise BadInput(
                    f"expected a folder outside the embedded stack, found one in {parent}, which `make clean` deletes. "
                    "Next: choose another folder."
                )

    def put(self, key: str, source: IO[bytes]) -> None:
        """Write beside the place, then rename."""
        path = self._folder / key
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".partial-", delete=False) as file:
                partial = Path(file.name)
                try:
                    while block := source.read(BLOCK):
                        file.write(block)
                    file.flush()
                    os.fsync(file.fileno())
                except BaseException:
                    partial.unlink()
                    raise
            partial.replace(path)
        except OSError as error:
            raise _unusable(path, error) from error

    @contextmanager
    def open(self, key: str) -> Iterator[IO[bytes]]:
        """Yield the file."""
        try:
            file = (self._folder / key).open("rb")
        except FileNotFoundError as error:
            raise missing(self.name, key) from error
        except OSError as error:
            raise _unusable(self._folder / key, error) from error
        with file:
            yield file

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield files, sorted; what was being written when a backup was killed is not among them."""
        for path in sorted((self._folder / prefix).rglob("*")):
            if path.is_file() and not path.name.startswith(".partial-"):
                yield str(path.relative_to(self._folder))

    def delete(self, key: str) -> None:
        """Remove a file, and its folder when that is empty now."""
        path = self._folder / key
        path.unlink(missing_ok=True)
        for left in path.parent.glob(".partial-*") if path.parent.exists() else ():
            left.unlink()
        if path.parent.exists() and not any(path.parent.iterdir()):
            path.parent.rmdir()


class BucketTarget:
    """A prefix of a bucket; encrypted by the bucket's default, or with the key of `MILLRACE_BACKUP_KMS_KEY`."""

    def __init__(self, store: ObjectStore, place: str, kms_key: str | None) -> None:
        self._store, self.name = store, place.rstrip("/")
        self._extra = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}

    def put(self, key: str, source: IO[bytes]) -> None:
        """Upload, in parts where it is large."""
        self._store.upload(f"{self.name}/{key}", source, self._extra)

    @contextmanager
    def open(self, key: str) -> Iterator[IO[bytes]]:
        """Yield the body of the object."""
        found = self._store.read(f"{self.name}/{key}")
        if found is None:
            raise missing(self.name, key)
        with _answering(f"{self.name}/{key}"), found.body as body:
            yield body

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield keys, sorted as S3 sorts them."""
        for item in self._store.entries(f"{self.name}/{prefix}"):
            yield item.uri.removeprefix(f"{self.name}/")

    def delete(self, key: str) -> None:
        """Delete the object."""
        self._store.delete(f"{self.name}/{key}")


def read(target: Target, key: str) -> bytes:
    """Return a small value whole."""
    with target.open(key) as stream:
        body: bytes = stream.read()
        return body


def fetch(target: Target, key: str, sha256: str, file: IO[bytes]) -> int:
    """Copy a key into `file`, compare its digest, and return its bytes. Raises ManifestError when it differs."""
    with target.open(key) as stream:
        hashing = Hashing(stream)
        try:
            while block := hashing.read(BLOCK):
                file.write(block)
        except OSError as error:
            raise _unusable(Path(str(file.name)), error) from error
    if hashing.sha256 != sha256:
        raise ManifestError(
            f"expected sha256 {sha256} at {target.name}/{key}, found {hashing.sha256}: the backup is damaged there. "
            "Next: use another one (python -m tasks backups); delete what is damaged, and the next backup copies it anew."
        )
    return hashing.bytes


def missing(name: str, key: str) -> ManifestError:
    """Return the error for a key that is not there."""
    return ManifestError(f"expected {key} in the backups at {name}, found nothing. Next: python -m tasks backups")


def _unusable(path: Path, error: OSError) -> BadInput:
    step = "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "check the path and its owner"
    return BadInput(f"expected to read and write {path}, found {error.strerror or error}. Next: {step}, then repeat.")
