"""Findings as text, as JSON and as exit code; and what they never show."""

import pytest

from tasks.doctor.report import Finding, as_json, as_text, exit_code, from_json, mend, ok, skip, without_secrets
from tasks.errors import ModelError, ServiceUnavailable, SettingsError

AWAY = mend("registry", ServiceUnavailable("expected an answer, found none. Next: wait."))
WRONG = mend("bucket", SettingsError("expected a,\n  found b. Next: do c."))


def test_an_error_becomes_one_line_with_its_next_step() -> None:
    assert (WRONG.status, WRONG.found, WRONG.next, WRONG.code) == ("mend", "expected a, found b.", "do c.", 2)


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        ([ok("a", "b"), skip("c", "d")], 0),
        ([ok("a", "b"), AWAY], 75),
        ([AWAY, WRONG], 2),
        ([AWAY, Finding("a", "mend", "a bug", "report it", 1)], 1),
    ],
)
def test_the_exit_code_says_whether_a_retry_can_help(findings: list[Finding], code: int) -> None:
    assert exit_code(findings) == code


def test_a_check_is_a_line_and_the_last_line_counts() -> None:
    lines = as_text([ok("database", "Postgres 18"), WRONG, AWAY, skip("cluster", "no client")]).splitlines()
    assert lines[0] == "ok    database  Postgres 18"
    assert lines[1] == "mend  bucket    expected a, found b. Next: do c."
    assert lines[3] == "skip  cluster   not checked: no client"
    assert lines[4] == "1 ok, 1 to mend, 1 without an answer, 1 not checked"


def test_json_is_one_line_that_is_found_again_between_others() -> None:
    line = as_json([ok("a", "b"), WRONG], ground="process")
    assert "\n" not in line
    assert from_json(f"a warning\n{line}\nanother") == ({"exit_code": 2, "ground": "process"}, [ok("a", "b"), WRONG])
    assert from_json("no findings here") is None


@pytest.mark.parametrize(
    "text",
    [
        "could not connect to postgresql://u:s3cr3t-pw@db/x",
        "host=db password=s3cr3t-pw",
        "host=db password = 's3cr3t-pw'",
        "the key s3cr3t-pw is wrong",
    ],
)
def test_a_secret_is_never_shown(text: str) -> None:
    environment = {"MILLRACE_DATABASE_URL": "postgresql://u:s3cr3t-pw@db/x", "AWS_REGION": "us-east-1"}
    error = ModelError(f"expected a, found {text}. Next: see {text}.")
    found = without_secrets(mend("it", error), environment)
    assert "s3cr3t-pw" not in as_text([found]) + as_json([found])
    assert "***" in found.found


def test_a_key_is_hidden_by_its_name_and_ordinary_words_stay() -> None:
    found = without_secrets(
        ok("it", "AKIA12345 in us-east-1"), {"AWS_ACCESS_KEY_ID": "AKIA12345", "AWS_REGION": "us-east-1"}
    )
    assert found.found == "*** in us-east-1"
    named = {"MILLRACE_KUBERNETES_SECRET": "millrace-stage"}
    assert without_secrets(ok("it", "make millrace-stage"), named).found == "make millrace-stage"
