"""Measure an index version with the golden questions.

Reads the version's table. Writes nothing. Questions are asked in the mode that the assistant asks in. The HNSW index
is compared with an exact scan of the same table on the same questions (`ann_recall`), because an index that
under-returns looks like bad documents.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.database import Connection
from tasks.evaluation.paired import Interval
from tasks.knowledge import index_tables
from tasks.knowledge.bootstrap import intervals
from tasks.knowledge.index_tables import Version
from tasks.knowledge.retrieval import (
    GoldenQuestion,
    found_as_near,
    graded,
    ndcg_at,
    ranked_documents,
    recall_at,
    reciprocal_rank,
)
from tasks.knowledge.search import EF_SEARCH, Filters, Hit, Mode, Reranks, candidates, search
from tasks.settings import Settings

DEPTH = 100  # chunks looked at; they hold at least ten documents in any corpus but one of very long ones
NEIGHBOURS = 10
SERVED = 5  # chunks of the search that is timed: what the API and `search` return unless asked for more
MEASURES = ("recall_at_1", "recall_at_5", "recall_at_10", "ndcg_at_10", "mrr", "ann_recall")
_SHOWN = 5


@dataclass(frozen=True)
class Measurement:
    """Means over the questions with their 95 % intervals, what each question found, and how long searches took.

    Latencies (`p50_ms`, `p95_ms`, a search for SERVED chunks, reranker included) stand apart: they are no property of the index.
    """

    means: dict[str, float]
    questions: list[dict[str, Any]]
    intervals: dict[str, Interval] = field(default_factory=dict)
    latency: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Asking:
    """How questions are asked: as the assistant asks them."""

    mode: Mode = "vector"
    ef: int = EF_SEARCH
    reranker: Reranks | None = None


def asking(settings: Settings) -> Asking:
    """Return how the settings of a corpus ask."""
    from tasks.knowledge.reranker import load_reranker

    return Asking(settings.search_mode, settings.search_ef, load_reranker(settings) if settings.reranker else None)


def measure(
    connection: Connection,
    version: Version,
    questions: Sequence[GoldenQuestion],
    vector_of: Callable[[GoldenQuestion], Any],
    same_as: Mapping[str, str],
    asking: Asking | None = None,
) -> Measurement:
    """Return recall@1, 5 and 10, nDCG@10, MRR and the recall of HNSW of `version`, over the questions.

    `same_as` maps a document that was left out as a copy to the one that stands for it.
    """
    asked = asking or Asking()
    rows: list[dict[str, Any]] = []
    for question in questions:
        vector = vector_of(question)
        begun = time.perf_counter()
        _hits(connection, version, vector, SERVED, question.question, asked)
        seconds = time.perf_counter() - begun
        hits = _hits(connection, version, vector, DEPTH, question.question, asked)
        found, exact = _nearest(connection, version, vector, asked.ef)
        scored = _scored(question, hits, same_as) | {"ann_recall": found_as_near(found, exact)}
        rows.append(scored | {"milliseconds": round(seconds * 1000, 3)})
    known = intervals(rows, MEASURES)
    return Measurement({name: known[name].value for name in MEASURES}, rows, known, _latency(rows))


def _hits(connection: Connection, version: Version, vector: Any, k: int, text: str, asked: Asking) -> list[Hit]:
    with index_tables.scan(connection, exact=False):
        return search(
            connection, version.version, vector, k, text=text, mode=asked.mode, ef=asked.ef, reranker=asked.reranker
        )


def _nearest(connection: Connection, version: Version, vector: Any, ef: int) -> tuple[list[float], list[float]]:
    """Return the scores of the nearest chunks, as HNSW finds them with `ef` and as an exact scan does.

    The index itself is asked, with no more rows than are compared: `search` may look at more candidates than `ef`.
    """
    scores = []
    for exact in (False, True):
        with index_tables.scan(connection, exact=exact):
            rows = candidates.nearest(connection, version, vector, NEIGHBOURS, Filters(), ef)
            scores.append([row["score"] for row in rows])
    return scores[0], scores[1]


def _latency(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    import numpy

    took = [row["milliseconds"] for row in rows]
    return {f"p{share}_ms": float(numpy.percentile(took, share)) for share in (50, 95)}


def _scored(question: GoldenQuestion, hits: Sequence[Hit], same_as: Mapping[str, str]) -> dict[str, Any]:
    relevant = graded(question, same_as)
    ranking = ranked_documents(hit.document_uri for hit in hits)
    return {
        "id": question.id,
        "question": question.question,
        "documents": sorted(question.documents),
        "found": ranking[:NEIGHBOURS],
        "hits": [
            {"document": hit.document_uri, "ordinal": hit.ordinal, "score": round(hit.score, 4)}
            for hit in hits[:_SHOWN]
        ],
        **{f"recall_at_{k}": recall_at(ranking, relevant, k) for k in (1, 5, 10)},
        "ndcg_at_10": ndcg_at(ranking, relevant, 10),
        "mrr": reciprocal_rank(ranking, relevant),
    }
