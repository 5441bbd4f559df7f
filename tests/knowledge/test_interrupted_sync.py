"""A sync that is killed, or loses Postgres or S3, in any stage: run again, it ends with the rows of an undisturbed one."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from tasks.errors import TryAgain
from tests.knowledge.syncing import Sync, current, document, rows_of

pytestmark = [pytest.mark.integration, pytest.mark.long]
IN_PARTS = ("read_documents", "index_documents")
STAGES = ("list_documents", "read_documents", "validate_documents", "index_documents", "check_index", "switch_index")


class Line:
    """A TCP line to a server that can be cut: connections are closed and new ones refused until it is mended."""

    def __init__(self, host: str, port: int) -> None:
        self._target, self._open = (host, port), True
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if not self._open:
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._pairs.append((near, far))
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    @staticmethod
    def _carry(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := one.recv(1 << 16):
                other.sendall(block)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        self._open = False
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._pairs.clear()

    def mend(self) -> None:
        self._open = True

    def close(self) -> None:
        self.cut()
        self._server.close()


def through(url: str, line: Line) -> str:
    parts = urlsplit(url)
    credentials = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return urlunsplit(parts._replace(netloc=f"{credentials}127.0.0.1:{line.port}"))


@pytest.fixture
def lines(sync: Sync) -> Iterator[dict[str, Line]]:
    """Cuttable lines to Postgres and S3, which the stages of `sync` are told to use."""
    made = {}
    for name in ("MILLRACE_DATABASE_URL", "MILLRACE_S3_ENDPOINT_URL"):
        parts = urlsplit(sync.environment[name])
        assert parts.hostname and parts.port, "a server on a port"
        made[name] = Line(parts.hostname, parts.port)
        sync.changes[name] = through(sync.environment[name], made[name])
    yield made
    for line in made.values():
        line.close()


def started(sync: Sync, stage: str, run: str, part: str | None) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tasks", stage, "--run", sync.uri(run), *(["--part", part] if part else [])]
    values = {"MILLRACE_CORPUS": str(sync.corpus), "MILLRACE_GOLDEN_QUESTIONS": str(sync.golden), **sync.changes}
    return subprocess.Popen(
        command,
        env={**os.environ, **sync.environment, **values},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> dict[str, Any]:
    out, err = process.communicate()
    assert process.returncode == 0, err[-2000:]
    reference: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return reference


def content(version: int) -> list[tuple[Any, ...]]:
    return [
        (row["chunk_id"], row["document_uri"], row["ordinal"], row["text"], row["embedding"])
        for row in rows_of(version)
    ]


@pytest.fixture
def undisturbed(sync: Sync) -> list[tuple[Any, ...]]:
    """The rows of a sync that nothing disturbed; the database is as before it."""
    for n in range(24):
        sync.write(f"more-{n:02}.md", document(f"beast number {n}", f"prey number {n * n}"))
    sync.changes["MILLRACE_SHARD_DOCUMENTS"] = "10"
    sync.run("undisturbed")
    rows = content(current() or 0)
    from tasks.database import connect

    with connect() as connection:
        connection.execute("DROP TABLE chunks_v1")
        for table in ("documents", "embedding_cache", "index_versions", "quarantine"):
            connection.execute(f"DELETE FROM {table}".encode())
    return rows


def parts_after(references: dict[str, dict[str, Any]], stage: str) -> list[str | None]:
    source = {"read_documents": "list_documents", "index_documents": "validate_documents"}.get(stage)
    return list(references[source]["facts"]["parts"]) if source else [None]


def killed_at_work(process: "subprocess.Popen[str]", line: str, pause: float) -> bool:
    """Kill a stage a moment after its log has a line like `line`; return whether that ended it."""
    assert process.stderr is not None
    assert any(re.search(line, said) for said in process.stderr), f"the stage ended before it said {line!r}"
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def test_kill_9_in_every_stage(sync: Sync, undisturbed: list[tuple[Any, ...]]) -> None:
    chance, references, hits = random.Random(5), {}, dict.fromkeys(STAGES, 0)
    for stage in STAGES:
        for part in parts_after(references, stage):
            # Progress is first told when a document was read, or its chunks are in the table; other stages only say that
            # they start. At once, nothing is complete; a moment later it may be, and then the rest finds it standing.
            begun = f"progress stage={stage} " if stage in IN_PARTS else f"stage={stage} .* start$"
            for line, pause in ((begun, 0), (f"stage={stage} .* start$", chance.uniform(0.1, 1.0))):
                if not killed_at_work(started(sync, stage, "killed", part), line, pause):
                    break
                hits[stage] += 1
            references[stage] = ended(started(sync, stage, "killed", part))
    assert all(hits[stage] >= len(parts_after(references, stage)) for stage in STAGES), hits
    assert content(current() or 0) == undisturbed
    again = ended(started(sync, "index_documents", "killed", parts_after(references, "index_documents")[-1]))
    assert again == references["index_documents"], "a finished shard is not done again: its manifest stands"


@pytest.mark.parametrize("lost", ["MILLRACE_DATABASE_URL", "MILLRACE_S3_ENDPOINT_URL"])
def test_a_service_that_goes_away_in_every_stage(
    sync: Sync, lines: dict[str, Line], undisturbed: list[tuple[Any, ...]], lost: str
) -> None:
    chance, references, failed = random.Random(6), {}, 0
    sync.changes["AWS_MAX_ATTEMPTS"] = "2"
    for stage in STAGES:
        for part in parts_after(references, stage):
            process = started(sync, stage, "lost", part)
            time.sleep(chance.uniform(0.5, 2.5))
            lines[lost].cut()
            _out, err = process.communicate()
            lines[lost].mend()
            assert process.returncode in (0, TryAgain.exit_code), err[-2000:]
            failed += process.returncode != 0
            references[stage] = ended(started(sync, stage, "lost", part))
    assert failed >= 3, "the cut came while stages were at work"
    assert content(current() or 0) == undisturbed
