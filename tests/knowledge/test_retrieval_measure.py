"""Measuring an index version with golden questions, against a real Postgres."""

import hashlib
import time
from typing import Any

import numpy as np
import pytest
from psycopg import sql

from tasks.database import Connection, connect, migrate
from tasks.knowledge import index_tables
from tasks.knowledge import measure as measuring
from tasks.knowledge.measure import MEASURES, Asking, measure
from tasks.knowledge.retrieval import GoldenQuestion
from tasks.knowledge.search import Hit, search

pytestmark = pytest.mark.integration
ABOUT = {"fingerprint": "t", "corpus": "t", "corpus_sha256": "t", "embedder": "t", "dimensions": 16}
CHUNKS = 3_000


@pytest.fixture(scope="module")
def url(new_database: Any) -> str:
    """A database with one version of 3,000 chunks: document dN has the Nth vector, and its number as a word."""
    found = str(new_database("measure"))
    migrate(found)
    rows = [
        {
            "chunk_id": hashlib.sha256(str(number).encode()).hexdigest()[:32], "document_uri": f"d{number}", "ordinal": 0,
            "title": "T", "text": f"word{number}", "tokens": 1, "start": 0, "end": 5, "chunk_sha256": "0", "embedding": vector,
        }
        for number, vector in enumerate(vectors())
    ]  # fmt: skip
    with connect(found) as connection:
        version = index_tables.begin(connection, "r", ABOUT)
        index_tables.replace_documents(connection, version, [], rows)
        index_tables.build_indexes(connection, version)
    return found


def vectors() -> Any:
    return np.random.default_rng(3).normal(size=(CHUNKS, 16)).astype(np.float32)


def asked(connection: Any, asking: Asking | None = None, **documents: str) -> Any:
    """Measure questions whose vector is that of the chunk they are named after (q7: d7)."""
    questions = [GoldenQuestion(name, f"word{name[1:]}", frozenset({uri})) for name, uri in documents.items()]
    known = vectors()
    version = index_tables.get(connection, 1)
    return measure(connection, version, questions, lambda q: known[int(q.id[1:])], {"copy": "d3"}, asking)


def test_every_measure_has_its_mean_and_interval(url: str) -> None:
    with connect(url) as connection:
        found = asked(connection, q1="d1", q2="d2", q3="copy", q4="not there")
    assert found.means == dict.fromkeys(MEASURES, 0.75) | {"ann_recall": 1.0}
    assert set(found.intervals) == set(MEASURES)
    interval = found.intervals["recall_at_5"]
    assert interval.low < interval.value == 0.75 < interval.high == 1
    assert 0 < found.latency["p50_ms"] <= found.latency["p95_ms"]
    first = found.questions[0]
    assert (first["id"], first["found"][0], first["recall_at_1"], first["hits"][0]["score"]) == ("q1", "d1", 1, 1.0)


def test_questions_are_asked_as_the_assistant_asks(url: str) -> None:
    with connect(url) as connection:
        assert asked(connection, q1="d9").means["mrr"] == 0
        by_words = asked(connection, Asking(mode="text"), q9="d9")
        assert by_words.questions[0]["found"] == ["d9"] and by_words.means["ann_recall"] == 1


def test_a_search_as_it_is_served_is_timed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[int] = []

    def slow(connection: Any, version: int, vector: Any, k: int, **options: Any) -> list[Hit]:
        asked_for.append(k)
        if k == measuring.DEPTH:
            time.sleep(0.2)
        return search(connection, version, vector, k, **options)

    monkeypatch.setattr(measuring, "search", slow)
    with connect(url) as connection:
        found = asked(connection, q1="d1")
    assert asked_for == [measuring.SERVED, measuring.DEPTH]
    assert found.latency["p95_ms"] < 200


def thin_graph(connection: Connection, version: index_tables.Version) -> None:
    """Build the version's HNSW index anew, with too few ways."""
    hnsw = sql.Identifier(f"{version.table_name}_hnsw")
    connection.execute(sql.SQL("DROP INDEX {}").format(hnsw))
    connection.execute(
        sql.SQL(
            "CREATE INDEX {} ON {} USING hnsw (embedding vector_cosine_ops) WITH (m = 2, ef_construction = 4)"
        ).format(hnsw, version.table)
    )


def test_ef_changes_what_hnsw_finds(url: str) -> None:
    with connect(url) as connection:
        version = index_tables.get(connection, 1)
        thin_graph(connection, version)
        questions = {f"q{number}": f"d{number}" for number in range(40)}
        found = [asked(connection, Asking(ef=ef), **questions).means["ann_recall"] for ef in (40, 80, 400)]
        assert found == sorted(found) and found[0] < found[2]
        connection.rollback()


def test_an_index_that_leaves_chunks_out_is_seen(url: str) -> None:
    with connect(url) as connection:
        version = index_tables.get(connection, 1)
        questions = {f"q{number}": f"d{number}" for number in range(40)}
        assert asked(connection, **questions).means["ann_recall"] > 0.99
        thin_graph(connection, version)
        assert asked(connection, **questions).means["ann_recall"] < 0.6, "a graph with too few ways"
        connection.rollback()
