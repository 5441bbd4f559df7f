"""`index_recall`: what a search finds of what an exact scan finds, on real chunks, with and without filters, and how quickly.

A filter that few chunks pass is served by comparing these one by one, which finds all: the details tell which way each case went.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.index import database
from benchmarks.real_chunks import RealChunks, real_chunks
from benchmarks.result import Result
from tasks.database import Connection
from tasks.knowledge import index_tables
from tasks.knowledge.index_tables import Version
from tasks.knowledge.search import Filters, candidates, search

CHUNKS, QUESTIONS, K = 50_000, 400, 10
AT_40, AT_80 = 0.97, 0.99
_LOADED = 5_000  # rows of one load


@dataclass(frozen=True)
class Case:
    """One way to ask: what it is narrowed to, and which share of the chunks that is."""

    name: str
    where: Filters
    share: float


@dataclass(frozen=True)
class Found:
    """Recall@10 against exact, milliseconds of a search, and the way the searches went."""

    recall: float
    fewest: int
    p50: float
    p95: float
    way: str


def index_recall() -> Result:
    """Recall@10 of HNSW against exact on 50,000 real chunks, at ef_search 40 and 80, filters included."""
    return measured(CHUNKS, QUESTIONS)


def measured(count: int, questions: int) -> Result:
    """Measure on so many chunks, with so many questions that are in no index."""
    chunks, asked = real_chunks(count + questions).split(questions)
    with database() as connection:
        version = _indexed(connection, chunks)
        cases = _cases(chunks)
        found = {
            (case.name, ef): _asked(connection, version, chunks, asked, case, ef) for case in cases for ef in (40, 80)
        }
    worst = {ef: min(result.recall for (_name, at), result in found.items() if at == ef) for ef in (40, 80)}
    short = sum(result.fewest < K for result in found.values())
    return Result(
        figure=f"{worst[40]:.3f} at ef_search 40, {worst[80]:.3f} at 80 (the worst of {len(cases)} ways to ask)",
        bound=f"{AT_40:g}, {AT_80:g}",
        holds=worst[40] >= AT_40 and worst[80] >= AT_80 and not short,
        details=[
            f"{len(chunks.rows):,} chunks of {len({row['document_uri'] for row in chunks.rows}):,} files, {len(asked)} questions, "
            f"{chunks.embedder}",
            *(
                f"{case.name} ({case.share:.1%} of the chunks), ef_search {ef}: recall@{K} {found[case.name, ef].recall:.4f}, "
                f"p50 {found[case.name, ef].p50:.1f} ms, p95 {found[case.name, ef].p95:.1f} ms, {found[case.name, ef].way}"
                for case in cases
                for ef in (40, 80)
            ),
            f"ways in which a search returned fewer than {K}: {short}",
        ],
    )


def _indexed(connection: Connection, chunks: RealChunks) -> Version:
    dimensions = len(chunks.rows[0]["embedding"])
    about = {"fingerprint": "b", "corpus": "b", "corpus_sha256": "b", "embedder": "b", "dimensions": dimensions}
    version = index_tables.begin(connection, "recall", about)
    for start in range(0, len(chunks.rows), _LOADED):
        index_tables.replace_documents(connection, version, [], chunks.rows[start : start + _LOADED])
    index_tables.build_indexes(connection, version)
    connection.commit()
    return version


def _cases(chunks: RealChunks) -> list[Case]:
    packages = [row["metadata"]["package"] for row in chunks.rows]
    letters = [name[0] for name in packages]
    (tenth, tenth_share), (percent, percent_share) = nearest_to(0.1, packages), nearest_to(0.01, packages)
    # Few enough that most of what HNSW meets does not match, and too many to be compared one by one.
    quarter, quarter_share = nearest_to(0.25, letters, candidates.EXACT_ROWS + 1)
    python = Filters(metadata={"ending": ".py"})
    python_share = sum(row["metadata"]["ending"] == ".py" for row in chunks.rows) / len(packages)
    return [
        Case("no filter", Filters(), 1.0),
        Case("metadata, most", python, python_share),
        Case("URI prefix, a quarter", Filters(prefix=quarter), quarter_share),
        Case("metadata", Filters(metadata={"package": tenth}), tenth_share),
        Case("metadata, rare", Filters(metadata={"package": percent}), percent_share),
        Case("URI prefix", Filters(prefix=f"{tenth}/"), tenth_share),
    ]


def nearest_to(share: float, values: Sequence[str], least: int = 1) -> tuple[str, float]:
    """Return the value whose share is nearest to `share`, and that share, among those that are there at least so often if any is."""
    counts = Counter(values)
    often = {value: count for value, count in sorted(counts.items()) if count >= least} or counts
    value = min(often, key=lambda value: abs(often[value] / len(values) - share))
    return value, often[value] / len(values)


class _GivenUp(logging.Handler):
    """Counts the searches in which HNSW gave up (candidates tells it as its only debug line)."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.searches = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.searches += 1


@contextmanager
def given_up() -> Iterator[_GivenUp]:
    """Count the searches of the block in which HNSW gave up and what matches was compared one by one."""
    counter, level = _GivenUp(), candidates.log.level
    candidates.log.setLevel(logging.DEBUG)
    candidates.log.addHandler(counter)
    try:
        yield counter
    finally:
        candidates.log.removeHandler(counter)
        candidates.log.setLevel(level)


def _asked(connection: Connection, version: Version, chunks: RealChunks, asked: Any, case: Case, ef: int) -> Found:
    """Ask every question of one case; the truth is every chunk's score, computed here."""
    import numpy

    matching = _matching(chunks.rows, case.where)
    matrix = numpy.stack([chunks.rows[position]["embedding"] for position in matching])
    place = {chunks.rows[position]["chunk_id"]: number for number, position in enumerate(matching)}
    shares, fewest, took = [], K, []
    with given_up() as counter:
        for vector in asked:
            scores = matrix @ vector
            last = numpy.partition(scores, -K)[-K]
            begun = time.perf_counter()
            hits = search(connection, version.version, vector, K, where=case.where, ef=ef)
            took.append((time.perf_counter() - begun) * 1000)
            shares.append(sum(scores[place[hit.chunk_id]] >= last - 1e-6 for hit in hits) / K)
            fewest = min(fewest, len(hits))
    p50, p95 = (float(numpy.percentile(took, share)) for share in (50, 95))
    exact = case.where != Filters() and len(matching) <= candidates.EXACT_ROWS
    way = "one by one" if exact else f"HNSW, which gave up on {counter.searches} of {len(asked)}"
    return Found(float(numpy.mean(shares)), fewest, p50, p95, way)


def _matching(rows: Sequence[Mapping[str, Any]], where: Filters) -> list[int]:
    return [
        position
        for position, row in enumerate(rows)
        if row["document_uri"].startswith(where.prefix or "")
        and all(row["metadata"].get(name) == value for name, value in where.metadata.items())
    ]
