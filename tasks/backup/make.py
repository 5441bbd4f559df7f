"""Make a backup: dump three databases, copy the buckets, prove that they fit, and say so last.

The order is what keeps the parts consistent while everything runs (docs/adr/0008): Airflow's database, which says what is
done, first; then the list of claims in the buckets; then `millrace` and `mlflow`, which hold what was done; then
the objects. Whatever says that something was done is older in the backup than the thing itself. Writes below the target
only, and one row of `backups`. Fails with the errors of `targets`, `postgres` and `lock`; a backup that holds
something damaged or lacks something that is named is written with status `damaged`, and is no good one.
"""

import logging
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import psycopg

from tasks.backup import catalogue, objects, snapshot
from tasks.backup.contract import BACKUP, OBJECTS, Backup, Dump, StoredObject, dump_key, lines
from tasks.backup.lock import alone
from tasks.backup.objects import Copied
from tasks.backup.postgres import Database, databases, dumping, require_as_new
from tasks.backup.store import ObjectStore
from tasks.backup.targets import Hashing, Target, backed_up
from tasks.errors import ManifestError, TryAgain
from tasks.provenance import code_revision
from tasks.settings import Settings
from tasks.storage import split_uri

log = logging.getLogger(__name__)

_SHOWN = 100  # problems kept by name; all are counted


def make_backup(settings: Settings, target: Target) -> Backup:
    """Make one backup and return it."""
    found = databases(settings)
    with alone(found["millrace"].url, "a backup"):
        store = ObjectStore(settings.s3_endpoint_url)
        buckets = backed_up(settings)
        for name in buckets:
            store.require_bucket(name)
        for database in found.values():
            require_as_new(settings, "pg_dump", database, snapshot.server_version(database.url))
        catalogue.claim_target(target, settings.s3_bucket)
        if left := catalogue.remove_unfinished(target):
            log.info("removed %d backups that were not finished", left)
        backup = _make(settings, target, found, store, buckets)
        catalogue.record(found["millrace"].url, target, backup, verified=False)
    return backup


def _make(
    settings: Settings, target: Target, found: dict[str, Database], store: ObjectStore, buckets: tuple[str, ...]
) -> Backup:
    started = datetime.now(UTC)
    # In the order of time when sorted, and a legal part of a database's name; one backup is made at a time.
    identifier = f"{started:%Y%m%dt%H%M%S}{started.microsecond // 1000:03d}z"
    before = _before(target)
    airflow, _ = _dump(settings, target, identifier, found["airflow"])
    standing = objects.claims(store, buckets)
    millrace, ledger = _dump(settings, target, identifier, found["millrace"])
    mlflow, registry = _dump(settings, target, identifier, found["mlflow"])
    here = tuple(folder for folder in registry["model_folders"] if split_uri(folder)[0] in buckets)
    elsewhere = len(registry["model_folders"]) - len(here)
    copied = objects.copy(store, target, buckets, standing, before)
    objects.settle(store, copied)
    problems = [*copied.problems, *inconsistencies(copied.objects, ledger["ledger"], here)]
    index = _write_index(target, identifier, copied)
    backup = Backup(
        id=identifier,
        status="damaged" if problems else "complete",
        problems=tuple(problems[:_SHOWN]),
        started_at=started,
        ended_at=datetime.now(UTC),
        code_revision=code_revision(settings),
        buckets=buckets,
        dumps=(airflow, millrace, mlflow),
        objects_sha256=index,
        counts=_counts(copied)
        | {
            "dump_bytes": sum(dump.bytes for dump in (airflow, millrace, mlflow)),
            "models_elsewhere": elsewhere,
            "problems": len(problems),
        },
        model_folders=here,
        **ledger,
    )
    catalogue.put_json(target, f"backups/{identifier}/{BACKUP}", backup.model_dump_json(indent=1))
    return backup


def _counts(copied: Copied) -> dict[str, int]:
    return {
        "objects": len(copied.objects),
        "object_bytes": sum(item.bytes for item in copied.objects.values()),
        "copied": copied.copied,
        "copied_bytes": copied.copied_bytes,
        "vanished": copied.vanished,
        "left_out": copied.left_out,
    }


def _before(target: Target) -> dict[str, StoredObject]:
    """Return the objects of the newest backup. One that cannot be read costs reading everything, not this backup."""
    try:
        earlier = next(iter(catalogue.finished(target)), None)
        return {item.uri: item for item in catalogue.objects(target, earlier)} if earlier else {}
    except ManifestError as error:
        log.warning("an earlier backup cannot be read, every object is read anew: %s", error)
        return {}


def _dump(settings: Settings, target: Target, backup: str, database: Database) -> tuple[Dump, dict[str, Any]]:
    """Dump one database; return its record, and what the other parts have to fit."""
    log.info("dumping the database %s", database.name)
    with snapshot.snapshot(database.url) as opened:
        command = require_as_new(settings, "pg_dump", database, opened.server)
        # First: until the end of the snapshot nobody can then put another table, or a view, in the place of one.
        rows = _count_rows(opened)
        with dumping(command, database, opened.name) as stream:
            hashing = Hashing(stream)
            target.put(dump_key(backup, database.name), hashing)  # type: ignore[arg-type]
        facts: dict[str, Any] = {}
        if database.name == "millrace":
            facts = snapshot.ledger(opened.connection)
        elif database.name == "mlflow":
            facts = {"model_folders": snapshot.model_folders(opened.connection)}
        dump = Dump(
            name=database.name,
            sha256=hashing.sha256,
            bytes=hashing.bytes,
            server_version=opened.server,
            tool=command.name,
            revision=None if database.name == "millrace" else snapshot.revision(opened.connection),
            comment=snapshot.comment(opened.connection),
            rows=rows,
            indexes=snapshot.count_indexes(opened.connection),
        )
    return dump, facts


def _count_rows(opened: snapshot.Snapshot) -> dict[str, int]:
    """Return the rows of each table. Raises TryAgain when one went while the snapshot was taken."""
    try:
        return snapshot.count_rows(opened.connection)
    except psycopg.errors.UndefinedTable as error:
        raise TryAgain(
            f"expected the tables of the snapshot, found one gone: {str(error).splitlines()[0]}. Next: back up again."
        ) from error


def inconsistencies(held: dict[str, StoredObject], ledger: Iterable[Any], model_folders: Iterable[str]) -> list[str]:
    """Return, in words, what the databases or the manifests name and the objects do not hold."""
    found = [problem for item in held.values() for problem in objects.broken(item, held)]
    for named in ledger:
        item = held.get(named.uri)
        if item is None or item.sha256 != named.sha256:
            found.append(
                f"the ledger names {named.uri} with sha256 {named.sha256}, "
                + (f"which has {item.sha256}" if item else "which is not there")
            )
    for folder in model_folders:
        prefix = folder.rstrip("/") + "/"
        if not any(uri.startswith(prefix) for uri in held):
            found.append(f"a model version of MLflow names {prefix}, where nothing is")
    return found


def _write_index(target: Target, backup: str, copied: Copied) -> str:
    with tempfile.TemporaryFile() as file:
        for line in lines(copied.objects.values()):
            file.write(line)
        file.seek(0)
        hashing = Hashing(file)
        target.put(f"backups/{backup}/{OBJECTS}", hashing)  # type: ignore[arg-type]
    return hashing.sha256
