"""The `millrace` database: connections and migrations.

Reads `tasks/sql/NNN_name.sql`, applied once each, in order, under an advisory lock, with the digest
of the file recorded. Fails with `ServiceUnavailable` when Postgres does not answer, and with
`SettingsError` when an applied migration was changed afterwards or pgvector is too old.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tasks.errors import ServiceUnavailable, SettingsError
from tasks.settings import settings

log = logging.getLogger(__name__)

SQL_FOLDER = Path(__file__).parent / "sql"
# Iterative scans, which a filtered search needs, came with 0.8.0. Two faults of versions before 0.8.4 are kept away from
# by how we build: parallel HNSW builds could overflow a buffer (until 0.8.2; see index_tables.build_indexes), and a vacuum
# could harm an HNSW index (until 0.8.4; no row of an index version is deleted while its HNSW index stands).
LEAST_PGVECTOR = (0, 8, 0)
SAFE_PARALLEL_BUILDS = (0, 8, 2)
SAFE_DELETES = (0, 8, 4)  # before it, a vacuum after a deletion could harm an HNSW index
_MIGRATION_LOCK = 0x4D696C6C  # any constant number; ours spells "Mill"

Connection = psycopg.Connection[dict[str, Any]]


@contextmanager
def connect(url: str | None = None, *, vectors: bool = True) -> Iterator[Connection]:
    """Open a connection whose rows are dictionaries; commit at the end of the block, roll back on error.

    `vectors=False` is for a database that may not have pgvector yet. Raises ServiceUnavailable when
    Postgres does not answer or the connection is lost inside the block.
    """
    target = url or settings().database_url.get_secret_value()
    try:
        with psycopg.connect(target, connect_timeout=10, row_factory=dict_row) as connection:
            if vectors:
                from pgvector.psycopg import register_vector  # Airflow's image, which has the tool `doctor`, has it not

                register_vector(connection)
            yield connection
    except psycopg.OperationalError as error:
        raise ServiceUnavailable(
            f"expected Postgres to answer, found {str(error).strip() or type(error).__name__}. Next: `make status`; retry."
        ) from error


def migrate(url: str | None = None) -> list[str]:
    """Apply the migrations that were not applied yet; return their names. Safe to run twice at once."""
    applied: list[str] = []
    with connect(url, vectors=False) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations "
            "(name text PRIMARY KEY, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        done = {row["name"]: row["sha256"] for row in connection.execute("SELECT name, sha256 FROM schema_migrations")}
        for path, sha256 in migrations():
            if path.name not in done:
                connection.execute(path.read_text(encoding="utf-8").encode())
                connection.execute("INSERT INTO schema_migrations (name, sha256) VALUES (%s, %s)", (path.name, sha256))
                applied.append(path.name)
            elif done[path.name] != sha256:
                raise SettingsError(
                    f"expected migration {path.name} as it was applied, found other text. Next: restore the file and add a new migration."
                )
        _check_pgvector(connection)
    return applied


def migrations() -> list[tuple[Path, str]]:
    """Return the files of the migrations in order, each with its SHA-256."""
    paths = sorted(SQL_FOLDER.glob("[0-9]*.sql"))
    return [(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


def pgvector_version(connection: Connection) -> tuple[int, ...]:
    """Return the version of the extension, (0,) where there is none."""
    row = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    return tuple(int(part) for part in row["extversion"].split(".")) if row else (0,)


def _check_pgvector(connection: Connection) -> None:
    found = pgvector_version(connection)
    if found < LEAST_PGVECTOR:
        raise SettingsError(
            f"expected pgvector {'.'.join(map(str, LEAST_PGVECTOR))} or newer, found {'.'.join(map(str, found))}. Next: upgrade the extension."
        )


def main(arguments: list[str]) -> int:
    """`python -m tasks migrate`: apply the migrations and print what was done."""
    if arguments:
        raise SettingsError(f"expected no arguments, found {' '.join(arguments)}. Next: python -m tasks migrate")
    applied = migrate()
    print(f"millrace database: {', '.join(applied) if applied else 'nothing to migrate'}")
    return 0
