"""Objects of a backup, put back into the buckets.

Reads listings of the buckets and contents of the target. `put_back` writes what is missing and changes nothing;
`set_right`, after the databases were switched, also puts back what differs and moves aside what claims that work was done
which the restored databases do not know. Nothing is deleted: what gives way goes to `aside/ID/` in its bucket. Content
type and metadata (the digests of `tasks.storage`) come back with the bytes.
"""

import logging
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, cast

from tasks.backup.contract import Backup, StoredObject, content_key
from tasks.backup.objects import is_claim
from tasks.backup.store import Listed, ObjectStore
from tasks.backup.targets import BLOCK, Hashing, Target, backed_up, fetch
from tasks.errors import BadInput
from tasks.settings import Settings
from tasks.storage import _answering, split_uri

log = logging.getLogger(__name__)

_THREADS = 8
_IN_MEMORY = 4 * 2**20


@dataclass(frozen=True)
class PutBack:
    """How many objects were put back, and moved aside."""

    objects: int = 0
    bytes: int = 0
    aside: int = 0

    def __add__(self, other: "PutBack") -> "PutBack":
        return PutBack(self.objects + other.objects, self.bytes + other.bytes, self.aside + other.aside)


def buckets_fit(store: ObjectStore, settings: Settings, backup: Backup) -> None:
    """The buckets have the names they had, because databases and manifests name them. Raises BadInput."""
    ours = backed_up(settings)
    if missing := [name for name in backup.buckets if name not in ours]:
        raise BadInput(
            f"expected the buckets of the backup ({', '.join(backup.buckets)}), found {', '.join(ours)}: the ledger and the "
            f"manifests name objects with their bucket. Next: make {', '.join(missing)}, and correct MILLRACE_S3_BUCKET or "
            "MILLRACE_BACKUP_BUCKETS."
        )
    for name in backup.buckets:
        store.require_bucket(name)


def put_back(store: ObjectStore, target: Target, objects: Iterable[StoredObject]) -> PutBack:
    """Write the objects that are missing; objects that are there stay as they are."""
    wanted = list(objects)
    there = {item.uri for name in _buckets(wanted) for item in store.entries(f"s3://{name}/")}
    return _write(store, target, [item for item in wanted if item.uri not in there])


def set_right(store: ObjectStore, target: Target, held: dict[str, StoredObject], backup: Backup) -> PutBack:
    """Make the buckets what the restored databases know; what gives way is moved aside."""
    differing: list[StoredObject] = []
    aside = 0
    for item in [item for name in backup.buckets for item in store.entries(f"s3://{name}/")]:
        known = held.get(item.uri)
        if split_uri(item.uri)[1].startswith("aside/"):
            continue
        if known is None:
            if is_claim(item.uri):
                _move_aside(store, item.uri, backup.id)
                aside += 1
        elif not _same(store, item, known):
            _move_aside(store, item.uri, backup.id)
            aside += 1
            differing.append(known)
    # Also those that an attempt which was killed had moved aside and not put back yet.
    done = _write(store, target, differing) + put_back(store, target, held.values())
    return done + PutBack(aside=aside)


def _same(store: ObjectStore, item: Listed, known: StoredObject) -> bool:
    if item.bytes != known.bytes:
        return False
    if item.etag == known.etag:
        return True
    # Written again since, by a restore or in parts of another size: the digest tells.
    recorded = store.digest(item.uri)
    return (recorded or _digest(store, item.uri)) == known.sha256


def _digest(store: ObjectStore, uri: str) -> str | None:
    opened = store.read(uri)
    if opened is None:
        return None
    with _answering(uri), opened.body as body:
        hashing = Hashing(body)
        while hashing.read(BLOCK):
            pass
    return hashing.sha256


def _move_aside(store: ObjectStore, uri: str, backup: str) -> None:
    bucket, key = split_uri(uri)
    store.move(uri, f"s3://{bucket}/aside/{backup}/{key}")


def _write(store: ObjectStore, target: Target, objects: list[StoredObject]) -> PutBack:
    def write(item: StoredObject) -> int:
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as held:
            file = cast(IO[bytes], held)
            fetch(target, content_key(item.sha256), item.sha256, file)
            file.seek(0)
            store.upload(item.uri, file, {"Metadata": item.metadata, "ContentType": item.content_type})
        return item.bytes

    # Claims last: what they name is there before them, also when this is killed.
    work = [item for item in objects if not is_claim(item.uri)]
    written = 0
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="put") as pool:
        written += sum(pool.map(write, work))
        written += sum(pool.map(write, [item for item in objects if is_claim(item.uri)]))
    return PutBack(len(objects), written)


def _buckets(objects: Iterable[StoredObject]) -> set[str]:
    return {split_uri(item.uri)[0] for item in objects}
