"""Golden questions, and how well a ranking answers them.

Reads a file of golden questions (JSON lines: `id`, `question`, `documents`, `relevance` where some answer better
than others, and the `answer` that models are measured by). Writes nothing. Relevance is by document: hits are reduced to
their documents, each at its best place, before anything is counted; recall and MRR take every named document alike, nDCG
takes its grade. Fails with `DataError` when the file is missing or malformed.
"""

import json
import math
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tasks.errors import DataError
from tasks.settings import repository_path
from tasks.storage import Storage

MOST_GRADE = 3


@dataclass(frozen=True)
class GoldenQuestion:
    """A question, the documents that answer it, how well those of them do that are graded (1 where not), and an answer."""

    id: str
    question: str
    documents: frozenset[str]
    relevance: Mapping[str, int] = field(default_factory=dict, hash=False)
    answer: str = ""  # without one, answers of models cannot be compared with anything


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
        found = GoldenQuestion(
            row["id"],
            row["question"],
            frozenset(_strings(row["documents"])),
            dict(row.get("relevance") or {}),
            row.get("answer") or "",
        )
        good = all(isinstance(text, str) for text in (found.id, found.question, found.answer))
        good = good and found.question.strip() != ""
        good = good and set(found.relevance) <= found.documents
        good = good and all(type(grade) is int and 1 <= grade <= MOST_GRADE for grade in found.relevance.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise DataError(
            f'expected {{"id", "question", "documents": [URI, ...]}} and at most "relevance": {{URI: 1 to {MOST_GRADE}}} of '
            f"those documents in line {number} of {place}, found {line[:120]!r}. Next: correct that line."
        )
    return found


def _strings(value: object) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise ValueError("expected a list of texts")
    return value


def repeated(questions: Iterable[GoldenQuestion]) -> list[str]:
    """Return a sentence for each question that is asked again in other letters: it counts twice in every mean."""
    first: dict[str, str] = {}
    found = []
    for question in questions:
        words = " ".join(question.question.casefold().split())
        before = first.setdefault(words, question.id)
        if before != question.id:
            found.append(f"golden question {question.id} asks the same as {before}")
    return found


def graded(question: GoldenQuestion, same_as: Mapping[str, str]) -> dict[str, int]:
    """Return the grades of a question's documents, a copy's as those of the document that stands for it."""
    grades: dict[str, int] = {}
    for uri in sorted(question.documents):
        stands = same_as.get(uri, uri)
        grades[stands] = max(grades.get(stands, 0), question.relevance.get(uri, 1))
    return grades


def ranked_documents(hits: Iterable[str]) -> list[str]:
    """Return the documents of a ranking of chunks, each at its first place."""
    return list(dict.fromkeys(hits))


def recall_at(ranking: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Return the share of relevant documents (at most `k` can be found) among the first `k`."""
    return len(set(ranking[:k]) & set(relevant)) / min(len(relevant), k)


def ndcg_at(ranking: Sequence[str], relevant: Collection[str] | Mapping[str, int], k: int) -> float:
    """Return the discounted gain of the first `k` places, as a share of the best there could be.

    A document gains 2 ** grade - 1 (1 where it has no grade), divided by log2 of its place + 1 (Burges et al., ICML 2005).
    """
    grades = dict(relevant) if isinstance(relevant, Mapping) else dict.fromkeys(relevant, 1)

    def discounted(found: Iterable[int]) -> float:
        return sum((math.pow(2, grade) - 1) / math.log2(place + 2) for place, grade in enumerate(found))

    best = discounted(sorted(grades.values(), reverse=True)[:k])
    return discounted(grades.get(document, 0) for document in ranking[:k]) / best


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


def require_known(
    questions: Iterable[GoldenQuestion], known: Container[str] | Callable[[str], bool], place: str
) -> list[str]:
    """Refuse golden questions none of whose documents are in the corpus. Raises DataError.

    `known` holds the URIs of the corpus, or tells of one whether it is there (so that nobody needs to hold a million).
    Returns a sentence for each document that is missing while others of its question are there.
    """
    there = known if callable(known) else known.__contains__
    lost, missing = [], []
    for question in questions:
        absent = sorted(uri for uri in question.documents if not there(uri))
        if len(absent) == len(question.documents):
            lost.append(f"{question.id} ({', '.join(absent)})")
        else:
            missing += [f"golden question {question.id} names {uri}, which is not in the corpus" for uri in absent]
    if lost:
        raise DataError(
            f"expected each golden question of {place} to name a document of the corpus, found {len(lost)} that do not: "
            f"{', '.join(lost[:3])}. Next: correct the questions, or set MILLRACE_GOLDEN_QUESTIONS to a file about this corpus."
        )
    return missing
