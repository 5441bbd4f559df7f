"""The objects of the buckets, copied into a target.

Reads listings and objects; writes each content once, by its SHA-256. What the newest earlier backup holds under the same
URI, ETag, length and moment is not read again. *Claims* are objects that say that work is done: manifests of stages,
and `training.json` of trained weights. They are taken only as they stood before the databases were dumped
(`claims`), so that nothing in the backup claims what its databases do not know; the work behind a younger claim
is done again after a restore. See docs/adr/0008.
"""

import json
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import IO, cast

from pydantic import ValidationError

from tasks.backup.contract import Named, StoredObject, content_key
from tasks.backup.store import Listed, ObjectStore
from tasks.backup.targets import BLOCK, Hashing, Target
from tasks.contracts import Artifact, Manifest
from tasks.storage import _answering

_CLAIMS = ("/manifest.json", "/training.json")
_EVIDENCE = "/evidence.json"
_KINDS = ("adapter", "model")
# Small objects wait for the network, not for the processor; more threads gained nothing on two cores.
_THREADS = 8
_IN_MEMORY = 4 * 2**20
_NAMES_BYTES = 64 * 2**20
_taking = Lock()  # one thread writes a content that several objects share


@dataclass
class Copied:
    """What a copy of the buckets came to."""

    objects: dict[str, StoredObject] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    copied: int = 0
    copied_bytes: int = 0
    vanished: int = 0
    left_out: int = 0


def is_claim(uri: str) -> bool:
    """Say whether an object says that work is done."""
    return uri.endswith(_CLAIMS)


def claims(store: ObjectStore, buckets: Iterable[str]) -> dict[str, str]:
    """Return the ETag of every claim that stands now."""
    return {item.uri: item.etag for name in buckets for item in store.entries(f"s3://{name}/") if is_claim(item.uri)}


def copy(
    store: ObjectStore,
    target: Target,
    buckets: Iterable[str],
    standing: dict[str, str],
    before: dict[str, StoredObject],
) -> Copied:
    """Copy every object of the buckets; `standing` are the claims that count, `before` is the earlier backup."""
    done = Copied()
    stored = {key.rpartition("/")[2] for key in target.keys("objects/")}
    waiting: list[Listed] = []
    for item in (item for name in buckets for item in store.entries(f"s3://{name}/")):
        if is_claim(item.uri) and standing.get(item.uri) != item.etag:
            done.left_out += 1
            continue
        known = before.get(item.uri)
        if known and unchanged(known, item) and known.sha256 in stored:
            done.objects[item.uri] = known
        else:
            waiting.append(item)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="copy") as pool:
        for found in pool.map(lambda item: _copy_one(store, target, item, stored), waiting):
            if found is None:
                done.vanished += 1
                continue
            stored_object, problem, new = found
            done.objects[stored_object.uri] = stored_object
            if problem:
                done.problems.append(problem)
            if new:
                done.copied, done.copied_bytes = done.copied + 1, done.copied_bytes + stored_object.bytes
    return done


def unchanged(known: StoredObject, item: Listed) -> bool:
    """Say whether an object is still the one that was backed up."""
    return (known.etag, known.bytes, known.modified) == (item.etag, item.bytes, item.modified)


def _copy_one(
    store: ObjectStore, target: Target, item: Listed, stored: set[str]
) -> tuple[StoredObject, str | None, bool] | None:
    """Return the stored object, its problem, and whether its content is new; None when it is gone by now."""
    opened = store.read(item.uri)
    if opened is None:
        return None
    # Its digest is its name in the target, so it is read to the end before it is written there.
    with _answering(item.uri), tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as held, opened.body as body:
        hashing = Hashing(body)
        while block := hashing.read(BLOCK):
            held.write(block)
        file = cast(IO[bytes], held)
        file.seek(0)
        names = _names(item.uri, file, hashing.bytes)
        with _taking:
            new = hashing.sha256 not in stored
            stored.add(hashing.sha256)
        if new:
            file.seek(0)
            target.put(content_key(hashing.sha256), file)
    found = StoredObject(
        uri=item.uri,
        sha256=hashing.sha256,
        bytes=hashing.bytes,
        etag=opened.etag,
        modified=item.modified if opened.etag == item.etag else "",  # overwritten since the listing: read it next time
        content_type=opened.content_type,
        metadata=opened.metadata,
        names=names,
    )
    recorded = opened.metadata.get("sha256", hashing.sha256)
    problem = f"{item.uri} has sha256 {hashing.sha256}, and was written with {recorded}"
    return found, None if recorded == hashing.sha256 else problem, new


def _names(uri: str, file: IO[bytes], size: int) -> tuple[Named, ...]:
    """Return what a manifest or kept evidence names; nothing for other objects."""
    if size > _NAMES_BYTES or not uri.endswith(("/manifest.json", _EVIDENCE)):
        return ()
    body = file.read()
    try:
        if uri.endswith(_EVIDENCE):
            content = json.loads(body)
            artifacts = [Artifact.model_validate(value) for kind in _KINDS for value in content.get(kind, {}).values()]
        else:
            artifacts = list(Manifest.model_validate_json(body).outputs.values())
    except (ValidationError, ValueError, AttributeError):
        return ()  # somebody's file of that name: kept as it is, and it names nothing
    return tuple(Named(uri=artifact.uri, sha256=artifact.sha256) for artifact in artifacts)


def settle(store: ObjectStore, done: Copied) -> None:
    """Leave out claims that were taken back while their outputs were copied: their stage was at work again."""
    for uri, item in list(done.objects.items()):
        if is_claim(uri) and broken(item, done.objects) and store.etag(uri) != item.etag:
            del done.objects[uri]
            done.left_out += 1


def broken(item: StoredObject, objects: dict[str, StoredObject]) -> tuple[str, ...]:
    """Return what an object names and the backup does not hold as it is named."""
    return tuple(
        f"{item.uri} names {named.uri} with sha256 {named.sha256}, "
        + (f"which has {held.sha256}" if held else "which is not there")
        for named in item.names
        for held in [objects.get(named.uri)]
        if held is None or held.sha256 != named.sha256
    )
