"""The request log without its database: nothing waits, nothing is lost in silence."""

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psycopg
import pytest

from tasks.serving.connection import KeptConnection
from tasks.serving.request_log import RequestLog, RequestRow, _from_line, _to_line

from .conftest import NOWHERE


def row(question: str = "why?") -> RequestRow:
    """Return a row as a served request makes it."""
    hits = [{"chunk_id": "1", "document_uri": "a", "score": 0.5}]
    return RequestRow("search", question, hits=hits, embedding=np.array([0.1, -2.5, 3e-9], dtype=np.float32))


def lines(path: Path) -> list[str]:
    """Return the lines of a file, none when it is not there."""
    return path.read_text().splitlines() if path.exists() else []


def wait_for(log: RequestLog, name: str, count: int) -> None:
    """Wait until a count is reached."""
    deadline = time.monotonic() + 20
    while log.counts()[name] != count:
        assert time.monotonic() < deadline, log.counts()
        time.sleep(0.02)


def test_rows_without_a_database_are_spooled(tmp_path: Path) -> None:
    log = RequestLog(KeptConnection(NOWHERE), tmp_path)
    rows = [row(f"question {number}\nwith a line") for number in range(7)]
    for item in rows:
        log.put(item)
    wait_for(log, "spooled", 7)
    assert log.counts()["waiting"] == 7 and log.knows(rows[0].id) and not log.knows(row().id)
    log.close()
    kept = [
        json.loads(line) for path in ("requests.jsonl", "requests.draining.jsonl") for line in lines(tmp_path / path)
    ]
    assert {item["id"] for item in kept} == {str(item.id) for item in rows}


def test_a_row_survives_the_spool_bit_by_bit() -> None:
    before = row("line\n\u2028'\"\U0001f600")
    after = _from_line(_to_line(before))
    assert np.array_equal(after.embedding, before.embedding) and after.embedding.dtype == np.float32
    before.embedding = after.embedding = None
    assert after == before


def test_putting_never_waits_even_when_the_queue_is_full(tmp_path: Path) -> None:
    held = KeptConnection(NOWHERE)
    log = RequestLog(held, tmp_path, capacity=1)
    with held._lock:  # the writer is stuck in the database
        log.put(row("taken by the writer"))
        time.sleep(0.7)
        started = time.monotonic()
        for _ in range(20):
            log.put(row())
        assert time.monotonic() - started < 1.0
        assert log.counts()["spooled"] == 19
    wait_for(log, "spooled", 21)
    log.close()


def test_a_full_spool_counts_what_is_lost(tmp_path: Path) -> None:
    log = RequestLog(KeptConnection(NOWHERE), tmp_path, spool_bytes=10)
    log.put(row())
    wait_for(log, "spooled", 1)
    log.put(row())
    time.sleep(1.2)  # the first may be under way to being drained, which empties the spool file
    log.put(row())
    log.put(row())
    deadline = time.monotonic() + 10
    while sum(log.counts()[name] for name in ("spooled", "lost")) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    counts = log.counts()
    log.close()
    assert counts["lost"] >= 1 and counts["waiting"] == 4 - counts["lost"]


def test_threads_lose_nothing(tmp_path: Path) -> None:
    log = RequestLog(KeptConnection(NOWHERE), tmp_path, capacity=5)
    threads = [threading.Thread(target=lambda: [log.put(row()) for _ in range(50)]) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    kept = [line for path in ("requests.jsonl", "requests.draining.jsonl") for line in lines(tmp_path / path)]
    assert len({json.loads(line)["id"] for line in kept}) == len(kept) == 300


def test_rows_whose_partition_was_made_meanwhile_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres refuses a row that was routed to the default partition just before its day's was made."""
    tries: list[int] = []

    class Racing(KeptConnection):
        def run(self, work: Any) -> Any:
            tries.append(1)
            if len(tries) == 1:
                raise psycopg.errors.CheckViolation("new row violates partition constraint")
            return None

    monkeypatch.setattr("tasks.serving.request_log.Ahead", lambda connection: SimpleNamespace(work=lambda: None))
    log = RequestLog(Racing(NOWHERE), tmp_path)
    log.put(row())
    wait_for(log, "written", 1)
    assert len(tries) == 2 and log.counts()["refused"] == 0
    log.close()
