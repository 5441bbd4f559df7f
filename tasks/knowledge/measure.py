"""Measure an index version with the golden questions.

Reads the version's table. Writes nothing. The HNSW index is compared with an exact scan of the same table
on the same questions (`ann_recall`), because an index that under-returns looks like bad documents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.database import Connection
from tasks.knowledge import index_tables
from tasks.knowledge.index_tables import Version
from tasks.knowledge.retrieval import (
    GoldenQuestion,
    found_as_near,
    ndcg_at,
    ranked_documents,
    recall_at,
    reciprocal_rank,
)
from tasks.knowledge.search import Hit, search

DEPTH = 100  # chunks looked at; they hold at least ten documents in any corpus but one of very long ones
NEIGHBOURS = 10
_SHOWN = 5


@dataclass(frozen=True)
class Measurement:
    """Means over the questions, and what each question found."""

    means: dict[str, float]
    questions: list[dict[str, Any]]


def measure(
    connection: Connection,
    version: Version,
    questions: Sequence[GoldenQuestion],
    vector_of: Callable[[GoldenQuestion], Any],
    same_as: Mapping[str, str],
) -> Measurement:
    """Return recall@5, nDCG@10, MRR and the recall of HNSW of `version`, over the questions.

    `same_as` maps a document that was left out as a copy to the one that stands for it.
    """
    rows = []
    for question in questions:
        vector = vector_of(question)
        with index_tables.scan(connection, exact=False):
            hits = search(connection, version.version, vector, DEPTH)
        with index_tables.scan(connection, exact=True):
            exact = search(connection, version.version, vector, NEIGHBOURS)
        rows.append(_scored(question, hits, exact, same_as))
    names = ("recall_at_5", "ndcg_at_10", "mrr", "ann_recall")
    return Measurement({name: sum(row[name] for row in rows) / len(rows) for name in names}, rows)


def _scored(
    question: GoldenQuestion, hits: Sequence[Hit], exact: Sequence[Hit], same_as: Mapping[str, str]
) -> dict[str, Any]:
    relevant = {same_as.get(uri, uri) for uri in question.documents}
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
        "recall_at_5": recall_at(ranking, relevant, 5),
        "ndcg_at_10": ndcg_at(ranking, relevant, 10),
        "mrr": reciprocal_rank(ranking, relevant),
        "ann_recall": found_as_near([hit.score for hit in hits], [hit.score for hit in exact]),
    }
