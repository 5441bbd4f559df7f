"""Which new documents repeat another one, exactly or nearly, among themselves and against what stays in the corpus.

Reads the table `documents` and the caller's temporary table of the documents that stay; writes temporary tables of its
own, which hold the new documents and are dropped at the end: memory stays flat whatever their number. The outcome
depends on URIs, texts and the threshold, never on the order of the rows or how the work was shared out. A malformed
signature is a `ValueError` (near_duplicates.py), two rows with one URI an error of Postgres.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from tasks.database import Connection
from tasks.knowledge.near_duplicates import similarity

_SOME = 500  # suspects fetched at a time

_TABLES = ("near_new", "near_bands", "near_suspects", "near_kept", "near_kept_bands")
_CREATE = """
    CREATE TEMP TABLE near_new (
        uri text COLLATE "C" PRIMARY KEY, text_sha256 text NOT NULL, signature bytea NOT NULL, bands bigint[] NOT NULL);
    CREATE TEMP TABLE near_kept (
        uri text COLLATE "C" PRIMARY KEY, text_sha256 text NOT NULL, signature bytea NOT NULL);
    CREATE INDEX ON pg_temp.near_kept (text_sha256);
    CREATE TEMP TABLE near_kept_bands (band bigint NOT NULL, uri text COLLATE "C" NOT NULL);
    CREATE INDEX ON pg_temp.near_kept_bands (band);
"""
# Most documents share no text and no band with any other: only the others are gone through one by one.
_SUSPECTS = """
    CREATE TEMP TABLE near_bands AS SELECT unnest(bands) AS band, uri FROM pg_temp.near_new;
    CREATE TEMP TABLE near_suspects (uri text COLLATE "C" PRIMARY KEY);
    ANALYZE pg_temp.near_new;
    ANALYZE pg_temp.near_bands;
    INSERT INTO pg_temp.near_suspects
        SELECT uri FROM pg_temp.near_new WHERE text_sha256 IN
            (SELECT text_sha256 FROM pg_temp.near_new GROUP BY text_sha256 HAVING count(*) > 1)
        UNION
        SELECT uri FROM pg_temp.near_bands WHERE band IN
            (SELECT band FROM pg_temp.near_bands GROUP BY band HAVING count(*) > 1)
        UNION
        SELECT new.uri FROM pg_temp.near_new new JOIN documents d
            ON d.corpus = {corpus} AND d.status = 'indexed' AND d.text_sha256 = new.text_sha256
            WHERE EXISTS (SELECT FROM {staying} s WHERE s.uri = d.uri)
        UNION
        SELECT new.uri FROM pg_temp.near_new new JOIN documents d
            ON d.corpus = {corpus} AND d.status = 'indexed' AND d.bands && new.bands
            WHERE EXISTS (SELECT FROM {staying} s WHERE s.uri = d.uri);
    ANALYZE pg_temp.near_suspects;
"""
_BATCH = """
    SELECT new.uri, new.text_sha256, new.signature, new.bands
    FROM pg_temp.near_suspects JOIN pg_temp.near_new new USING (uri)
    WHERE uri > %s ORDER BY uri LIMIT %s
"""
_CANDIDATES = """
    SELECT uri, text_sha256, signature FROM pg_temp.near_kept
        WHERE text_sha256 = %(text)s
           OR uri IN (SELECT uri FROM pg_temp.near_kept_bands WHERE band = ANY(%(bands)s))
    UNION ALL
    SELECT d.uri, d.text_sha256, coalesce(d.signature, '') FROM documents d
        WHERE d.corpus = %(corpus)s AND d.status = 'indexed' AND (d.text_sha256 = %(text)s OR d.bands && %(bands)s)
          AND EXISTS (SELECT FROM {staying} s WHERE s.uri = d.uri)
"""
_KEEP = """
    WITH kept AS (INSERT INTO pg_temp.near_kept
        SELECT uri, text_sha256, signature FROM pg_temp.near_new WHERE uri = %(uri)s RETURNING uri)
    INSERT INTO pg_temp.near_kept_bands
        SELECT unnest(new.bands), new.uri FROM pg_temp.near_new new WHERE new.uri = %(uri)s
"""


@dataclass(frozen=True)
class Row:
    """A new document, as far as copies go; `signature` and `bands` are those of near_duplicates.py."""

    uri: str
    text_sha256: str
    signature: bytes
    bands: Sequence[int]


@dataclass(frozen=True)
class Copy:
    """A new document that repeats another one, which is kept; `exact` where the texts are equal."""

    uri: str
    same_as: str
    similarity: float
    exact: bool


def copies(
    connection: Connection, corpus: str, rows: Iterable[Row], threshold: float, staying: str = "staying"
) -> Iterator[Copy]:
    """Yield the new documents that repeat one of the corpus that stays, or a new one that is kept, in URI order.

    Each is compared with what stays and with what was kept before it, and names the most similar (of equals the first
    URI). A kept document is never a copy itself. `staying` is a table (uri text primary key) of the documents that the
    run leaves as they are. The temporary tables live until the last copy was taken.
    """
    for table in _TABLES:
        connection.execute(sql.SQL("DROP TABLE IF EXISTS pg_temp.{}").format(sql.Identifier(table)))
    connection.execute(_CREATE)
    with connection.cursor() as cursor, cursor.copy("COPY pg_temp.near_new FROM STDIN") as stream:
        for row in rows:
            stream.write_row((row.uri, row.text_sha256, row.signature, list(row.bands)))
    stays = sql.Identifier(staying)
    connection.execute(sql.SQL(_SUSPECTS).format(corpus=sql.Literal(corpus), staying=stays))
    candidates = sql.SQL(_CANDIDATES).format(staying=stays)
    last = ""
    while batch := connection.execute(_BATCH, (last, _SOME)).fetchall():
        for new in batch:
            given = {"text": new["text_sha256"], "bands": new["bands"], "corpus": corpus}
            near = connection.execute(candidates, given).fetchall()
            if (copy := _nearest(new, near, threshold)) is None:
                connection.execute(_KEEP, {"uri": new["uri"]})
            else:
                yield copy
        last = batch[-1]["uri"]
    for table in _TABLES:
        connection.execute(sql.SQL("DROP TABLE pg_temp.{}").format(sql.Identifier(table)))


def _nearest(new: dict[str, Any], candidates: list[dict[str, Any]], threshold: float) -> Copy | None:
    """Return what a document repeats: the most similar candidate at or above the threshold."""
    scored = [
        (1.0 if other["text_sha256"] == new["text_sha256"] else similarity(new["signature"], other["signature"]), other)
        for other in candidates
        if other["uri"] != new["uri"]
    ]
    equal = [(score, other) for score, other in scored if other["text_sha256"] == new["text_sha256"]]
    near = equal or [(score, other) for score, other in scored if threshold < 1 and score >= threshold]
    if not near:
        return None
    best = max(score for score, _other in near)
    return Copy(new["uri"], min(other["uri"] for score, other in near if score == best), best, bool(equal))
