"""The log: lines for people as they were, JSON lines whole and with their ids, no secret in either."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tasks.observability import trace
from tasks.settings import REPOSITORY

RUN = "s3://b/runs/fine_tune/manual__1"
LEAST = {
    "PATH": "/usr/bin:/bin",
    "MILLRACE_DATABASE_URL": "postgresql://u:pass-word-1@127.0.0.1:9/x",
    "MILLRACE_MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    "AWS_SECRET_ACCESS_KEY": 'key"with\\quotes',
}
SPEAK = """
import logging, sys, threading, warnings
from tasks.observability import logs
logs.configure()
logs.about(stage="train", run_id="r", part=None)
log = logging.getLogger("ours")
log.info("one\\ntwo %s", "pass-word-1")
log.warning('key"with\\\\quotes and postgresql://me:other@host/x')
with logs.request(request_id="q", trace_id="t"):
    log.info("asked")
log.info("no longer")
try:
    raise ValueError("bad pass-word-1")
except ValueError:
    log.exception("failed")
import transformers.utils.logging as theirs
theirs.get_logger("transformers.anything").warning("from transformers")
import mlflow
logging.getLogger("mlflow.tracking").warning("from mlflow")
logging.getLogger("uvicorn.error").info("from uvicorn")
warnings.warn("a warning")
threading.Thread(target=lambda: 1 / 0).start()
raise RuntimeError("nobody catches pass-word-1")
"""


def speak(code: str, form: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False,
        env=LEAST | {"MILLRACE_LOG_FORMAT": form} | more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    result = speak(SPEAK, "json")
    assert result.returncode == 1 and result.stdout == ""
    return [json.loads(line) for line in result.stderr.splitlines()]  # every line is an object, or this fails


def only(lines: list[dict[str, Any]], text: str) -> dict[str, Any]:
    """Return the one line that says so: libraries must not print theirs a second time."""
    found = [line for line in lines if text in line["message"]]
    assert len(found) == 1, found
    return found[0]


def test_a_json_line_has_its_fields(lines: list[dict[str, Any]]) -> None:
    line = only(lines, "one")
    assert line["message"] == "one\ntwo ***"
    assert (line["level"], line["logger"], line["stage"], line["run_id"]) == ("INFO", "ours", "train", "r")
    assert line["time"].endswith("+00:00") and line["host"] and "part" not in line


def test_a_request_has_its_fields_and_only_it(lines: list[dict[str, Any]]) -> None:
    assert only(lines, "asked")["request_id"] == "q"
    assert "request_id" not in only(lines, "no longer")


def test_exceptions_are_a_field_also_those_that_nobody_caught(lines: list[dict[str, Any]]) -> None:
    assert "ValueError: bad ***" in only(lines, "failed")["exception"]
    assert "RuntimeError" in only(lines, "nobody catches")["exception"]
    assert "ZeroDivisionError" in only(lines, "division by zero")["exception"]


def test_libraries_speak_the_same_form(lines: list[dict[str, Any]]) -> None:
    for text, logger in (("from transformers", "transformers"), ("from mlflow", "mlflow"), ("from uvicorn", "uvicorn")):
        assert only(lines, text)["logger"].startswith(logger)
    assert only(lines, "a warning")["logger"] == "py.warnings"


def test_no_secret_is_in_any_line(lines: list[dict[str, Any]]) -> None:
    text = json.dumps(lines)
    assert "pass-word-1" not in text and "with\\" not in text and "other@" not in text
    assert only(lines, "and postgresql")["message"] == "*** and postgresql://***@host/x"


def test_text_lines_are_as_they_were_without_secrets() -> None:
    code = "import logging; from tasks.observability import logs; logs.configure(); logging.getLogger('a').info('x pass-word-1')"
    line = speak(code, "text").stderr.strip()
    assert line.partition(" ")[2].partition(" ")[2] == "INFO a x ***"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_stage_that_fails_says_so_with_its_ids(form: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tasks", "list_documents", "--run", RUN, "--nonsense=1"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
        env=LEAST | {"MILLRACE_LOG_FORMAT": form, "BAGGAGE": "task_id=list_documents,try_number=3"},
    )  # fmt: skip
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1] if form == "json" else result.stderr
    if form == "text":
        assert "\nOptionError: expected the options of list_documents" in last
        return
    line = json.loads(last)
    assert line["level"] == "ERROR" and line["message"].startswith("OptionError: ")
    assert (line["dag_id"], line["run_id"], line["stage"], line["try"]) == (
        "fine_tune",
        "manual__1",
        "list_documents",
        3,
    )
    assert line["trace_id"] == trace.derived("fine_tune", "manual__1").trace_id


def test_a_form_that_does_not_exist_is_refused() -> None:
    code = "from tasks.settings import load_settings; load_settings()"
    assert "MILLRACE_LOG_FORMAT" in speak(code, "yaml").stderr


@pytest.mark.airflow
def test_the_launchers_read_the_level_of_both_forms() -> None:
    from tests.airflow_home import prepare

    prepare()
    from millrace_outcome import tell, words

    said: list[tuple[int, str]] = []

    class Log:
        def log(self, level: int, form: str, *values: str) -> None:
            said.append((level, form % values))

    as_json = json.dumps({"level": "ERROR", "message": "BadInput: expected"})
    for text in ("2026-11-20 01:02:03,4 WARNING a b", as_json, "{broken", "plain", '{"level": "NONE"}', "[1]"):
        tell(Log(), text)
    assert [level for level, _text in said] == [30, 40, 20, 20, 20, 20]
    assert said[1][1] == as_json
    assert words(as_json) == "ERROR BadInput: expected" and words("{broken") == "{broken"
