"""Curated files in their forms, and every way a line can be wrong."""

import json
from pathlib import Path

import pytest

from tasks.errors import DataError
from tasks.storage import Storage
from tasks.training.examples import read


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
    assert (first.id, first.source, first.origin) == ("curated:one", "book", "curated")
    assert first.provenance.items() >= {"file": "mine.jsonl", "line": 1, "made_by": "curated"}.items()
    assert second.source == "q", "without a source, rows with the same question stay together"
    assert second.provenance["line"] == 3


def test_preferences_and_texts(tmp_path: Path, storage: Storage) -> None:
    asked, good, bad = [{"role": "user", "content": "q"}], {"role": "assistant", "content": "a"}, "b"
    openai = {
        "input": {"messages": asked},
        "preferred_output": [good],
        "non_preferred_output": [good | {"content": bad}],
    }
    lines = [line(rejected=bad), json.dumps(openai), json.dumps({"text": "Some words.\u2028And more."}), line(), line()]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "more.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(line(source="x"), encoding="utf-8")
    first, plain, preferred, text, once, again = read(str(tmp_path), storage)
    assert (first.source, first.provenance["file"]) == ("x", "a.jsonl")
    assert (plain.messages, plain.rejected) == (preferred.messages, preferred.rejected)
    assert plain.row()["rejected"] == "b"
    assert (text.row()["text"], text.source) == ("Some words.\u2028And more.", "b/more.jsonl")
    assert "messages" not in text.row()
    assert once.id != again.id, "a copy has an id of its own, so that validation can name it"


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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            json.dumps({"messages": [{"role": "tool", "content": "q"}, {"role": "assistant", "content": "a"}]}),
            "messages.0.role",
        ),
        (line(text="x"), "one of messages, input with preferred_output"),
        (json.dumps({"input": {"messages": [{"role": "user", "content": "q"}]}}), "belong together"),
        (json.dumps({"text": "x", "rejected": "y"}), "rejected belongs to messages"),
        (json.dumps({"source": "x"}), "expected one of"),
    ],
)
def test_a_role_or_form_that_is_not_known(text: str, told: str, tmp_path: Path, storage: Storage) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1: ") as caught:
        read(str(path), storage)
    assert told in str(caught.value)
