"""The documents of an index version, as far as they can be followed.

Reads `index_versions` and the table of chunks; asks S3 whether the run folder is there. Writes nothing.
"""

import psycopg
from psycopg import sql

from tasks.release.index import RELEASABLE
from tasks.release.ledger import Release
from tasks.release.lineage_walk import Found, Walk


def index_of(walk: Walk, release: Release) -> Found:
    """Return the index version of a release, and its documents."""
    # Not index_tables.get: that one refuses what was retired, whose row is what is left to tell.
    row = walk.connection.execute(
        "SELECT version, corpus, source, status, embedder, run, chunks, documents, table_name FROM index_versions WHERE version = %s",
        (release.index_version,),
    ).fetchone()
    assert row is not None  # a foreign key of the ledger
    table, known = row.pop("table_name"), row.pop("documents")
    if (
        next(walk.storage.list(f"{row['run'].rstrip('/')}/") if row["run"].startswith("s3://") else iter(()), None)
        is None
    ):
        walk.lost.append(f"run folder {row['run']} of index version {row['version']} was retired")
    uris = documents_of(walk, table, row["status"])
    if uris is None:
        walk.lost.append(
            f"documents of index version {row['version']}: it is {row['status']}, and its table is gone "
            f"({known or 'an unknown number of'} documents)"
        )
        return row
    return row | {"documents": walk.listed(uris)}


def documents_of(walk: Walk, table: str, status: str) -> list[str] | None:
    """Return the documents of which an index version holds chunks; None where its table is gone."""
    if status not in RELEASABLE:
        return None
    query = sql.SQL("SELECT DISTINCT document_uri FROM {} ORDER BY 1").format(sql.Identifier(table))
    try:
        with walk.connection.transaction():
            return [row["document_uri"] for row in walk.connection.execute(query)]
    except psycopg.errors.UndefinedTable:
        return None
