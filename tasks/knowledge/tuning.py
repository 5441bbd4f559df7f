"""What `tune-index` makes and must leave behind nowhere: index versions of the corpus TUNING, and scratch vectors.

Reads and writes `index_versions`, the tables of those versions, and scratch rows of `embedding_cache`. One tune-index
works at a time, under an advisory lock; it removes everything when it begins (another may have been killed) and when it
ends. Housekeeping removes what is older than LEFT, `erase` looks in here too. Fails with `TryAgain` when another tunes.
"""

import logging
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from psycopg import sql

from tasks.database import Connection, connect
from tasks.errors import TryAgain
from tasks.knowledge import index_tables
from tasks.knowledge.cache import SCRATCH
from tasks.knowledge.corpora import TUNING
from tasks.knowledge.index_tables import Version

log = logging.getLogger(__name__)
LEFT = timedelta(days=1)  # no single combination takes so long
_LOCK = 0x54756E65  # any constant number, other than those of the other locks; ours spells "Tune"


@contextmanager
def alone() -> Iterator[None]:
    """Hold the lock, with nothing of an earlier tune-index at the beginning, and nothing of this one at the end."""
    with connect(vectors=False) as connection:
        connection.autocommit = True  # no transaction stays open for as long as this takes
        row = connection.execute("SELECT pg_try_advisory_lock(%s) AS held", (_LOCK,)).fetchone()
        if row is None or not row["held"]:
            raise TryAgain("expected no other tune-index at work, found one. Next: repeat when that has ended.")
        try:
            _clear()
            yield
        finally:
            _clear()
            # The server may notice the end of the connection a moment later than the next command begins.
            connection.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))


def _clear() -> None:
    with connect() as connection:
        rows = connection.execute("SELECT version FROM index_versions WHERE corpus = %s", (TUNING,)).fetchall()
        for row in rows:
            _drop(connection, row["version"])
        vectors = delete_vectors(connection)
    if rows or vectors:
        log.info("removed versions=%d vectors=%d of tune-index", len(rows), vectors)


@contextmanager
def version_of(about: Mapping[str, Any]) -> Iterator[Version]:
    """Begin a version beside the others; drop it at the end."""
    run = f"tune/{uuid.uuid4().hex}"
    with connect() as connection:
        version = index_tables.begin(connection, run, {**about, "fingerprint": run, "corpus": TUNING})
    try:
        yield version
    finally:
        with connect() as connection:
            _drop(connection, version.version)


def _drop(connection: Connection, version: int) -> None:
    index_tables.drop(connection, version)
    connection.execute("DELETE FROM index_versions WHERE version = %s AND status = 'retired'", (version,))


def delete_vectors(connection: Connection, age: timedelta = timedelta(0), *, dry: bool = False) -> int:
    """Delete the scratch vectors that are at least so old (`dry`: only count them); return how many there were."""
    doing = sql.SQL("SELECT 1 FROM" if dry else "DELETE FROM")
    condition = sql.SQL("{} embedding_cache WHERE starts_with(embedder, %s) AND created_at <= now() - %s").format(doing)
    return connection.execute(condition, (SCRATCH, age)).rowcount
