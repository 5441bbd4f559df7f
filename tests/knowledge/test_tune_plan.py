"""What a tune-index command says is checked before anything is read or built; nothing else is needed for that."""

import re
import shlex
from collections.abc import Iterator

import pytest

from tasks.errors import BadInput, OptionError
from tasks.evaluation.paired import Interval
from tasks.knowledge.measure import Asking, Measurement
from tasks.knowledge.tune_index import planned
from tasks.knowledge.tune_trial import HEAD, Combination, Tried, bounded
from tasks.settings import REPOSITORY, settings


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MILLRACE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setenv("MILLRACE_MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    settings.cache_clear()
    yield
    settings.cache_clear()


def test_the_documented_command_can_be_done() -> None:
    page = (REPOSITORY / "docs" / "knowledge.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python -m tasks tune-index (.*)$", page, re.MULTILINE)
    assert commands
    for command in commands:
        plan = planned(shlex.split(command))
        assert len(plan.combinations) == 6
        assert {mode for mode, _ef in plan.ways} == {"vector", "hybrid"}


def test_one_too_many_tokens_is_told_before_anything_is_built() -> None:
    with pytest.raises(BadInput, match="MILLRACE_CHUNK_TOKENS of at most 254"):
        planned(["--sizes", "128,255"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--size", "3"], "size"),
        (["--sizes", "small"], "--sizes with numbers"),
        (["--sizes", "3"], "tune-index"),
        (["--overlaps", "101"], "CHUNK_OVERLAP"),
        (["--ef", ""], "--ef with values"),
        (["--ef", "0"], "--ef with numbers from 1 to 1000"),
        (["--ef", "1001"], "--ef with numbers from 1 to 1000"),
        (["--modes", "vector,hybird"], "Did you mean 'hybrid'"),
        (["--chunkers", "recursive,sentences"], "chunker"),
        (["--chunkers", ","], "--chunkers with values"),
        (["--embedders", "package:no_such_package/model"], "no_such_package"),
        (["--documents", "abc"], "--documents with numbers from 1"),
        (["--documents", "0"], "--documents with numbers from 1"),
        (["--documents", "1,2"], "one number of --documents"),
        (["--corpus", "no_such_corpus"], "no_such_corpus"),
    ],
)
def test_a_wrong_command_is_told(arguments: list[str], told: str) -> None:
    with pytest.raises(BadInput, match=re.escape(told)) as caught:
        planned(arguments)
    assert "Next:" in str(caught.value)
    assert isinstance(caught.value, OptionError) or arguments[0] not in ("--ef", "--modes", "--documents")


def test_what_is_said_twice_is_tried_once() -> None:
    plan = planned(["--sizes", "128,128", "--ef", "40,40,80"])
    assert [one.size for one in plan.combinations] == [128]
    assert plan.ways == [("vector", 40), ("vector", 80)]


def test_a_row_tells_embedders_of_one_name_apart_and_stands_below_its_head() -> None:
    rate = Interval(0.5, 0.4, 0.6)
    found = Measurement(
        {"mrr": 0.5, "ann_recall": 0.987}, [], {"recall_at_5": rate, "ndcg_at_10": rate}, {"p50_ms": 3.0}
    )
    rows = [
        str(Tried(Combination("recursive", 128, 0, embedder), Asking(ef=40), 10, 2, found))
        for embedder in ("package:one/model", "package:two/model")
    ]
    assert rows[0] != rows[1] and rows[0].endswith("package:one/model")
    assert HEAD.index("embedder", HEAD.index("p50")) == rows[0].index("package:one/model")
    end = HEAD.index("ann_recall") + len("ann_recall")
    assert rows[0][:end].endswith("0.987")


def test_batches_are_bounded_by_number_and_by_size() -> None:
    assert list(bounded([1, 1, 1, 9, 1, 2], lambda size: size, 3, 8)) == [[1, 1, 1], [9], [1, 2]]
    assert list(bounded([], lambda size: size, 3, 8)) == []
