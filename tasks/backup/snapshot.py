"""What is counted and read in the very snapshot that is dumped.

Reads one database in one repeatable-read transaction, whose snapshot `pg_dump` is given. Writes nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from tasks.backup.contract import Named
from tasks.database import Connection, connect
from tasks.errors import BadInput

_TABLES = """
SELECT n.nspname AS schema, c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname NOT LIKE 'pg\\_%%' AND n.nspname <> 'information_schema' ORDER BY 1, 2
"""


@dataclass(frozen=True)
class Snapshot:
    """An open snapshot: its name for pg_dump, and the connection that holds it."""

    name: str
    connection: Connection
    server: int


@contextmanager
def snapshot(url: str) -> Iterator[Snapshot]:
    """Open a snapshot of a database, held until the end of the block."""
    with connect(url, vectors=False) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        row = connection.execute(
            "SELECT pg_export_snapshot() AS name, current_setting('server_version_num')::int / 10000 AS server"
        ).fetchone()
        assert row is not None  # SELECT of functions gives a row or raises
        yield Snapshot(row["name"], connection, row["server"])


def server_version(url: str) -> int:
    """Return the major version of a server."""
    with connect(url, vectors=False) as connection:
        return connection.info.server_version // 10000


def count_rows(connection: Connection) -> dict[str, int]:
    """Return the rows of every table, by `schema.name`."""
    counted = {}
    for row in connection.execute(_TABLES).fetchall():
        table = sql.Identifier(row["schema"], row["name"])
        found = connection.execute(sql.SQL("SELECT count(*) AS rows FROM {}").format(table)).fetchone()
        assert found is not None  # count(*) gives a row or raises
        counted[f"{row['schema']}.{row['name']}"] = int(found["rows"])
    return counted


def count_indexes(connection: Connection) -> int:
    """Return how many valid indexes there are, the HNSW ones among them."""
    row = connection.execute(
        "SELECT count(*) AS indexes FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE i.indisvalid AND n.nspname NOT LIKE 'pg\\_%%'"
    ).fetchone()
    assert row is not None  # count(*) gives a row or raises
    return int(row["indexes"])


def revision(connection: Connection) -> str | None:
    """Return the Alembic revision of the database, or None where there is no such table (yet)."""
    if not _exists(connection, "alembic_version"):
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row["version_num"]) if row else None


def comment(connection: Connection) -> str | None:
    """Return the comment on the database itself, which pg_dump leaves out."""
    row = connection.execute(
        "SELECT shobj_description(oid, 'pg_database') AS text FROM pg_database WHERE datname = current_database()"
    ).fetchone()
    return row["text"] if row else None


def ledger(connection: Connection) -> dict[str, Any]:
    """Return migrations, evidence of each release, and the live release of the `millrace` database. Raises BadInput."""
    if not _exists(connection, "releases"):
        raise BadInput("expected the tables of Millrace, found none. Next: python -m tasks migrate")
    migrations = connection.execute("SELECT name, sha256 FROM schema_migrations").fetchall()
    rows = connection.execute(
        "SELECT release, evidence_uri AS uri, evidence_sha256 AS sha256 FROM releases ORDER BY release"
    ).fetchall()
    return {
        "migrations": {row["name"]: row["sha256"] for row in migrations},
        "ledger": tuple({row["uri"]: Named(**row) for row in rows}.values()),
        "live_release": rows[-1]["release"] if rows else None,
    }


def model_folders(connection: Connection) -> tuple[str, ...]:
    """Return the folders in S3 that MLflow's model versions were registered from, of versions that were not deleted."""
    if not _exists(connection, "model_versions"):
        return ()
    rows = connection.execute(
        "SELECT DISTINCT source FROM model_versions WHERE source LIKE 's3://%%' "
        "AND current_stage <> 'Deleted_Internal' ORDER BY 1"
    ).fetchall()
    return tuple(row["source"] for row in rows)


def is_empty(connection: Connection) -> bool:
    """Say whether a database has no table of anybody."""
    return not connection.execute(_TABLES).fetchall()


def _exists(connection: Connection, table: str) -> bool:
    row = connection.execute("SELECT to_regclass(%s) IS NOT NULL AS it", (table,)).fetchone()
    return bool(row and row["it"])
