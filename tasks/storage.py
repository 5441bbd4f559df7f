"""Artifacts in S3: put, get and verify bytes by URI.

Reads and writes `s3://BUCKET/KEY`. Every object put here carries its SHA-256 as metadata, so that
`verify` can prove with one HEAD request that the bytes named by a manifest are there. Fails with
`ServiceUnavailable` when S3 does not answer, `ManifestError` when bytes are missing or differ, and
`BadInput` for a URI that is not S3.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import IO, Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

from tasks.contracts import Artifact, Manifest, manifest_uri
from tasks.errors import BadInput, ManifestError, ServiceUnavailable

_DIGEST = "sha256"
_ROWS = "rows"
_IN_MEMORY = 4_000_000  # bytes of rows that are read at once


def split_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of `s3://bucket/key`, the key as it is: unlike in a URL, `?` and `#` are letters of it.

    Raises BadInput for anything else.
    """
    scheme, _, path = uri.partition("://")
    bucket, _, key = path.partition("/")
    if scheme != "s3" or not bucket:
        raise BadInput(
            f"expected a URI like s3://bucket/key, found {uri!r}. Next: correct the option or setting it came from."
        )
    return bucket, key


class Storage:
    """A client of one S3 endpoint."""

    def __init__(self, endpoint_url: str | None = None, attempts: int = 6) -> None:
        config = Config(
            connect_timeout=5,
            read_timeout=60,
            retries={"max_attempts": attempts, "mode": "standard"},
            s3={"addressing_style": "path"} if endpoint_url else {},
        )
        session = botocore.session.get_session()
        session.register_component("data_loader", _descriptions())
        self._client = boto3.session.Session(botocore_session=session).client(
            "s3", endpoint_url=endpoint_url, config=config
        )

    def put_bytes(
        self,
        uri: str,
        body: bytes,
        *,
        rows: int | None = None,
        content_type: str = "application/octet-stream",
    ) -> Artifact:
        """Write `body` at `uri` in one request and return its artifact."""
        bucket, key = split_uri(uri)
        sha256 = hashlib.sha256(body).hexdigest()
        metadata = {_DIGEST: sha256} | ({_ROWS: str(rows)} if rows is not None else {})
        with _answering(uri):
            self._client.put_object(Bucket=bucket, Key=key, Body=body, Metadata=metadata, ContentType=content_type)
        return Artifact(uri=uri, sha256=sha256, bytes=len(body), rows=rows)

    def put_file(
        self, uri: str, path: Path, *, rows: int | None = None, content_type: str = "application/octet-stream"
    ) -> Artifact:
        """Upload the file at `path`, in parts where it is large, and return its artifact."""
        with path.open("rb") as file:
            return self._put_stream(uri, file, rows=rows, content_type=content_type)

    def _put_stream(self, uri: str, file: IO[bytes], *, rows: int | None, content_type: str) -> Artifact:
        bucket, key = split_uri(uri)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        sha256 = hashlib.sha256()
        while block := file.read(1 << 20):
            sha256.update(block)
        file.seek(0)
        metadata = {_DIGEST: sha256.hexdigest()} | ({_ROWS: str(rows)} if rows is not None else {})
        with _answering(uri):
            self._client.upload_fileobj(
                file, bucket, key, ExtraArgs={"Metadata": metadata, "ContentType": content_type}
            )
        return Artifact(uri=uri, sha256=sha256.hexdigest(), bytes=size, rows=rows)

    def put_folder(self, uri: str, folder: Path) -> dict[str, Artifact]:
        """Upload every file below `folder`; return the artifacts by path relative to it, sorted."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {
            str(path.relative_to(folder)): self.put_file(f"{uri.rstrip('/')}/{path.relative_to(folder)}", path)
            for path in files
        }

    def put_json(self, uri: str, value: Any) -> Artifact:
        """Write a JSON value with sorted keys."""
        return self.put_bytes(
            uri, json.dumps(value, sort_keys=True, indent=1).encode() + b"\n", content_type="application/json"
        )

    def put_rows(self, uri: str, rows: Iterable[dict[str, Any]]) -> Artifact:
        """Write rows as JSON lines and count them; what is large waits in a scratch file, not in memory."""
        count = 0
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n")
                count += 1
            return self._put_stream(uri, file, rows=count, content_type="application/x-ndjson")

    def get_bytes(self, uri: str) -> bytes:
        """Return the bytes at `uri`. Raises ManifestError when there are none."""
        bucket, key = split_uri(uri)
        with _answering(uri):
            body: bytes = self._client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return body

    def get_start(self, uri: str, length: int) -> bytes:
        """Return the first bytes at `uri`, fewer where there are fewer. Raises ManifestError when there is nothing."""
        bucket, key = split_uri(uri)
        with _answering(uri):
            found = self._client.get_object(Bucket=bucket, Key=key, Range=f"bytes=0-{length - 1}")
            body: bytes = found["Body"].read()
        return body

    def get(self, artifact: Artifact) -> bytes:
        """Return an artifact's bytes after comparing their SHA-256. Raises ManifestError when they differ."""
        body = self.get_bytes(artifact.uri)
        found = hashlib.sha256(body).hexdigest()
        if found != artifact.sha256:
            raise _damaged(artifact, f"sha256 {found}")
        return body

    def get_json(self, artifact: Artifact) -> Any:
        """Return a verified JSON artifact."""
        return json.loads(self.get(artifact))

    def get_rows(self, artifact: Artifact) -> Iterator[dict[str, Any]]:
        """Yield the rows of a verified JSON-lines artifact; a large one is read through a scratch file."""
        if artifact.bytes <= _IN_MEMORY:
            for line in self.get(artifact).splitlines():
                yield json.loads(line)
            return
        with tempfile.TemporaryDirectory() as folder, self.get_file(artifact, Path(folder) / "rows").open("rb") as file:
            for line in file:
                yield json.loads(line)

    def download(self, uri: str, path: Path) -> None:
        """Write the object at `uri` to `path`, a part at a time. Raises ManifestError when there is none."""
        bucket, key = split_uri(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _answering(uri):
            self._client.download_file(bucket, key, str(path))

    def get_file(self, artifact: Artifact, path: Path) -> Path:
        """Download an artifact to `path` (through a neighbour file) and compare its SHA-256."""
        partial = path.with_name(path.name + ".partial")
        self.download(artifact.uri, partial)
        found = file_digest(partial)
        if found != artifact.sha256:
            partial.unlink()
            raise _damaged(artifact, f"sha256 {found}")
        partial.replace(path)
        return path

    def get_folder(self, artifacts: dict[str, Artifact], folder: Path) -> Path:
        """Download named artifacts below `folder`; the names are relative paths."""
        for name, artifact in artifacts.items():
            target = (folder / name).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise ManifestError(
                    f"expected file names inside the folder, found {name!r}. Next: do not use this manifest."
                )
            self.get_file(artifact, target)
        return folder

    def contains(self, uri: str, *needles: bytes) -> bool:
        """Return whether the bytes of an object contain one of `needles`, read a block at a time."""
        bucket, key = split_uri(uri)
        longest, rest = max(map(len, needles)), b""
        with _answering(uri):
            body = self._client.get_object(Bucket=bucket, Key=key)["Body"]
            while block := body.read(1 << 20):
                seen = rest + block
                if any(needle in seen for needle in needles):
                    return True
                rest = seen[-longest:]
        return False

    def exists(self, uri: str) -> bool:
        """Return whether an object stands at `uri`."""
        return self._head(uri) is not None

    def verify(self, artifact: Artifact) -> None:
        """Prove by one HEAD request that the artifact's bytes are there.

        Raises ManifestError when the object is missing, has another length, or another recorded SHA-256.
        """
        head = self._head(artifact.uri)
        if head is None:
            raise _damaged(artifact, "nothing")
        found = head["Metadata"].get(_DIGEST)
        if head["ContentLength"] != artifact.bytes or (found is not None and found != artifact.sha256):
            raise _damaged(artifact, f"{head['ContentLength']} bytes, sha256 {found}")

    def list(self, prefix: str) -> Iterator[tuple[str, int, str]]:
        """Yield (URI, bytes, ETag) of every object whose URI starts with `prefix`."""
        bucket, key = split_uri(prefix)
        with _answering(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key):
                for item in page.get("Contents", []):
                    yield f"s3://{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"')

    def list_modified(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """Yield (URI, moment of the last write) of every object whose URI starts with `prefix`."""
        bucket, key = split_uri(prefix)
        with _answering(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key):
                for item in page.get("Contents", []):
                    yield f"s3://{bucket}/{item['Key']}", item["LastModified"]

    def delete_prefix(self, prefix: str) -> int:
        """Delete every object whose URI starts with `prefix`; return how many there were."""
        bucket, _ = split_uri(prefix)
        count = 0
        for uri, _size, _etag in list(self.list(prefix)):
            with _answering(uri):
                self._client.delete_object(Bucket=bucket, Key=split_uri(uri)[1])
            count += 1
        return count

    def read_manifest(self, uri: str) -> Manifest | None:
        """Return the manifest at `uri`, or None when there is none. Raises ManifestError when it cannot be read."""
        if self._head(uri) is None:
            return None
        try:
            return Manifest.model_validate_json(self.get_bytes(uri))
        except ValueError as error:
            raise ManifestError(
                f"expected a manifest at {uri}, found something else ({error}). Next: clear the stage that wrote it."
            ) from error

    def require_manifest(self, run: str, stage: str, part: str | None = None) -> Manifest:
        """Return the complete, verified manifest of a stage. Raises ManifestError."""
        return self.require_manifest_at(manifest_uri(run, stage, part))

    def require_manifest_at(self, uri: str) -> Manifest:
        """Return the complete manifest at `uri` after verifying every output it names. Raises ManifestError."""
        manifest = self.read_manifest(uri)
        if manifest is None:
            raise ManifestError(
                f"expected a complete stage at {uri}, found no manifest. Next: run that stage, or see its log."
            )
        if manifest.status != "complete":
            raise ManifestError(
                f"expected a complete stage at {uri}, found {manifest.status}: {manifest.reason} (its report has more)"
            )
        for artifact in manifest.outputs.values():
            self.verify(artifact)
        return manifest

    def write_manifest(self, manifest: Manifest) -> None:
        """Write a manifest, after verifying that the outputs it names are there."""
        for artifact in manifest.outputs.values():
            self.verify(artifact)
        self.put_bytes(manifest.uri, manifest.to_bytes(), content_type="application/json")

    def _head(self, uri: str) -> dict[str, Any] | None:
        bucket, key = split_uri(uri)
        try:
            with _answering(uri):
                head: dict[str, Any] = self._client.head_object(Bucket=bucket, Key=key)
                return head
        except ManifestError:
            return None


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(artifact: Artifact, found: str) -> ManifestError:
    return ManifestError(
        f"expected {artifact.bytes} bytes with sha256 {artifact.sha256} at {artifact.uri}, found {found}. "
        "Next: clear the stage that wrote it; it will be made again."
    )


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    """Translate the client's errors: a missing object, a refused request, and an absent server differ."""
    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in {"404", "NoSuchKey", "NotFound"}:
            raise ManifestError(
                f"expected an object at {uri}, found none. Next: run the stage that writes it."
            ) from error
        if status >= 500:
            raise ServiceUnavailable(
                f"expected S3 to answer for {uri}, found {code} ({status}). "
                "Next: retry; see the log of the S3 server (a full disk is one reason)."
            ) from error
        raise BadInput(
            f"expected access to {uri}, found {code} ({status}). Next: check bucket, credentials and policy."
        ) from error
    except (ConnectionError, HTTPClientError) as error:
        raise ServiceUnavailable(
            f"expected S3 to answer for {uri}, found {type(error).__name__}. Next: `make status`; retry."
        ) from error
    except BotoCoreError as error:
        raise BadInput(
            f"expected a usable S3 client for {uri}, found {error}. Next: check the AWS_* variables."
        ) from error


@cache
def _descriptions() -> Any:
    """Return botocore's loader of the description of S3, whose megabytes are then parsed once a process: 0.15 s a client."""
    return botocore.session.get_session().get_component("data_loader")
