"""Each rule of the documents and chunks suites: the row that breaks it, by name; and the adapter itself."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import DataError
from tasks.validation import rules, validate

DOCUMENT: dict[str, Any] = {"uri": "file:a.md", "title": "A", "text": "A word.\n\tTwo\f lines.", "invalid_bytes": 0}
CHUNK: dict[str, Any] = {
    "document_uri": "file:a.md",
    "ordinal": 0,
    "text": "A word.",
    "tokens": 200,
    "token_limit": 200,
    "start": 0,
    "end": 7,
}
BAD_DOCUMENTS = {
    "uri_is_present": {"uri": None},
    "text_is_utf8": {"invalid_bytes": 1},
    "text_has_no_nul": {"text": "a\x00b"},
    "text_is_not_binary": {"text": "a\x01b"},
    "text_is_present": {"text": " --- "},
    "text_is_not_huge": {"text": "a" * 5_000_001},
    "title_is_short": {"title": "t" * 301},
}
BAD_CHUNKS = {
    "chunk_has_a_word": {"text": "-----"},
    "chunk_fits": {"tokens": 201},
    "chunk_lies_in_text": {"end": 0},
}


def test_every_document_rule_is_broken_by_its_row_and_only_by_it() -> None:
    rows = [DOCUMENT, *(DOCUMENT | change for change in BAD_DOCUMENTS.values())]
    report = validate("documents", rows)
    assert [list(broken) for broken in report.rows] == [[], *([rule] for rule in BAD_DOCUMENTS)]
    assert set(rules("documents")) == set(BAD_DOCUMENTS), "a rule without a row that breaks it"


def test_every_chunk_rule_is_broken_by_its_row_and_only_by_it() -> None:
    rows = [CHUNK, *(CHUNK | {"ordinal": n} | change for n, change in enumerate(BAD_CHUNKS.values(), 1))]
    report = validate("chunks", [*rows, CHUNK])
    place = ["chunk_place_is_its_own"]
    assert [list(broken) for broken in report.rows] == [place, *([rule] for rule in BAD_CHUNKS), place]
    assert set(rules("chunks")) == {*BAD_CHUNKS, "chunk_place_is_its_own"}


def test_every_rule_has_a_line_in_the_readme() -> None:
    readme = Path("expectations/README.md").read_text(encoding="utf-8")
    for suite in ("documents", "chunks"):
        assert [rule for rule in rules(suite) if f"| `{rule}` |" not in readme] == []


def test_more_broken_rows_than_great_expectations_keeps_values_are_all_found() -> None:
    report = validate("documents", [DOCUMENT | {"uri": None}] * 503 + [DOCUMENT])
    assert len(report.bad) == 503
    assert report.good == [503]
    assert report.by_rule == {"uri_is_present": 503}


def test_reason_says_what_was_expected_and_found() -> None:
    report = validate("chunks", [CHUNK | {"tokens": 300}])
    assert report.rows[0]["chunk_fits"].startswith("expected at most token_limit tokens, found")
    assert "300" in report.rows[0]["chunk_fits"]


def test_no_rows_break_nothing() -> None:
    assert validate("documents", []).rows == []


def test_missing_column_is_named() -> None:
    with pytest.raises(DataError, match="no \\['invalid_bytes', 'text', 'title'\\]"):
        validate("documents", [{"uri": "file:a"}])


def test_rule_about_the_whole_set(tmp_path: Path) -> None:
    meta = {"rule": "enough_rows", "expected": "2 rows or more"}
    expectation = {"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 2}, "meta": meta}
    path = tmp_path / "suite.json"
    path.write_text(json.dumps({"name": "whole", "expectations": [expectation]}))
    assert validate(str(path), [{"a": 1}]).whole == {"enough_rows": "expected 2 rows or more, found 1"}
    assert validate(str(path), [{"a": 1}, {"a": 1}]).whole == {}


def test_rule_without_a_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "suite.json"
    path.write_text(json.dumps({"name": "x", "expectations": [{"type": "expect_x", "kwargs": {}}]}))
    with pytest.raises(DataError, match="meta.rule"):
        validate(str(path), [{"a": 1}])
