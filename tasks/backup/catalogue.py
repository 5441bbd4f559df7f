"""The backups of a target: listed, read, recorded, and retired.

A backup whose `backup.json` is missing is none: the next backup removes what a killed one left. Fails with
`ManifestError` when a backup is not there or not readable, `BadInput` when the target belongs to another installation.
"""

import io
import json
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime

from psycopg.types.json import Jsonb
from pydantic import ValidationError

from tasks.backup.contract import BACKUP, MARKER, OBJECTS, VERIFIED, Backup, StoredObject, content_key
from tasks.backup.targets import Target, fetch, missing, read
from tasks.database import connect
from tasks.errors import BadInput, ManifestError


def put_json(target: Target, key: str, text: str) -> None:
    """Write a small text."""
    target.put(key, io.BytesIO(text.encode() + b"\n"))


def claim_target(target: Target, bucket: str) -> None:
    """Make the target ours, or prove that it is. Raises BadInput."""
    try:
        owner = json.loads(read(target, MARKER)).get("bucket")
    except ManifestError:
        put_json(target, MARKER, json.dumps({"format": "millrace.backups/1", "bucket": bucket}))
        return
    if owner != bucket:
        raise BadInput(
            f"expected the backups of the bucket {bucket} at {target.name}, found those of {owner}. "
            "Next: give each installation a place of its own."
        )


def identifiers(target: Target) -> dict[str, set[str]]:
    """Return the names of the files of each backup, finished or not, oldest first."""
    found: dict[str, set[str]] = {}
    for key in target.keys("backups/"):
        _backups, backup, name = key.split("/", 2)
        found.setdefault(backup, set()).add(name)
    return dict(sorted(found.items()))


def finished(target: Target) -> list[Backup]:
    """Return the backups, newest first."""
    names = identifiers(target)
    return [load(target, backup) for backup in reversed(names) if BACKUP in names[backup]]


def load(target: Target, backup: str) -> Backup:
    """Return one backup. Raises ManifestError."""
    body = read(target, f"backups/{backup}/{BACKUP}")
    try:
        return Backup.model_validate_json(body)
    except ValidationError as error:
        raise ManifestError(
            f"expected a backup at {target.name}/backups/{backup}, found something else "
            f"({error.error_count()} problems). Next: use another backup, or the revision of Millrace that made it."
        ) from error


def choose(target: Target, backup: str | None) -> Backup:
    """Return the backup that is named, or the newest that has no problems. Raises ManifestError."""
    if backup is not None:
        return load(target, backup)
    for found in finished(target):
        if found.status == "complete":
            return found
    raise missing(target.name, "a backup without problems")


def objects(target: Target, backup: Backup) -> Iterator[StoredObject]:
    """Yield what the buckets held, after comparing the digest of the list. Raises ManifestError."""
    with tempfile.TemporaryFile() as file:
        fetch(target, f"backups/{backup.id}/{OBJECTS}", backup.objects_sha256, file)
        file.seek(0)
        for line in file:
            yield StoredObject.model_validate_json(line)


def is_verified(target: Target, backup: str) -> bool:
    """Say whether every byte of a backup was read again after it was made."""
    return f"backups/{backup}/{VERIFIED}" in set(target.keys(f"backups/{backup}/"))


def record(url: str, target: Target, backup: Backup, verified: bool) -> None:
    """Add or renew the row of `backups`, from which the age of the last good one is shown."""
    with connect(url, vectors=False) as connection:
        connection.execute(
            "INSERT INTO backups (id, target, status, problems, started_at, ended_at, verified_at, counts) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO UPDATE "
            "SET verified_at = coalesce(excluded.verified_at, backups.verified_at)",
            (
                backup.id,
                target.name,
                backup.status,
                len(backup.problems),
                backup.started_at,
                backup.ended_at,
                datetime.now(UTC) if verified else None,
                Jsonb(backup.counts),
            ),
        )


def remove_unfinished(target: Target) -> int:
    """Remove what killed backups left; contents they wrote stay, and are used by the next. Return how many there were."""
    left = [(backup, names) for backup, names in identifiers(target).items() if BACKUP not in names]
    for backup, names in left:
        for name in names:
            target.delete(f"backups/{backup}/{name}")
    return len(left)


def retire(target: Target, keep: int) -> tuple[list[str], int]:
    """Delete all but the newest `keep` backups, and contents that none names; return what was deleted.

    The newest backup that is complete and was verified stays whatever its age, and so does the newest complete one.
    """
    found = finished(target)
    good = [backup.id for backup in found if backup.status == "complete"]
    verified = [backup for backup in good if is_verified(target, backup)]
    kept = {backup.id for backup in found[:keep]} | set(good[:1]) | set(verified[:1])
    named: set[str] = set()
    for backup in found:
        if backup.id in kept:
            named.update(content_key(item.sha256) for item in objects(target, backup))
    gone = [backup.id for backup in found if backup.id not in kept]
    for identifier in gone:
        # First what makes it a backup: one that is half deleted must not look like one.
        target.delete(f"backups/{identifier}/{BACKUP}")
        for key in list(target.keys(f"backups/{identifier}/")):
            target.delete(key)
    contents = [key for key in target.keys("objects/") if key not in named]
    for key in contents:
        target.delete(key)
    return gone, len(contents)
