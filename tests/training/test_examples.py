"""Where examples come from, and the split that never leaks a source."""

import json
from pathlib import Path

import pytest

from tasks.errors import DataError
from tasks.storage import Storage
from tasks.training.examples import Candidate, Message, read, split


def candidates(sources: int, rows: int) -> list[Candidate]:
    turns = [Message(role="user", content="q"), Message(role="assistant", content="a")]
    return [
        Candidate(id=f"s{s}r{r}", messages=turns, source=f"s{s}", origin="jsonl")
        for s in range(sources)
        for r in range(rows)
    ]


@pytest.mark.parametrize(("sources", "rows", "train", "held_out"), [(30, 5, 60, 20), (2, 9, 4, 4), (50, 1, 10, 30)])
def test_no_source_is_on_both_sides(sources: int, rows: int, train: int, held_out: int) -> None:
    found = candidates(sources, rows)
    chosen = split(found, train, held_out, 4)
    sides = {side: {c.source for c in chosen if c.split == side} for side in ("train", "held_out")}
    assert sides["train"]
    assert sides["held_out"]
    assert not sides["train"] & sides["held_out"]
    assert len([c for c in chosen if c.split == "train"]) <= train
    assert len([c for c in chosen if c.split == "held_out"]) <= held_out
    for source in {c.source for c in chosen}:
        assert sum(c.source == source for c in chosen) <= 4
    assert split(found[::-1], train, held_out, 4) == chosen, "the order of the input does not matter"


def test_training_rows_come_from_all_sources() -> None:
    chosen = split(candidates(20, 10), 12, 8, 10)
    assert len({c.source for c in chosen if c.split == "train"}) == 12


def test_one_source_cannot_be_split() -> None:
    with pytest.raises(DataError, match="at least two sources"):
        split(candidates(1, 50), 10, 10, 50)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return Storage()


def line(**changes: object) -> str:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    return json.dumps({"messages": turns} | changes)


def test_a_file_of_messages(tmp_path: Path, storage: Storage) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(line(id="one", source="book") + "\n\n" + line() + "\n", encoding="utf-8")
    first, second = read(str(path), storage)
    assert (first.id, first.source, first.origin) == ("jsonl:one", "book", "jsonl")
    assert second.source == "q", "without a source, rows with the same question stay together"


def test_wrong_lines_are_named(tmp_path: Path, storage: Storage) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(["{", line(mesages=[]), line(messages=[]), line(id="a"), line(id="a")]), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(str(path), storage)
    for told in ("line 1:", "line 2: mesages", "line 3: messages", "line 5: the id 'a' was used before"):
        assert told in str(caught.value)
    assert "line 4" not in str(caught.value)


@pytest.mark.parametrize("reference", ["nothing.jsonl", "docstring:stdlib", "empty.jsonl"])
def test_sources_that_cannot_be_read(reference: str, tmp_path: Path, storage: Storage) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError):
        read(str(tmp_path / reference) if reference.endswith(".jsonl") else reference, storage)
