"""Read a whole backup again: every byte, and whether its parts fit.

Reads the dumps (compared, and listed by pg_restore), the list of objects and each content once. Writes `verified.json`
beside a backup in which nothing was wrong, and its moment into `backups` where the database answers. Names all that is
wrong, not only the first.
"""

import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from tasks.backup import catalogue
from tasks.backup.contract import VERIFIED, Backup, content_key, dump_key
from tasks.backup.make import inconsistencies
from tasks.backup.postgres import listing, tool
from tasks.backup.targets import Target, fetch
from tasks.errors import BadInput, ManifestError
from tasks.settings import Settings

_THREADS = 4


class _Nowhere:
    """A file that keeps nothing."""

    name = "/dev/null"

    def write(self, block: bytes) -> int:
        return len(block)


def verify_backup(settings: Settings, target: Target, backup: Backup) -> list[str]:
    """Return what is wrong with a backup, in words; where nothing is, note that it was verified."""
    problems = [*backup.problems, *_wrong_dumps(settings, target, backup)]
    try:
        held = {item.uri: item for item in catalogue.objects(target, backup)}
    except ManifestError as error:
        return [*problems, str(error)]
    problems += _wrong_contents(target, {item.sha256 for item in held.values()})
    problems += [text for text in inconsistencies(held, backup.ledger, backup.model_folders) if text not in problems]
    if not problems:
        at = json.dumps({"verified_at": datetime.now(UTC).isoformat(), "contents": len(held)})
        catalogue.put_json(target, f"backups/{backup.id}/{VERIFIED}", at)
    return problems


def _wrong_dumps(settings: Settings, target: Target, backup: Backup) -> Iterator[str]:
    command = tool(settings, "pg_restore")
    for dump in backup.dumps:
        with tempfile.NamedTemporaryFile() as file:
            try:
                fetch(target, dump_key(backup.id, dump.name), dump.sha256, file)
                file.flush()
                listing(command, Path(file.name))
            except BadInput as error:
                yield str(error)


def _wrong_contents(target: Target, contents: set[str]) -> list[str]:
    nowhere: IO[bytes] = _Nowhere()  # type: ignore[assignment]

    def look(sha256: str) -> str | None:
        try:
            fetch(target, content_key(sha256), sha256, nowhere)
        except ManifestError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as pool:
        return [text for text in pool.map(look, sorted(contents)) if text]
