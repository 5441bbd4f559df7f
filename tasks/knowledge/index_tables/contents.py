"""What the table of an index version holds: loading, copying from an earlier version, counting.

Reads and writes the tables `chunks_vN`. Documents that stay as they are are named by a temporary table on the
server (`list_uris` makes one), so that nothing here grows with the corpus in the client's memory. Fails with
`DataError` when a version is not open for writing, or not whole, and `TryAgain` when another try has just finished it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from psycopg import sql

from tasks.database import Connection
from tasks.errors import DataError, TryAgain
from tasks.knowledge.index_tables.indexes import drop_indexes, has_vector_index
from tasks.knowledge.index_tables.versions import BUILD_LOCK, OPEN, Version

COLUMNS = (
    ("chunk_id", "text"),
    ("document_uri", "text"),
    ("ordinal", "int4"),
    ("title", "text"),
    ("headings", "text[]"),
    ("text", "text"),
    ("tokens", "int4"),
    ("start", "int4"),
    ("end", "int4"),
    ("page", "int4"),
    ("last_page", "int4"),
    ("covered", "text[]"),
    ("metadata", "jsonb"),
    ("chunk_sha256", "text"),
    ("embedding", "vector"),
)
NAMES = sql.SQL(", ").join(sql.Identifier(name) for name, _type in COLUMNS)
_FETCHED = 5_000  # rows of a server-side cursor in memory at once


def replace_documents(
    connection: Connection, version: Version, uris: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Make `rows` the only chunks of the documents `uris`, in one transaction: safe to repeat, and to run twice at once.

    A row has the COLUMNS; where it stands (headings, page, last_page, covered) and metadata may be absent. A reader sees all
    of a document's rows or none.
    """
    with connection.transaction():
        # Two tries of one part may overlap (a lost pod and its retry): the second waits here, then replaces.
        lock_building(connection, version)
        drop_indexes(connection, version)
        connection.execute(sql.SQL("DELETE FROM {} WHERE document_uri = ANY(%s)").format(version.table), (list(uris),))
        load_rows(connection, version, rows)


def lock_building(connection: Connection, version: Version) -> None:
    """Keep others from writing a version until the transaction ends.

    Raises TryAgain when another try has finished it (then its manifest stands), DataError when it is not its run's any more.
    """
    connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (BUILD_LOCK, version.version))
    row = connection.execute(
        "SELECT status, base_table FROM index_versions WHERE version = %s FOR SHARE", (version.version,)
    ).fetchone()
    status = row["status"] if row else "nothing"
    if row and status in OPEN and (status != "building" or row["base_table"] != version.base_table):
        raise TryAgain(
            f"expected index version {version.version} to be building, found {status if status != 'building' else 'it laid over'}: "
            "another try has finished it. "
            "Next: nothing; what it left stands."
        )
    if status != "building":
        raise DataError(
            f"expected index version {version.version} to be open, found {status}. Next: start a new run of sync_knowledge."
        )


def require_whole(connection: Connection, version: Version) -> None:
    """Refuse a version whose table holds other rows than were recorded, or has no vector index. Raises DataError."""
    row = connection.execute(
        sql.SQL(
            "SELECT (SELECT count(*) FROM {table}) AS rows, v.chunks FROM index_versions v WHERE v.version = %s"
        ).format(table=version.table),
        (version.version,),
    ).fetchone()
    tables = [version.own, *([sql.Identifier(version.base_table)] if version.base_table else [])]
    indexed = all(has_vector_index(connection, table) for table in tables)
    if row is None or row["rows"] != row["chunks"] or not indexed:
        found = f"{row['rows']} and {'one' if indexed else 'no vector index'}" if row else "nothing"
        raise DataError(
            f"expected {row['chunks'] if row else 'the recorded'} chunks with a vector index in index version "
            f"{version.version}, found {found}. Next: clear check_index of this run, or start a new one."
        )


def load_rows(connection: Connection, version: Version, rows: Iterable[Mapping[str, Any]]) -> None:
    """Send rows by COPY in its binary form: vectors as text cost more than twenty times as much."""
    types = [version.vector_type if name == "embedding" else kind for name, kind in COLUMNS]
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(version.table, NAMES)
    before = COLUMNS[:-1]
    absent: dict[str, Any] = {"headings": [], "page": None, "last_page": None, "covered": None, "metadata": {}}
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(types)
        for row in rows:
            full = {**absent, **row}
            values = [full[name] for name, _type in before]
            copy.write_row([*values, as_stored(full["embedding"], version.vector_type)])


def as_stored(vector: Any, vector_type: str) -> Any:
    """Return a vector in the form that a column of `vector_type` is loaded from and compared with."""
    import numpy

    array = numpy.asarray(vector, dtype=numpy.float32)
    if vector_type == "halfvec":
        from pgvector import HalfVector

        return HalfVector(array)
    return array


def list_uris(connection: Connection, table: str, rows: Iterable[tuple[str, str | None]]) -> None:
    """Make the temporary table `table` (uri, old_uri) of this session hold `rows`, streamed.

    `old_uri` is where a moved document stood in the base version; None where it did not move.
    """
    name = sql.Identifier(table)
    connection.execute(sql.SQL("DROP TABLE IF EXISTS pg_temp.{}").format(name))
    connection.execute(sql.SQL("CREATE TEMPORARY TABLE {} (uri text PRIMARY KEY, old_uri text)").format(name))
    with connection.cursor() as cursor, cursor.copy(sql.SQL("COPY {} FROM STDIN").format(name)) as copy:
        for row in rows:
            copy.write_row(row)
    connection.execute(sql.SQL("ANALYZE {}").format(name))


def copy_documents(connection: Connection, base: Version, version: Version, table: str) -> int:
    """Copy the chunks of the documents of a temporary table from `base` into `version`, on the server, once.

    `table` has the columns uri and old_uri (see `list_uris`): a moved document is copied under its new URI, with the
    chunk ids that `index_documents.chunk_rows` gives them there. Returns how many chunks those documents now have.
    """
    moved = sql.SQL(
        "CASE WHEN u.uri = c.document_uri THEN c.chunk_id ELSE "
        "left(encode(sha256(convert_to(u.uri || E'\\n' || c.ordinal || E'\\n' || c.text, 'UTF8')), 'hex'), 32) END"
    )
    given = {"chunk_id": moved, "document_uri": sql.SQL("u.uri")}
    chosen = sql.SQL(", ").join(given.get(name) or sql.Identifier("c", name) for name, _type in COLUMNS)
    connection.execute(
        sql.SQL(
            "INSERT INTO {target} ({names}) SELECT {chosen} FROM {listed} u "
            "JOIN {source} c ON c.document_uri = coalesce(u.old_uri, u.uri) ON CONFLICT DO NOTHING"
        ).format(
            target=version.table,
            names=NAMES,
            chosen=chosen,
            source=base.table,
            listed=sql.Identifier("pg_temp", table),
        )
    )
    return count_chunks_of(connection, version, table)


def count_chunks_of(connection: Connection, version: Version, table: str) -> int:
    """Return how many chunks `version` has of the documents of a temporary table."""
    row = connection.execute(
        sql.SQL("SELECT count(*) AS n FROM {} c WHERE EXISTS (SELECT FROM {} u WHERE u.uri = c.document_uri)").format(
            version.table, sql.Identifier("pg_temp", table)
        )
    ).fetchone()
    return int(row["n"]) if row else 0


def keep_only(connection: Connection, version: Version, table: str) -> int:
    """Delete the chunks of documents that the temporary table does not name (an earlier try left them); return how many."""
    # Nothing is deleted under a vector index: a vacuum of pgvector before 0.8.4 could harm it.
    drop_indexes(connection, version)
    return connection.execute(
        sql.SQL("DELETE FROM {} c WHERE NOT EXISTS (SELECT FROM {} u WHERE u.uri = c.document_uri)").format(
            version.table, sql.Identifier("pg_temp", table)
        )
    ).rowcount


def documents_in(connection: Connection, version: Version) -> Iterator[tuple[str, int]]:
    """Yield each document of `version` with the number of its chunks, in the order of URIs, some thousands in memory."""
    query = sql.SQL("SELECT document_uri, count(*) AS n FROM {} GROUP BY document_uri ORDER BY document_uri")
    with connection.transaction(), connection.cursor(f"documents_in_{version.version}") as cursor:
        cursor.itersize = _FETCHED
        for row in cursor.execute(query.format(version.table)):
            yield row["document_uri"], row["n"]
