"""Recorded requests as rows that can be checked and compared: reads `requests`, `feedback_thumbs`, `index_versions`.

Only what is compared is taken; a question's text serves the checks and the guess of its language and goes no further.
Vectors of two embedders cannot be compared, so every row says which embedder made its vector. Writes nothing.
"""

import hashlib
import math
from collections.abc import Iterator
from datetime import datetime
from typing import Any, LiteralString

import numpy
from psycopg import sql

from tasks.database import Connection
from tasks.serving.refusals import LEFT

Row = dict[str, Any]
_FETCH = 5_000
_SURE = 0.9  # of a language, by its classifier: below it a short question may be anything
_LEAST_LETTERS = 20

_SELECT = """
    SELECT r.id, r.created_at, r.kind, r.question, coalesce(nullif(r.key_name, ''), r.client) AS client, r.best_score,
        CASE WHEN r.error IS DISTINCT FROM {left} THEN r.latency_ms END AS latency_ms,
        r.error IS NOT NULL AND r.error <> {left} AS failed,
        CASE WHEN r.kind = 'chat' AND r.error IS NULL THEN length(r.answer) END AS answer_length,
        CASE WHEN r.error IS NULL THEN r.prompt_tokens + r.completion_tokens END AS tokens,
        CASE WHEN r.kind = 'chat' AND r.error IS NULL THEN r.refused END AS refused,
        r.grounded, r.retrieval_ms IS NOT NULL AND r.best_score IS NULL AS nothing_found, r.embedding, coalesce(i.embedder, '') AS embedder, f.rating
    FROM requests r
    LEFT JOIN index_versions i ON i.version = r.index_version
    LEFT JOIN (
        SELECT DISTINCT ON (request_id) request_id, rating FROM feedback_thumbs
        WHERE created_at >= %(since)s ORDER BY request_id, created_at DESC
    ) f ON f.request_id = r.id
    WHERE r.created_at >= %(since)s AND r.created_at < %(until)s AND {condition}
    ORDER BY {order} LIMIT {most}
"""


def count(connection: Connection, since: datetime, until: datetime, releases: list[int] | None) -> int:
    """Return how many requests of a time were recorded."""
    row = connection.execute(
        sql.SQL(
            "SELECT count(*) AS rows FROM requests r WHERE r.created_at >= %(since)s AND r.created_at < %(until)s AND {}"
        ).format(_of(releases)),
        {"since": since, "until": until, "releases": releases},
    ).fetchone()
    return int(row["rows"]) if row else 0


def rows(connection: Connection, since: datetime, until: datetime, releases: list[int] | None, most: int) -> list[Row]:
    """Return requests of a time in order of time: all of them, or a fixed sample of `most`.

    `releases` keeps those that one of these releases answered, and those that no release did; None keeps all.
    """
    # A sample by a digest of the id is the same at every try, and even over the time.
    query = sql.SQL(_SELECT).format(
        left=sql.Literal(LEFT), condition=_of(releases), order=sql.SQL("md5(r.id::text)"), most=sql.Literal(most)
    )
    given = {"since": since, "until": until, "releases": releases}
    languages = _Languages()
    with connection.cursor(name="recorded", binary=True) as cursor:  # a cursor of the server: not all rows at once
        cursor.itersize = _FETCH
        cursor.execute(query, given)
        found = [_row(row, languages) for row in _each(cursor)]
    return sorted(found, key=lambda row: (row["at"], row["id"]))


def _each(cursor: Any) -> Iterator[Row]:
    yield from cursor


def _of(releases: list[int] | None) -> sql.SQL:
    # A request that failed before its release was chosen has none; it belongs to whatever was live.
    text: LiteralString = "true" if releases is None else "(r.release = ANY(%(releases)s) OR r.release IS NULL)"
    return sql.SQL(text)


def _row(row: Row, languages: "_Languages") -> Row:
    """Return plain values; what is not finite is no figure."""
    vector = row.pop("embedding")
    if vector is not None:
        vector = numpy.asarray(getattr(vector, "to_numpy", lambda: vector)(), dtype=numpy.float32)
    rating = row.pop("rating")
    question = row["question"]
    return row | {
        "id": str(row["id"]),
        "at": row.pop("created_at").timestamp(),
        "client": _hash(row["client"]),
        "asked": _hash(question),
        "question_length": len(question),
        # A search that found nothing found nothing good: as far away as a cosine can be.
        "best_score": -1.0 if row["nothing_found"] else _finite(row["best_score"]),
        "latency_ms": _finite(row["latency_ms"]),
        "grounded": _finite(row["grounded"]),
        "negative": None if rating is None else rating == "down",
        "language": languages.of(question),
        "vector": vector,
        "embedding_norm": None if vector is None else float(numpy.linalg.norm(vector)),
        "embedder": (row["embedder"], 0 if vector is None else len(vector)),
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), signed=True)


class _Languages:
    """Guesses languages, each question once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, question: str) -> str:
        """Return the language of a question, or nothing where it is too short to be sure."""
        if question not in self._known:
            self._known[question] = self._guess(question)
        return self._known[question]

    @staticmethod
    def _guess(question: str) -> str:
        from tasks.screening.writing import classified

        if sum(map(str.isalpha, question)) < _LEAST_LETTERS:
            return ""
        language, sure = classified(question[:1_000])
        return language if sure >= _SURE else ""
