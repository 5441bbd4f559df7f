"""Restore a backup: beside what is there, proven, then switched.

Reads a backup, the server's databases and the buckets. Steps, each repeatable (see `switch` for what the names say):

1. each database is filled under another name, its rows and indexes counted against the snapshot that was dumped, and
   `millrace` migrated to this revision;
2. objects that are missing are put back; then everything that the ledger, manifests and MLflow name has to stand;
3. the databases are switched in one transaction, while nobody is connected to them;
4. objects that differ are put back as they were, and claims that the restored databases do not know are moved
   aside to `aside/ID/`, so that no stage takes them for its own. Nothing of a bucket is deleted.

Fails with the errors of `targets`, `postgres` and `switch`; before step 3 the installation is as it was, but for objects
that it lacked.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.backup import catalogue, snapshot, switch
from tasks.backup.contract import Backup, Dump, StoredObject, dump_key
from tasks.backup.lock import alone
from tasks.backup.make import inconsistencies
from tasks.backup.postgres import Database, databases, require_as_new
from tasks.backup.postgres import restore as pg_restore
from tasks.backup.put_back import PutBack, buckets_fit, put_back, set_right
from tasks.backup.store import ObjectStore
from tasks.backup.targets import Target, fetch
from tasks.database import connect, migrate, migrations
from tasks.errors import BadInput, ManifestError
from tasks.settings import Settings

log = logging.getLogger(__name__)

Into = Literal["empty", "beside", "replace"]
PARTS = ("airflow", "millrace", "mlflow", "objects")


@dataclass(frozen=True)
class Restored:
    """What a restore came to: objects put back, claims moved aside, databases that were replaced and are kept."""

    databases: tuple[str, ...]
    objects: PutBack
    kept: tuple[str, ...] = ()
    switched: bool = False


def restore(settings: Settings, target: Target, backup: Backup, into: Into, parts: tuple[str, ...] = PARTS) -> Restored:
    """Restore the parts of a backup that are named."""
    found = databases(settings)
    wanted = [found[dump.name] for dump in backup.dumps if dump.name in parts]
    store = ObjectStore(settings.s3_endpoint_url)
    buckets_fit(store, settings, backup)
    held = {item.uri: item for item in catalogue.objects(target, backup)}
    _require_whole(backup, held)
    _require_together(parts, into)
    if not wanted:
        done = put_back(store, target, held.values())
        _require_standing(store, backup, held)
        return Restored((), done)
    _require_known(backup)
    # The lock is that of a database that stays: the one that is switched would take it along.
    with alone(wanted[0].administered("postgres"), "a restore"):
        present = switch.names(wanted[0])
        done = PutBack()
        # Any: a restore may have been killed between the last names of two databases.
        if not any(switch.replaced(database, backup.id) in present for database in wanted):
            _fill_beside(settings, target, backup, wanted, present, into)
            done = put_back(store, target, held.values()) if "objects" in parts else done
            if into == "beside":
                return Restored(tuple(switch.restored(database, backup.id) for database in wanted), done)
            switch.switch(wanted, backup.id)
        else:
            log.info("the databases were switched by an earlier attempt; it is finished now")
        if "objects" in parts and "millrace" in parts:
            with alone(found["millrace"].url, "a restore"):
                done = done + set_right(store, target, held, backup)
        _require_standing(store, backup, held)
        kept = switch.finish(wanted, backup.id)
    return Restored(tuple(database.database for database in wanted), done, tuple(kept), switched=True)


def _fill_beside(
    settings: Settings, target: Target, backup: Backup, wanted: list[Database], present: set[str], into: Into
) -> None:
    if into == "empty":
        _require_empty(wanted, present)
    for database in wanted:
        if switch.restored(database, backup.id) not in present:
            _fill(settings, target, backup, database)
        if database.database not in present and into != "beside":
            # One that is gone altogether is made, empty, so that the switch is the same.
            switch.create(database, database.database, vectors=False)


def _require_together(parts: tuple[str, ...], into: Into) -> None:
    if "millrace" in parts and "objects" not in parts and into != "beside":
        raise BadInput(
            "expected objects to be restored with millrace, found millrace without them: manifests that are younger than the "
            "ledger would be believed. Next: --only millrace,objects, or --into beside."
        )


def _require_known(backup: Backup) -> None:
    """This revision has to know every migration of the backup, with its text. Raises BadInput."""
    ours = {path.name: sha256 for path, sha256 in migrations()}
    unknown = sorted(name for name, sha256 in backup.migrations.items() if ours.get(name) != sha256)
    if unknown:
        raise BadInput(
            f"expected a backup whose migrations this revision has, found {', '.join(unknown)}. "
            f"Next: restore with revision {backup.code_revision} or a newer one."
        )


def _require_empty(wanted: Iterable[Database], present: set[str]) -> None:
    for database in wanted:
        if database.database not in present:
            continue
        with connect(database.administered(database.database), vectors=False) as connection:
            if not snapshot.is_empty(connection):
                raise BadInput(
                    f"expected empty databases, found tables in {database.database}. Next: --into beside, to look at what "
                    "is restored; or --into replace, which keeps what is there under another name."
                )


def _fill(settings: Settings, target: Target, backup: Backup, database: Database) -> None:
    """Fill a new database beside the present one, prove it, and give it the name that says so."""
    dump = backup.dump(database.name)
    name = switch.restoring(database, backup.id)
    command = require_as_new(settings, "pg_restore", database, dump.server_version)
    log.info("restoring the database %s as %s", database.name, name)
    with tempfile.TemporaryDirectory() as folder:
        free = shutil.disk_usage(folder).free
        if free < dump.bytes * 1.1:
            raise BadInput(
                f"expected {dump.bytes * 1.1 / 1e9:.1f} GB free in {folder}, found {free / 1e9:.1f} GB. "
                "Next: name a larger disk in TMPDIR."
            )
        file = Path(folder) / f"{database.name}.dump"
        with file.open("wb") as opened:
            fetch(target, dump_key(backup.id, database.name), dump.sha256, opened)
        switch.create(database, name, vectors=database.name == "millrace", comment=dump.comment)
        pg_restore(command, database, name, file, jobs=min(4, os.cpu_count() or 1))
    _prove(database, name, dump)
    with switch.server(database) as connection:
        switch.rename(connection, name, switch.restored(database, backup.id))


def _prove(database: Database, name: str, dump: Dump) -> None:
    """Compare rows and indexes with what was counted in the dumped snapshot; then migrate. Raises ManifestError."""
    url = database.administered(name)
    with connect(url, vectors=False) as connection:
        rows, indexes = snapshot.count_rows(connection), snapshot.count_indexes(connection)
    different = sorted(table for table in rows.keys() | dump.rows.keys() if rows.get(table) != dump.rows.get(table))
    if different or indexes != dump.indexes:
        found = ", ".join(f"{table}: {rows.get(table)} of {dump.rows.get(table)}" for table in different[:5])
        raise ManifestError(
            f"expected the rows and {dump.indexes} indexes that were dumped of {database.name}, found {found or 'all rows'} "
            f"and {indexes} indexes. Next: repeat; if it stays so, use another backup."
        )
    if database.name == "millrace":
        _migrate_as_owner(url, database)


def _migrate_as_owner(url: str, database: Database) -> None:
    from psycopg.conninfo import make_conninfo

    migrate(make_conninfo(url, options=f"-c role={database.owner}"))
    with connect(url, vectors=False) as connection:
        # MLflow may be restored with a younger alias than the ledger's; the next reconciliation sets it right.
        connection.execute("DELETE FROM release_mirrors WHERE release = (SELECT max(release) FROM releases)")


def _require_whole(backup: Backup, held: dict[str, StoredObject]) -> None:
    """The backup holds everything that its own databases and manifests name. Raises ManifestError."""
    problems = inconsistencies(held, backup.ledger, backup.model_folders)
    if problems and backup.status == "complete":
        raise ManifestError(
            f"expected a backup that holds what its ledger and manifests name, found {len(problems)} problems: "
            f"{'; '.join(problems[:3])}. Next: python -m tasks verify_backup, then use another backup."
        )
    for problem in problems:
        log.warning("the backup is damaged: %s", problem)


def _require_standing(store: ObjectStore, backup: Backup, held: dict[str, StoredObject]) -> None:
    """What the releases are made of stands in the buckets. Raises ManifestError."""
    weights = [named for item in backup.ledger if item.uri in held for named in held[item.uri].names]
    wrong = []
    for named in (*backup.ledger, *weights):
        found = store.digest(named.uri)
        if found != named.sha256 and named.uri in held:
            wrong.append(f"{named.uri} with sha256 {named.sha256}, which has {found or 'no object'}")
    if wrong:
        raise ManifestError(
            f"expected the objects of the releases, found {len(wrong)} wrong: {'; '.join(wrong[:3])}. "
            "Next: delete those objects and repeat; what is missing is put back."
        )
