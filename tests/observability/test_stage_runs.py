"""Every end of a stage is a row, in a real Postgres: complete, refused, failed, killed; and a row is never worth a stage."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tasks.database import migrate
from tasks.errors import BadInput, Preempted
from tasks.observability import trace
from tasks.observability.stage_runs import Attempt, recorded
from tasks.settings import REPOSITORY, load_settings

RUN = "s3://millrace/runs/tests/observed"


def rows(url: str) -> list[dict[str, Any]]:
    with psycopg.connect(url, row_factory=dict_row) as connection:
        return list(connection.execute("SELECT * FROM stage_runs ORDER BY id"))


def attempt(**changes: Any) -> Attempt:
    return Attempt(**{"run": RUN, "stage": "tried", "part": None, "attempt": 2, "trace": trace.new()} | changes)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("error", "code", "name"),
    [
        (None, 0, None), (BadInput("x"), 2, "BadInput"), (Preempted("x"), 75, "Preempted"), (ValueError("x"), 1, "ValueError"),
        (KeyboardInterrupt(), 130, "KeyboardInterrupt"), (SystemExit(3), 3, "SystemExit"), (SystemExit("x"), 1, "SystemExit"),
    ],
)  # fmt: skip
def test_each_end_is_a_row(database: str, error: BaseException | None, code: int, name: str | None) -> None:
    made = attempt()
    with pytest.raises(type(error)) if error else nullcontext(), recorded(database, made):
        assert rows(database)[0]["ended_at"] is None
        if error is not None:
            raise error
    (row,) = rows(database)
    assert (row["exit_code"], row["error"], row["try"]) == (code, name, 2)
    assert row["trace_id"] == made.trace.trace_id and row["ended_at"] >= row["started_at"]


def test_without_a_database_the_stage_goes_on_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    made = attempt()
    with recorded("postgresql://nobody@127.0.0.1:9/none", made):
        pass
    assert made.exit_code == 0
    assert [record.message.split(", so")[0] for record in caplog.records] == [
        "stage=tried its start is not in stage_runs", "stage=tried its end is not in stage_runs",
    ]  # fmt: skip


@pytest.mark.integration
def test_an_end_whose_start_was_not_written_is_written_whole(database: str, caplog: pytest.LogCaptureFixture) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP TABLE stage_runs")
        connection.execute("DELETE FROM schema_migrations WHERE name = '004_stage_runs.sql'")
    with recorded(database, attempt()):
        migrate(database)  # the table is there only now
    (row,) = rows(database)
    assert row["exit_code"] == 0 and row["started_at"] < row["ended_at"]
    assert "its start is not in stage_runs" in caplog.text


@pytest.mark.integration
@pytest.mark.parametrize("code", [0, 2])
def test_a_tool_that_is_watched_has_its_row_too(
    stack: Any, database: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import __main__ as command

    ours = {name: value for name, value in stack.env.items() if name.startswith("MILLRACE_")}
    monkeypatch.setattr(command, "settings", lambda: load_settings(ours | {"MILLRACE_DATABASE_URL": database}))
    monkeypatch.setattr(command, "load_tool", lambda _name: lambda _arguments: code)
    assert "backup" in command.RECORDED
    assert command._run_recorded("backup", []) == code
    (row,) = rows(database)
    assert (row["stage"], row["exit_code"], row["run"]) == ("backup", code, "tool/backup")


@pytest.mark.integration
def test_the_command_records_complete_reused_failed_and_killed(stack: Any, database: str, tmp_path: Path) -> None:
    """`python -m tasks` itself: list_documents, again, with a wrong corpus, and killed."""
    environment = os.environ | dict(stack.env) | {
        "MILLRACE_DATABASE_URL": database, "BAGGAGE": "try_number=1",
        "TRACEPARENT": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    }  # fmt: skip

    def command(run: str, *options: str) -> list[str]:
        return [sys.executable, "-m", "tasks", "list_documents", "--run", f"{RUN}-{database[-12:]}/{run}", *options]

    for run, options, code in (("1", [], 0), ("1", [], 0), ("2", [f"--corpus={tmp_path}/none"], 2)):
        done = subprocess.run(
            command(run, *options), cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
    process = subprocess.Popen(
        command("3"), cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(rows(database)) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first, again, wrong, killed = rows(database)
    assert (first["exit_code"], first["reused"], first["counts"]["documents"]) == (0, False, 79)
    assert (again["exit_code"], again["reused"], again["counts"]) == (0, True, first["counts"])
    assert (wrong["exit_code"], wrong["error"]) == (2, "CorpusError")
    assert (killed["exit_code"], killed["ended_at"]) == (None, None)
    assert {row["trace_id"] for row in rows(database)} == {"4bf92f3577b34da6a3ce929d0e0e4736"}
    assert first["try"] == 1
