"""Reconciliation: what a source lists against what is known of its documents, worked out by Postgres.

Reads the table `documents`, `erasures` and `quarantine` of one corpus. Writes temporary tables of the connection only:
`listing` (what the source lists) and `plan` (one row a document, with its `change`). A corpus of any size streams
through: no list of documents is held in this process. Fails only as the database does.

    new         listed, not known
    changed     listed with another stamp, or known by another pipeline: it is read, and may turn out to be unchanged
    unchanged   listed with the stamp it is indexed with
    rejected    listed with the stamp it was rejected with; but it is read again where that was not about its bytes (it
                could not be read, or moved), where it is not too large any more, or where what it copies changed
    erased      listed, but erased by request: it does not come back
    gone        indexed, not listed any more (or moved: its bytes may be found under another URI)
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from tasks.database import Connection
from tasks.knowledge.sources import Item

CHANGES = ("new", "changed", "unchanged", "rejected", "erased", "gone")
_PAGE = 2_000  # rows that a cursor fetches at once


@dataclass(frozen=True)
class Listing:
    """What a source lists: how many documents, and a digest that differs whenever one of them may."""

    documents: int
    sha256: str


def load_listing(connection: Connection, items: Iterable[Item]) -> Listing:
    """Load a listing into the temporary table `listing`."""
    connection.execute(
        'CREATE TEMP TABLE listing (uri text COLLATE "C" PRIMARY KEY, stamp text NOT NULL, bytes bigint NOT NULL) ON COMMIT DROP'
    )
    count, sha256 = 0, hashlib.sha256()
    with connection.cursor() as cursor, cursor.copy("COPY listing FROM STDIN") as copy:
        for item in items:
            copy.write_row((item.uri, item.stamp, item.bytes))
            sha256.update(f"{item.uri}\n{item.stamp}\n".encode())
            count += 1
    connection.execute("ANALYZE listing")
    return Listing(count, sha256.hexdigest())


def compare(connection: Connection, corpus: str, fingerprint: str | None, most_bytes: int) -> dict[str, int]:
    """Make the temporary table `plan` from `listing`; return the number of documents of each change.

    `fingerprint` is that of the pipeline, if the current version was made with it: what another one judged is read again.
    `most_bytes` is how large a document may be.
    """
    connection.execute(
        """
        CREATE TEMP TABLE plan ON COMMIT DROP AS
        SELECT l.uri, l.stamp, l.bytes, d.content_sha256, d.same_as,
               CASE WHEN EXISTS (SELECT FROM erasures e WHERE e.corpus = %(corpus)s AND e.uri = l.uri) THEN 'erased'
                    WHEN d.uri IS NULL THEN 'new'
                    WHEN d.stamp <> l.stamp OR d.fingerprint IS DISTINCT FROM %(fingerprint)s THEN 'changed'
                    WHEN d.status = 'indexed' THEN 'unchanged'
                    -- What was wrong was not in the bytes that the stamp stands for, or is not wrong by today's limit.
                    WHEN d.rule IN ('document_is_readable', 'document_holds_still') THEN 'changed'
                    WHEN d.rule = 'document_is_not_huge' AND l.bytes <= %(most_bytes)s THEN 'changed'
                    WHEN d.rule IS NOT NULL THEN 'rejected'
                    ELSE 'changed' END AS change,
               -- The bytes with which it is indexed by this pipeline: where they are the same, nothing is to do.
               CASE WHEN d.status = 'indexed' AND d.fingerprint = %(fingerprint)s THEN d.content_sha256 END AS known_sha256,
               -- A rejected document is looked at again from the bytes that quarantine keeps.
               CASE WHEN d.status = 'rejected' AND d.stamp = l.stamp THEN (
                    SELECT q.body_uri FROM quarantine q WHERE q.kind = 'document' AND q.item = l.uri AND q.corpus = %(corpus)s
                    AND q.content_sha256 = d.content_sha256 AND q.body_uri IS NOT NULL AND q.status <> 'purged'
                    ORDER BY q.id DESC LIMIT 1) END AS body_uri
        FROM listing l LEFT JOIN documents d ON d.corpus = %(corpus)s AND d.uri = l.uri
        """,
        {"corpus": corpus, "fingerprint": fingerprint, "most_bytes": most_bytes},
    )
    connection.execute("ALTER TABLE plan ADD PRIMARY KEY (uri)")
    connection.execute(
        "UPDATE plan SET change = 'changed' WHERE change = 'rejected' AND same_as IS NOT NULL "
        "AND NOT EXISTS (SELECT FROM plan kept WHERE kept.uri = plan.same_as AND kept.change = 'unchanged')"
    )
    connection.execute(
        "INSERT INTO plan (uri, stamp, bytes, content_sha256, change) SELECT uri, stamp, bytes, content_sha256, 'gone' "
        "FROM documents d WHERE corpus = %s AND status = 'indexed' AND NOT EXISTS (SELECT FROM listing l WHERE l.uri = d.uri)",
        (corpus,),
    )
    counts = dict.fromkeys(CHANGES, 0)
    for row in connection.execute("SELECT change, count(*) AS n FROM plan GROUP BY change"):
        counts[row["change"]] = row["n"]
    return counts


def copies_of_gone(connection: Connection) -> int:
    """Return how many rejected copies are read again because the document that stood for them is gone."""
    query = """
        SELECT count(*) AS n FROM plan copy JOIN plan kept ON kept.uri = copy.same_as
        WHERE copy.change = 'changed' AND kept.change = 'gone'
    """
    row = connection.execute(query).fetchone()
    return int(row["n"]) if row else 0


def indexed_documents(connection: Connection, corpus: str) -> int:
    """Return how many documents of a corpus are indexed now."""
    query = "SELECT count(*) AS n FROM documents WHERE corpus = %s AND status = 'indexed'"
    row = connection.execute(query, (corpus,)).fetchone()
    return int(row["n"]) if row else 0


def share_out(connection: Connection, parts: int) -> None:
    """Give each document that is to be read its part, so that parts are of about equal bytes (largest first, to and fro)."""
    connection.execute("ALTER TABLE plan ADD COLUMN part integer")
    connection.execute(
        "UPDATE plan SET part = CASE WHEN n %% (2 * %(parts)s) < %(parts)s THEN n %% (2 * %(parts)s) "
        "ELSE 2 * %(parts)s - 1 - n %% (2 * %(parts)s) END FROM "
        "(SELECT uri, (row_number() OVER (ORDER BY bytes DESC, uri) - 1)::integer AS n FROM plan WHERE change IN ('new', 'changed')) AS placed "
        "WHERE placed.uri = plan.uri",
        {"parts": parts},
    )


def stream(connection: Connection, query: str, values: Any = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a query by a cursor on the server: memory does not grow with their number."""
    with connection.cursor(name="millrace_stream") as cursor:
        cursor.itersize = _PAGE
        cursor.execute(query.encode(), values)
        yield from cursor


def load_rows(
    connection: Connection, table: str, columns: dict[str, str], rows: Iterable[dict[str, Any]], key: str = "uri"
) -> None:
    """Make a temporary table of `columns` (name to type) and load rows into it."""
    names = [sql.Identifier(name) for name in columns]
    definition = sql.SQL(", ").join(
        sql.SQL("{} {}").format(name, sql.SQL(kind)) for name, kind in zip(names, columns.values(), strict=True)
    )
    connection.execute(
        sql.SQL("CREATE TEMP TABLE {} ({}, PRIMARY KEY ({})) ON COMMIT DROP").format(
            sql.Identifier(table), definition, sql.Identifier(key)
        )
    )
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), sql.SQL(", ").join(names))
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row([row[name] for name in columns])
    connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(table)))
