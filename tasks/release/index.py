"""The index version that a release names: what is current, and whether its table is whole.

Reads `index_versions` and the table of chunks each row names. Writes nothing. Fails with `ReleaseError`
when a version cannot be released: it is unknown, was never checked, was retired, or lost chunks.
"""

from dataclasses import dataclass
from typing import Any

from psycopg import sql

from tasks.database import Connection
from tasks.errors import ReleaseError

RELEASABLE = ("current", "former")


@dataclass(frozen=True)
class Index:
    """A row of `index_versions`."""

    version: int
    status: str
    fingerprint: str
    corpus: str
    corpus_sha256: str
    embedder: str
    dimensions: int
    table_name: str
    documents: int
    chunks: int
    metrics: dict[str, Any]
    run: str


_COLUMNS = sql.SQL(", ").join(sql.Identifier(name) for name in Index.__dataclass_fields__)


def current(connection: Connection) -> Index | None:
    """Return the current index version, or None before the first sync."""
    row = connection.execute(
        sql.SQL("SELECT {} FROM index_versions WHERE status = 'current'").format(_COLUMNS)
    ).fetchone()
    return Index(**row) if row else None


def find(connection: Connection, version: int) -> Index | None:
    """Return an index version, or None when there is no such row."""
    row = connection.execute(
        sql.SQL("SELECT {} FROM index_versions WHERE version = %s").format(_COLUMNS), (version,)
    ).fetchone()
    return Index(**row) if row else None


def require(connection: Connection, version: int) -> Index:
    """Return a version that can be released, and hold it until the end of the transaction.

    Raises ReleaseError when it is unknown, not switched to yet, retired, or its table lacks chunks.
    """
    # FOR SHARE: housekeeping cannot retire it between this check and the row of the ledger.
    connection.execute("SELECT version FROM index_versions WHERE version = %s FOR SHARE", (version,))
    index = find(connection, version)
    if index is None or index.status not in RELEASABLE:
        found = f"status {index.status!r}" if index else "no such version"
        raise ReleaseError(
            f"expected index version {version} to be {' or '.join(RELEASABLE)}, found {found}. "
            "Next: trigger sync_knowledge, then promote_release."
        )
    chunks = count_chunks(connection, index)
    if chunks != index.chunks:
        raise ReleaseError(
            f"expected {index.chunks} chunks in {index.table_name} (index version {version}), "
            f"found {'no such table' if chunks is None else chunks}. Next: trigger sync_knowledge, then promote_release."
        )
    return index


def count_chunks(connection: Connection, index: Index) -> int | None:
    """Return the number of chunks in the version's table, or None when there is no such table."""
    row = connection.execute(
        "SELECT to_regclass(%s) AS found", (sql.Identifier(index.table_name).as_string(),)
    ).fetchone()
    if row is None or row["found"] is None:
        return None
    counted = connection.execute(
        sql.SQL("SELECT count(*) AS chunks FROM {}").format(sql.Identifier(index.table_name))
    ).fetchone()
    return int(counted["chunks"]) if counted else None
