"""Golden questions, and how well a ranking answers them.

Reads a file of golden questions (JSON lines: `id`, `question`, `documents`). Writes nothing. Relevance is
binary and by document: hits are reduced to their documents, each at its best place, before anything is
counted. Fails with `DataError` when the file is missing or malformed.
"""

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import DataError
from tasks.settings import repository_path
from tasks.storage import Storage


@dataclass(frozen=True)
class GoldenQuestion:
    """A question, and the documents that answer it."""

    id: str
    question: str
    documents: frozenset[str]


def load_questions(place: str, storage: Storage) -> list[GoldenQuestion]:
    """Return the golden questions of a file or `s3://` object, in its order. Raises DataError naming the line."""
    if place.startswith("s3://"):
        body = storage.get_bytes(place)
    else:
        path = repository_path(place)
        if not path.is_file():
            raise DataError(
                f"expected golden questions at {place}, found no file. Next: write one JSON object a line "
                '({"id", "question", "documents": [URI]}), or correct MILLRACE_GOLDEN_QUESTIONS.'
            )
        body = Path(path).read_bytes()
    questions = [_question(place, number, line) for number, line in enumerate(body.splitlines(), 1) if line.strip()]
    if not questions or len({question.id for question in questions}) != len(questions):
        raise DataError(
            f"expected questions with different ids in {place}, found {len(questions)} lines. Next: add or rename."
        )
    return questions


def _question(place: str, number: int, line: bytes) -> GoldenQuestion:
    try:
        row = json.loads(line)
        identity, question, documents = row["id"], row["question"], row["documents"]
        good = isinstance(identity, str) and isinstance(question, str) and question.strip() != ""
        good = (
            good and isinstance(documents, list) and len(documents) > 0 and all(isinstance(d, str) for d in documents)
        )
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise DataError(
            f'expected {{"id", "question", "documents": [URI, ...]}} in line {number} of {place}, '
            f"found {line[:120]!r}. Next: correct that line."
        )
    return GoldenQuestion(identity, question, frozenset(documents))


def ranked_documents(hits: Iterable[str]) -> list[str]:
    """Return the documents of a ranking of chunks, each at its first place."""
    return list(dict.fromkeys(hits))


def recall_at(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Return the share of relevant documents (at most `k` can be found) among the first `k`."""
    return len(set(ranking[:k]) & set(relevant)) / min(len(relevant), k)


def ndcg_at(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Return the discounted gain of the first `k` places, as a share of the best there could be."""
    gain = sum(1 / math.log2(place + 2) for place, document in enumerate(ranking[:k]) if document in relevant)
    best = sum(1 / math.log2(place + 2) for place in range(min(len(relevant), k)))
    return gain / best


def reciprocal_rank(ranking: Sequence[str], relevant: Collection[str]) -> float:
    """Return 1 / the place of the first relevant document; 0 when there is none."""
    return next((1 / place for place, document in enumerate(ranking, start=1) if document in relevant), 0.0)


def found_as_near(found: Sequence[float], exact: Sequence[float]) -> float:
    """Return the share of an approximate search's scores that reach the last of the exact ones (1 when there are none).

    Scores are compared, not chunks: of two chunks with the same text either is right.
    """
    if not exact:
        return 1.0
    return sum(score >= min(exact) - 1e-6 for score in found[: len(exact)]) / len(exact)


def require_known(questions: Iterable[GoldenQuestion], uris: Collection[str], place: str) -> None:
    """Refuse golden questions none of whose documents are in the corpus. Raises DataError."""
    lost = [question for question in questions if not question.documents & set(uris)]
    if lost:
        first = ", ".join(f"{question.id} ({', '.join(sorted(question.documents))})" for question in lost[:3])
        raise DataError(
            f"expected each golden question of {place} to name a document of the corpus, found {len(lost)} that do not: "
            f"{first}. Next: correct the questions, or set MILLRACE_GOLDEN_QUESTIONS to a file about this corpus."
        )
