"""Golden questions and the measures, against values worked out by hand."""

import math
from pathlib import Path

import pytest

from tasks.errors import DataError
from tasks.knowledge.retrieval import (
    GoldenQuestion,
    found_as_near,
    graded,
    load_questions,
    ndcg_at,
    ranked_documents,
    recall_at,
    reciprocal_rank,
    repeated,
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
     '{"id": "a", "question": "q", "documents": []}', '{"id": 1, "question": "q", "documents": ["d"]}',
     '{"id": "a", "question": "q", "documents": "d"}',
     '{"id": "a", "question": "q", "documents": ["d"], "relevance": {"e": 1}}',
     '{"id": "a", "question": "q", "documents": ["d"], "relevance": {"d": 0}}',
     '{"id": "a", "question": "q", "documents": ["d"], "relevance": {"d": true}}',
     '{"id": "a", "question": "q", "documents": ["d"], "relevance": ["d"]}'],
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


def test_grades_are_read(tmp_path: Path) -> None:
    path = tmp_path / "golden.jsonl"
    path.write_text('{"id": "g1", "question": "q", "documents": ["d", "e"], "relevance": {"e": 3}}\n')
    (question,) = load_questions(str(path), STORAGE)
    assert question == GoldenQuestion("g1", "q", frozenset({"d", "e"}), {"e": 3})
    assert graded(question, {}) == {"d": 1, "e": 3}
    assert graded(question, {"d": "f", "e": "f"}) == {"f": 3}, "two copies of one document are one answer"


def test_grades_weigh_in_ndcg_only() -> None:
    grades = {"a": 1, "b": 3}
    best = 7 + 1 / math.log2(3)
    assert ndcg_at(["a", "b"], grades, 10) == pytest.approx((1 + 7 / math.log2(3)) / best)
    assert ndcg_at(["b", "a"], grades, 10) == 1 == ndcg_at(["b"], grades, 1)
    assert recall_at(["a"], grades, 1) == 1 == reciprocal_rank(["a"], grades)


def test_repeated_questions_are_told() -> None:
    asked = [
        GoldenQuestion(name, text, frozenset("d")) for name, text in [("a", "Why?"), ("b", " why? "), ("c", "How?")]
    ]
    assert repeated(asked) == ["golden question b asks the same as a"]


def test_questions_without_any_document_of_the_corpus_are_refused() -> None:
    known = GoldenQuestion("g1", "q", frozenset({"a", "gone"}))
    lost = GoldenQuestion("g2", "q", frozenset({"gone"}))
    for there in ({"a"}, "a".__eq__):
        assert require_known([known], there, "golden.jsonl") == [
            "golden question g1 names gone, which is not in the corpus"
        ]
        with pytest.raises(DataError, match=r"found 1 that do not: g2 \(gone\)"):
            require_known([known, lost], there, "golden.jsonl")
