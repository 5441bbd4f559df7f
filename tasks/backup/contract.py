"""What a backup says of itself.

TARGET/millrace-backups.json          whose backups these are
TARGET/backups/ID/DATABASE.dump       pg_dump's custom format
TARGET/backups/ID/objects.jsonl       one line an object of the buckets: where it was, what it held
TARGET/backups/ID/backup.json         written last: without it there is no backup
TARGET/backups/ID/verified.json       every byte was read again and compared
TARGET/objects/SHA256[:2]/SHA256      each content once, shared by all backups that name it
"""

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

BACKUP = "backup.json"
VERIFIED = "verified.json"
OBJECTS = "objects.jsonl"
MARKER = "millrace-backups.json"
DIGEST = r"^[0-9a-f]{64}$"


class Named(BaseModel):
    """Bytes that something else names: a manifest its outputs, kept evidence the weights."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    uri: str
    sha256: str = Field(pattern=DIGEST)


class StoredObject(BaseModel):
    """One object of a bucket as the backup has it; `etag` and `modified` tell the next backup that it is unchanged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    sha256: str = Field(pattern=DIGEST)
    bytes: int = Field(ge=0)
    etag: str
    modified: str
    content_type: str
    metadata: dict[str, str] = {}
    names: tuple[Named, ...] = ()


class Dump(BaseModel):
    """One database: its dump, and what was counted in the very snapshot that was dumped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["airflow", "millrace", "mlflow"]
    sha256: str = Field(pattern=DIGEST)
    bytes: int
    server_version: int
    tool: str
    revision: str | None = Field(description="Alembic revision; None for millrace, whose migrations are in the backup")
    comment: str | None = Field(description="Comment on the database: the embedded stack notes there who migrated it")
    rows: dict[str, int]
    indexes: int


class Backup(BaseModel):
    """`backup.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["millrace.backup/1"] = "millrace.backup/1"
    id: str = Field(pattern=r"^[0-9]{8}t[0-9]{9}z$")
    status: Literal["complete", "damaged"]
    problems: tuple[str, ...] = ()
    started_at: datetime
    ended_at: datetime
    code_revision: str
    buckets: tuple[str, ...]
    migrations: dict[str, str]
    dumps: tuple[Dump, ...]
    objects_sha256: str = Field(pattern=DIGEST)
    ledger: tuple[Named, ...] = Field(description="Evidence of each release of the dumped ledger")
    model_folders: tuple[str, ...] = Field(description="Folders in these buckets that MLflow's model versions name")
    live_release: int | None
    counts: dict[str, int]

    def dump(self, name: str) -> Dump:
        """Return the dump of one database."""
        return next(dump for dump in self.dumps if dump.name == name)


def content_key(sha256: str) -> str:
    """Return where the target keeps a content."""
    return f"objects/{sha256[:2]}/{sha256}"


def dump_key(backup: str, name: str) -> str:
    """Return where the target keeps a dump."""
    return f"backups/{backup}/{name}.dump"


def lines(objects: Iterable[StoredObject]) -> Iterator[bytes]:
    """Yield `objects.jsonl`, in the order of the URIs."""
    for item in sorted(objects, key=lambda item: item.uri):
        yield json.dumps(item.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode() + b"\n"
