"""A Postgres that takes connections and says nothing, from the start or from some moment on: no answer waits for it."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tasks.database import connect, migrate
from tasks.errors import ServiceUnavailable
from tasks.serving.answering import Assistant
from tasks.serving.connection import KeptConnection
from tasks.serving.request_log import RequestLog

from .conftest import app_of, call, find_in_memory
from .test_request_log import lines, row, wait_for


@pytest.fixture
def silent() -> Iterator[str]:
    """URL of a port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        host, port = listener.getsockname()
        yield f"postgresql://a:b@{host}:{port}/c"


def test_no_answer_waits_for_a_database_that_says_nothing(ready: Assistant, silent: str, tmp_path: Path) -> None:
    log = RequestLog(KeptConnection(silent + "?connect_timeout=2"), tmp_path / "silent", capacity=3)
    assistant = Assistant(ready.releases, log, find_in_memory)
    app, took = app_of(assistant), []
    for _ in range(10):
        started = time.monotonic()
        assert call(app, "POST", "/v1/search", json={"query": "loop"}).status_code == 200
        took.append(time.monotonic() - started)
    assert max(took) < 1.5, took
    assert log.counts()["waiting"] == 10
    started = time.monotonic()
    log.close()
    assistant.close()
    counts = log.counts()
    assert time.monotonic() - started < 30 and counts["spooled"] == 10 and counts["lost"] == 0, counts
    kept = [*lines(tmp_path / "silent/requests.jsonl"), *lines(tmp_path / "silent/requests.draining.jsonl")]
    assert len({json.loads(line)["id"] for line in kept}) == 10
    assert counts["spool_bytes"] == sum(len(line.encode()) + 1 for line in kept) > 0


@pytest.mark.integration
def test_a_server_that_freezes_in_the_middle_is_given_up_and_found_again(new_database: Any, tmp_path: Path) -> None:
    url = new_database("frozen")
    migrate(url)
    kept = KeptConnection(url, work_seconds=1.5)
    log = RequestLog(kept, tmp_path)
    log.put(row())
    wait_for(log, "written", 1)
    assert kept._connection is not None
    backend = kept._connection.info.backend_pid
    os.kill(backend, signal.SIGSTOP)  # it keeps its connection, and ends no statement by its own timeout
    try:
        item = row("asked while it was frozen")
        log.put(item)
        started = time.monotonic()
        wait_for(log, "written", 2)
        assert 1 < time.monotonic() - started < 10
    finally:
        os.kill(backend, signal.SIGCONT)
    log.close()
    with connect(url) as connection:
        assert connection.execute("SELECT count(*) AS n FROM requests WHERE id = %s", (item.id,)).fetchone() == {"n": 1}


@pytest.mark.integration
def test_a_statement_that_takes_too_long_ends_and_the_connection_is_not_lost(new_database: Any) -> None:
    kept = KeptConnection(new_database("slow"), statement_seconds=0.5)
    with connect(kept._url, vectors=False) as connection:
        connection.execute("CREATE EXTENSION vector")
    with pytest.raises(ServiceUnavailable, match="statement timeout"):
        kept.run(lambda connection: connection.execute("SELECT pg_sleep(20)"))
    for _ in range(50):  # the watch of work that is done ends nothing
        assert kept.run(lambda connection: connection.execute("SELECT 1 AS one").fetchone()) == {"one": 1}
    kept.close()


@pytest.mark.integration
def test_a_table_that_is_locked_delays_rows_and_loses_none(new_database: Any, tmp_path: Path) -> None:
    url = new_database("locked")
    migrate(url)
    log = RequestLog(KeptConnection(url, statement_seconds=0.5), tmp_path)
    log.put(row())
    wait_for(log, "written", 1)
    with connect(url) as holder:
        holder.execute("LOCK TABLE requests IN ACCESS EXCLUSIVE MODE")
        started, items = time.monotonic(), [row(str(uuid4())) for _ in range(5)]
        for item in items:
            log.put(item)
        assert time.monotonic() - started < 0.2
        wait_for(log, "spooled", 5)
        assert log.counts()["spool_bytes"] > 0 and log.counts()["waiting"] == 5
        with pytest.raises(psycopg.errors.QueryCanceled), psycopg.connect(url) as impatient:
            impatient.execute("SET statement_timeout = 200")
            impatient.execute("SELECT count(*) FROM requests")
    wait_for(log, "written", 6)
    wait_for(log, "spool_bytes", 0)  # the file goes a moment after its last row is written
    assert log.counts()["waiting"] == 0
    log.close()
