"""Golden questions and the measures, against values worked out by hand."""

import math
from pathlib import Path

import pytest

from tasks.errors import DataError
from tasks.knowledge.retrieval import (
    GoldenQuestion,
    found_as_near,
    load_questions,
    ndcg_at,
    ranked_documents,
    recall_at,
    reciprocal_rank,
    require_known,
)
from tasks.storage import Storage

STORAGE = Storage("http://127.0.0.1:9")


def test_documents_are_ranked_at_their_first_place() -> None:
    assert ranked_documents(["b", "a", "b", "c", "a"]) == ["b", "a", "c"]


def test_measures_by_hand() -> None:
    ranking, relevant = ["x", "a", "y", "b", "z", "c"], {"a", "b", "c"}
    assert recall_at(ranking, relevant, 5) == pytest.approx(2 / 3)
    assert recall_at(ranking, relevant, 2) == pytest.approx(1 / 2), "of the two that could be found"
    assert reciprocal_rank(ranking, relevant) == 0.5
    best = 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg_at(ranking, relevant, 10) == pytest.approx(
        (1 / math.log2(3) + 1 / math.log2(5) + 1 / math.log2(7)) / best
    )


def test_measures_at_the_ends() -> None:
    assert (recall_at(["a"], {"a"}, 5), ndcg_at(["a"], {"a"}, 10), reciprocal_rank(["a"], {"a"})) == (1, 1, 1)
    assert (recall_at([], {"a"}, 5), ndcg_at([], {"a"}, 10), reciprocal_rank(["b"], {"a"})) == (0, 0, 0)


def test_equal_scores_count_as_found() -> None:
    assert found_as_near([0.9, 0.8, 0.8], [0.9, 0.8, 0.8]) == 1
    assert found_as_near([0.9, 0.8, 0.1], [0.9, 0.8, 0.8]) == pytest.approx(2 / 3)
    assert found_as_near([0.9], [0.9, 0.8]) == 0.5
    assert found_as_near([], []) == 1


def test_missing_file_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no file.*MILLRACE_GOLDEN_QUESTIONS"):
        load_questions(str(tmp_path / "none.jsonl"), STORAGE)


@pytest.mark.parametrize(
    "line",
    ["not json", "[]", '{"id": "a", "question": "q"}', '{"id": "a", "question": " ", "documents": ["d"]}',
     '{"id": "a", "question": "q", "documents": []}'],
)  # fmt: skip
def test_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "golden.jsonl"
    path.write_text('{"id": "g1", "question": "q", "documents": ["d"]}\n' + line + "\n")
    with pytest.raises(DataError, match="line 2"):
        load_questions(str(path), STORAGE)


def test_same_id_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    path.write_text('{"id": "g1", "question": "q", "documents": ["d"]}\n' * 2)
    with pytest.raises(DataError, match="different ids"):
        load_questions(str(path), STORAGE)


def test_questions_without_any_document_of_the_corpus_are_refused() -> None:
    known = GoldenQuestion("g1", "q", frozenset({"a", "gone"}))
    lost = GoldenQuestion("g2", "q", frozenset({"gone"}))
    require_known([known], {"a"}, "golden.jsonl")
    with pytest.raises(DataError, match=r"g2 \(gone\)"):
        require_known([known, lost], {"a"}, "golden.jsonl")
