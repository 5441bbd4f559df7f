"""Folders of the model cache: made once, and compared with their digests whenever they were touched since.

A cache outlives the process that filled it: it is a volume, on a disk that fills up and on nodes that are switched off.
Beside each folder stands `NAME.digests.json` with the SHA-256 of every file, written before the folder gets its name. A folder is
used when every file has the size, and the times of its last change, that were noted; a file that was touched is hashed
again; a folder that differs is removed and made anew, and the log says so. Files of the model hub are compared with the
digests that the hub itself gave them: their names in its cache (huggingface_hub: "Understand caching").

Only the process that holds a folder's lock writes it. Fails as `make` does.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.storage import file_digest

log = logging.getLogger(__name__)
Signature = list[int]
_SHA256, _GIT = re.compile(r"^[0-9a-f]{64}$"), re.compile(r"^[0-9a-f]{40}$")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file of this machine; wait for whoever holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def once(cache: Path, name: str, make: Callable[[Path], None]) -> Path:
    """Return `cache/name` as it was made: by `make`, in a neighbour folder that is renamed when complete."""
    target = cache.resolve() / name
    record = target.with_name(f"{name}.digests.json")
    with locked(target.with_name(f"{name}.lock")):
        if target.is_dir() and (wrong := _damage(target, record)):
            log.warning("model cache %s: %s: made anew", target, wrong)
            shutil.rmtree(target)
        if not target.is_dir():
            partial = target.with_name(f"{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            make(partial)
            _note(record, partial, {path: file_digest(path) for path in _files(partial)})
            partial.rename(target)
    return target


def damaged_downloads(snapshot: Path, record: Path) -> list[Path]:
    """Return the files of a hub snapshot whose bytes are not those of their names in the hub's cache; note the others."""
    known = _read(record)
    digests = {}
    for path in _files(snapshot):
        blob = path.resolve()
        entry = known.get(str(path.relative_to(snapshot)))
        noted = entry is not None and entry["signature"] == _signature(path)
        digests[path] = blob.name if noted else _hub_digest(blob)
    wrong = [path for path, digest in digests.items() if digest != path.resolve().name]
    if not wrong:
        _note(record, snapshot, digests)
    return wrong


def _hub_digest(blob: Path) -> str:
    """Return what the hub would call a file: SHA-256 where it is large, git's digest of a blob where it is not."""
    if _SHA256.match(blob.name):
        return file_digest(blob)
    if not _GIT.match(blob.name):
        return blob.name  # a mirror that gives names of its own: nothing to compare with
    digest = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode(), usedforsecurity=False)
    digest.update(blob.read_bytes())
    return digest.hexdigest()


def _damage(folder: Path, record: Path) -> str:
    """Return how a folder differs from its record, or nothing; note the times of files that were only touched."""
    known = _read(record)
    found = {str(path.relative_to(folder)): path for path in _files(folder)}
    if set(found) != set(known):
        names = sorted(set(found) ^ set(known))
        return f"expected the files of its record, found {', '.join(names[:3])} missing, or more"
    touched = [name for name, path in found.items() if known[name]["signature"] != _signature(path)]
    for name in touched:
        if file_digest(found[name]) != known[name]["sha256"]:
            return f"expected {name} with its digest, found other bytes"
    if touched:
        _note(record, folder, {found[name]: entry["sha256"] for name, entry in known.items()})
    return ""


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _signature(path: Path) -> Signature:
    """Return size and times: the time of change of the inode cannot be set back."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _read(record: Path) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}  # as good as no record: everything is compared or made anew
    return found


def _note(record: Path, folder: Path, digests: dict[Path, str]) -> None:
    entries = {
        str(path.relative_to(folder)): {"sha256": digest, "signature": _signature(path)}
        for path, digest in digests.items()
    }
    record.parent.mkdir(parents=True, exist_ok=True)
    draft = record.with_name(f"{record.name}.{os.getpid()}")
    draft.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    draft.replace(record)
