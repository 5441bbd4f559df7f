"""How the ledger is shown: 100 columns, and no text of other people that a terminal obeys."""

import json
import unicodedata
from datetime import UTC, datetime
from typing import Any

import pytest

from tasks.errors import OptionError
from tasks.release import releases_tool
from tasks.release.ledger import Release
from tasks.release.parts import Standing
from tasks.release.plain import WIDTH, cut, pad, plain
from tasks.release.releases_tool import Row, document, number_of, page, table

HOSTILE = "better\x1b[2J\x1b[1;1H\r\n      9 2026-01-01 00:00 promotion\u202e reversed \x07\x9b31m" + "long " * 80


def release(number: int = 3, **changes: Any) -> Release:
    values: dict[str, Any] = {
        "release": number, "created_at": datetime(2026, 11, 22, 5, 50, tzinfo=UTC), "kind": "rollback",
        "model_name": "millrace", "model_version": "1", "adapter_uri": "s3://millrace/models/a/adapter",
        "adapter_sha256": "a" * 64, "base_model": "package:tests/base", "base_revision": "b" * 40, "prompt_sha256": "c" * 64,
        "prompt": "Answer.\n\x1b[31mBriefly.", "index_version": 12, "embedder": "all-MiniLM-L6-v2", "dataset_sha256": "d" * 64,
        "code_revision": "e" * 40, "evidence_uri": "s3://millrace/releases/" + "f" * 64 + "/evidence.json",
        "evidence_sha256": "f" * 64, "approved_by": "Ada", "reason": "worse answers", "run": "s3://millrace/runs/roll_back/x",
        "restores": 1,
    }  # fmt: skip
    return Release(**(values | changes))


def shown(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


@pytest.mark.parametrize(
    "changes",
    [
        {"approved_by": HOSTILE, "reason": HOSTILE, "model_name": HOSTILE, "model_version": HOSTILE},
        {"approved_by": "数据工程师" * 9, "reason": "答案更好" * 90},
        {"release": 2**31 - 1, "restores": 2**31 - 2, "index_version": 2**31 - 1},
    ],
    ids=["escapes", "wide", "large"],
)
def test_no_text_breaks_the_table(changes: dict[str, Any]) -> None:
    rows = [
        Row(release(**changes), True, False, Standing("gone", (HOSTILE,))),
        Row(release(2), False, True, Standing("whole")),
    ]
    lines = table(rows)
    assert all(shown(line) <= WIDTH for line in lines)
    assert not [
        c for line in [*lines, *page(rows[0])] for c in line if unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"}
    ]
    # Nothing that a reason says stands where a row stands.
    assert [line.endswith("  live") for line in lines if line[:1] in "23"].count(True) == 1
    assert not any(line.startswith("      9 2026-01-01") for line in lines)


def test_a_row_says_what_when_who_why_and_by_which_evidence() -> None:
    head, row, why, evidence = table([Row(release(), True, False, Standing("whole"))])
    assert head.split()[:3] == ["release", "when", "(UTC)"]
    assert row.split() == [
        "3",
        "2026-11-22",
        "05:50",
        "rollback",
        "to",
        "1",
        "millrace",
        "1",
        "12",
        "Ada",
        "waits",
        "whole",
        "live",
    ]
    assert "worse answers" in why and "ffffffffffffffff" in evidence and "adapter aaaaaaaa" in evidence


def test_what_mlflow_cannot_show_is_told() -> None:
    row = Row(release(), False, False, Standing("whole"), "expected version 1, found none")
    assert table([row])[1].split()[-2:] == ["lost", "whole"]
    assert "  MLflow: cannot show it: expected version 1, found none" in page(row)
    assert document(row)["mirror_problem"] == "expected version 1, found none" and document(row)["mirrored"] is False


def test_a_page_holds_every_place_whole_and_the_prompt_line_by_line() -> None:
    lines = page(Row(release(), False, True, Standing("unknown", ("S3 is away",))))
    assert "    " + release().evidence_uri in lines and "    " + release().run in lines
    assert lines[-2:] == ["    Answer.", "    \\x1b[31mBriefly."]
    assert "  parts: unknown; S3 is away" in lines and "  restores 1" in lines


def test_json_has_every_column_and_what_is_known_now() -> None:
    found = json.loads(json.dumps(document(Row(release(), True, False, Standing("gone", ("x",)))), default=str))
    assert (
        found["live"] is True and found["mirrored"] is False and found["parts"] == {"state": "gone", "problems": ["x"]}
    )
    assert set(Release.__dataclass_fields__) < set(found)


def test_a_text_is_cut_to_columns_not_to_characters() -> None:
    assert cut("数据工程师", 6) == "数据…" and pad("数", 4) == "数  " and cut("abc", 3) == "abc"
    assert plain("a\nb\tc\u2028d\u200b") == "a\\nb\\tc\\u2028d\\u200b"


@pytest.mark.parametrize("arguments", [["--release", "0"], ["--release", "x"], ["--limit", "-1"], ["--relase", "1"]])
def test_a_wrong_command_is_told(arguments: list[str]) -> None:
    with pytest.raises(OptionError, match="expected"):
        releases_tool.main(arguments)


def test_numbers_are_numbers() -> None:
    assert (number_of("7", "to"), number_of(None, "to")) == (7, None)
    for wrong in ("²", "٣", "99999999999", "0", ""):
        with pytest.raises(OptionError, match="from 1 on"):
            number_of(wrong, "to")
