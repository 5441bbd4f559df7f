"""Whether an index version can be released: it was switched to, and its table is whole.

Reads `index_versions` and the table of chunks the row names. Writes nothing. Fails with `ReleaseError`
when the version is unknown, was never switched to, was retired, or lost chunks.
"""

from psycopg import sql

from tasks.database import Connection
from tasks.errors import DataError, ReleaseError
from tasks.knowledge.index_tables import Version, get

RELEASABLE = ("current", "former")


def require(connection: Connection, version: int) -> Version:
    """Return a version that can be released, and hold it until the end of the transaction. Raises ReleaseError."""
    # FOR SHARE: housekeeping cannot retire it between this check and the row of the ledger.
    connection.execute("SELECT version FROM index_versions WHERE version = %s FOR SHARE", (version,))
    try:
        index = get(connection, version)
    except DataError as error:
        raise ReleaseError(str(error)) from error
    if index.status not in RELEASABLE:
        raise ReleaseError(
            f"expected index version {version} to be {' or '.join(RELEASABLE)}, found it {index.status}. "
            "Next: trigger sync_knowledge, then promote_release."
        )
    chunks = count_chunks(connection, index)
    if chunks != index.chunks:
        raise ReleaseError(
            f"expected {index.chunks} chunks in {index.table_name} (index version {version}), "
            f"found {'no such table' if chunks is None else chunks}. Next: trigger sync_knowledge, then promote_release."
        )
    return index


def count_chunks(connection: Connection, index: Version) -> int | None:
    """Return the number of chunks in the version's table, or None when there is no such table."""
    found = connection.execute("SELECT to_regclass(%s) AS name", (index.table.as_string(connection),)).fetchone()
    if found is None or found["name"] is None:
        return None
    counted = connection.execute(sql.SQL("SELECT count(*) AS chunks FROM {}").format(index.table)).fetchone()
    return int(counted["chunks"]) if counted else None
