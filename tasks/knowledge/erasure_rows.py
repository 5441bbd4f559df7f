"""The rows of Postgres that hold an erased document: which index versions, which copies of it there are, and their removal.

Reads and writes the tables of chunks, `documents`, `embedding_cache`, `quarantine`, `requests`, `feedback` and `shadow_answers`, in the caller's
transaction. Fails only as the database does.
"""

from uuid import UUID

from psycopg import sql

from tasks.database import SAFE_DELETES, Connection, pgvector_version
from tasks.knowledge import index_tables
from tasks.knowledge.cache import SCRATCH
from tasks.knowledge.corpora import TUNING
from tasks.knowledge.index_tables import Version
from tasks.knowledge.quarantine import DOCUMENT_OF_CHUNK

# Requests that were answered with the document among the hits; a version says of which corpus they were.
_ANSWERED = (
    "hits @> jsonb_build_array(jsonb_build_object('document_uri', %(uri)s::text)) AND (index_version IS NULL "
    "OR index_version IN (SELECT version FROM index_versions WHERE corpus = %(corpus)s))"
)
_OTHER_HITS = "(SELECT coalesce(jsonb_agg(hit), '[]') FROM jsonb_array_elements(hits) AS hit WHERE hit->>'document_uri' <> %(uri)s)"
_STATEMENTS = {
    "documents": "DELETE FROM documents WHERE corpus = %(corpus)s AND uri = %(uri)s",
    # Chunks and examples are numbered after their document; examples have no corpus of their own.
    "quarantine": (
        "DELETE FROM quarantine WHERE (corpus = %(corpus)s AND item = %(uri)s) "
        f"OR (corpus = %(corpus)s AND kind = 'chunk' AND {DOCUMENT_OF_CHUNK} = %(uri)s) "
        "OR (kind = 'example' AND starts_with(item, 'corpus:') "
        "AND regexp_replace(substr(item, 8), '#[0-9]+$', '') = %(uri)s)"
    ),
    "feedback": (
        "UPDATE feedback SET status = 'rejected' WHERE status <> 'rejected' "
        # The second half: those whose request was dropped with its day, and left them a copy.
        f"AND (request_id IN (SELECT id FROM requests WHERE {_ANSWERED}) OR ({_ANSWERED}))"
    ),
    "shadow_answers": f"DELETE FROM shadow_answers WHERE request_id IN (SELECT id FROM requests WHERE {_ANSWERED})",
    # After those above, which find them by what this one takes away.
    "feedback_copies": f"UPDATE feedback SET answer = NULL, hits = {_OTHER_HITS} WHERE {_ANSWERED}",
    "requests": (f"UPDATE requests SET answer = NULL, hits = {_OTHER_HITS} WHERE {_ANSWERED}"),
}


def versions_with(connection: Connection, corpus: str, uri: str) -> list[Version]:
    """Return the index versions whose table holds the document, those that are only tried out too."""
    rows = connection.execute(
        # Locked before their tables are touched, as those do who write into one (`lock_building`).
        "SELECT version FROM index_versions WHERE corpus IN (%s, %s) AND status <> 'retired' ORDER BY version FOR UPDATE",
        (corpus, TUNING),
    ).fetchall()
    found = [index_tables.get(connection, row["version"]) for row in rows]
    query = sql.SQL("SELECT 1 FROM {} WHERE document_uri = %s LIMIT 1")
    return [version for version in found if connection.execute(query.format(version.table), (uri,)).fetchone()]


def copies_of(connection: Connection, corpus: str, uri: str) -> list[str]:
    """Return the other documents with the text or the bytes of this one, exactly or nearly; those of other corpora say so."""
    rows = connection.execute(
        "SELECT d.corpus, d.uri FROM documents own JOIN documents d ON (d.corpus, d.uri) <> (own.corpus, own.uri) AND ("
        "(own.text_sha256 <> '' AND d.text_sha256 = own.text_sha256) "
        "OR (own.content_sha256 <> '' AND d.content_sha256 = own.content_sha256) "
        "OR (d.corpus = own.corpus AND (d.same_as IN (own.uri, own.same_as) OR d.uri = own.same_as))) "
        "WHERE own.corpus = %s AND own.uri = %s ORDER BY d.corpus <> own.corpus, d.corpus, d.uri",
        (corpus, uri),
    )
    return [row["uri"] + ("" if row["corpus"] == corpus else f" (corpus {row['corpus']})") for row in rows]


def answered_from(connection: Connection, corpus: str, uri: str) -> list[UUID]:
    """Return the requests that were answered with the document."""
    about = {"corpus": corpus, "uri": uri}
    query = (
        f"SELECT id FROM requests WHERE {_ANSWERED} "
        f"UNION SELECT request_id FROM feedback WHERE hits IS NOT NULL AND ({_ANSWERED})"
    )
    return [row["id"] for row in connection.execute(query.encode(), about)]


def delete_rows(connection: Connection, versions: list[Version], corpus: str, uri: str) -> dict[str, int]:
    """Delete or empty every row about the document; return how many, by table."""
    # Counted before any is deleted: versions show rows of each other's tables.
    counts = [_count_chunks(connection, version, uri) for version in versions]
    removed = {
        "chunks": sum(
            _delete_chunks(connection, version, uri, count) for version, count in zip(versions, counts, strict=True)
        )
    }
    for name, statement in _STATEMENTS.items():
        removed[name] = connection.execute(statement.encode(), {"corpus": corpus, "uri": uri}).rowcount
    return removed


def delete_unused_vectors(connection: Connection) -> int:
    """Delete the cached vectors of texts that no index version holds; return how many.

    Vectors of the document's earlier texts, and of sizes that were only tried, are among them: the cache does not say whose
    text a vector is of.
    """
    rows = connection.execute("SELECT version FROM index_versions WHERE status <> 'retired'").fetchall()
    kept: list[sql.Composable] = [
        sql.SQL("SELECT chunk_sha256 FROM {}").format(index_tables.get(connection, r["version"]).table) for r in rows
    ]
    return connection.execute(
        sql.SQL(
            "DELETE FROM embedding_cache e WHERE starts_with(e.embedder, {}) "
            "OR NOT EXISTS (SELECT FROM ({}) k WHERE k.chunk_sha256 = e.chunk_sha256)"
        ).format(SCRATCH, sql.SQL(" UNION ALL ").join(kept or [sql.SQL("SELECT NULL::text AS chunk_sha256")]))
    ).rowcount  # fmt: skip


def _count_chunks(connection: Connection, version: Version, uri: str) -> int:
    query = sql.SQL("SELECT count(*) AS n FROM {} WHERE document_uri = %s").format(version.table)
    row = connection.execute(query, (uri,)).fetchone()
    return int(row["n"]) if row else 0


def _delete_chunks(connection: Connection, version: Version, uri: str, count: int) -> int:
    """Delete the document's chunks in the version's own table; return how many. `count` are those that the version shows.

    With a pgvector whose vacuum may harm an index, one on a table of which rows go is dropped before and built after.
    A table that is shown by others is that of a version too, which is among those that are deleted from.
    """
    held = connection.execute(
        sql.SQL("SELECT 1 FROM {} WHERE document_uri = %s").format(version.own), (uri,)
    ).fetchone()
    rebuild = (
        held is not None
        and pgvector_version(connection) < SAFE_DELETES
        and index_tables.has_vector_index(connection, version.own)
    )
    if rebuild:
        index_tables.drop_indexes(connection, version)
    deleted = connection.execute(sql.SQL("DELETE FROM {} WHERE document_uri = %s").format(version.own), (uri,)).rowcount
    if rebuild:
        index_tables.build_indexes(connection, version)
    connection.execute(
        "UPDATE index_versions SET documents = documents - 1, chunks = chunks - %s WHERE version = %s AND documents > 0",
        (count, version.version),
    )
    return deleted
