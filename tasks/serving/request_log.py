"""Every served question becomes a row of `requests`, and no answer waits for it.

Rows go through a bounded queue to one writer thread. Rows that Postgres cannot take now are appended to
a spool file below the cache folder and written when it answers again (also by the next process); rows
that do not fit the spool are counted as lost, with a log line. A row that Postgres refuses for what it
holds is kept in `refused.jsonl` and counted. Nothing here fails or delays a request. The same thread makes
the table's partitions of the coming days (`partitions`).
"""

import base64
import fcntl
import json
import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import psycopg
from psycopg.types.json import Jsonb

from tasks.database import Connection
from tasks.errors import ServiceUnavailable
from tasks.serving.connection import KeptConnection
from tasks.serving.partitions import Ahead

log = logging.getLogger(__name__)

BATCH = 200
SPOOL_BYTES = 64 * 1024 * 1024


@dataclass
class RequestRow:
    """One row of table `requests`; filled while the request is served."""

    kind: str
    question: str
    client: str = ""
    id: UUID = field(default_factory=uuid4)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    answer: str | None = None
    hits: list[dict[str, Any]] = field(default_factory=list)
    best_score: float | None = None
    release: int | None = None
    index_version: int | None = None
    latency_ms: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None
    key_name: str = ""  # of the API key that asked
    guardrails: list[dict[str, str]] = field(default_factory=list)  # events: rule, where, action
    refused: bool = False  # answered "I do not know"
    grounded: float | None = None
    retrieval_ms: float | None = None
    first_token_ms: float | None = None
    trace_id: str | None = None
    embedding: Any = None  # a float32 vector
    question_cut: bool = False  # the embedder read only its beginning; told in the answer, no column


_COLUMNS = [item.name for item in fields(RequestRow) if item.name != "question_cut"]
_INSERT = (
    f"INSERT INTO requests ({', '.join(_COLUMNS)}) VALUES ({', '.join(f'%({name})s' for name in _COLUMNS)}) "
    "ON CONFLICT DO NOTHING"  # a row spooled after its insert had reached Postgres
).encode()


class RequestLog:
    """The queue, its writer thread, and the spool."""

    def __init__(
        self, connection: KeptConnection, folder: Path, *, capacity: int = 2000, spool_bytes: int = SPOOL_BYTES
    ) -> None:
        self._connection, self._spool_bytes = connection, spool_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._spool, self._draining = folder / "requests.jsonl", folder / "requests.draining.jsonl"
        self._refused, self._guard = folder / "requests.refused.jsonl", folder / "requests.lock"
        self._queue: queue.Queue[RequestRow] = queue.Queue(capacity)
        self._counts = {"written": 0, "spooled": 0, "lost": 0, "refused": 0}
        self._pending: dict[UUID, str] = {}  # with the name of the key that asked
        self._ahead = Ahead(connection)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="request-log", daemon=True)
        self._thread.start()

    def put(self, row: RequestRow) -> None:
        """Take a row; never waits for the database, never raises for its absence."""
        with self._lock:
            self._pending[row.id] = row.key_name
        try:
            self._queue.put_nowait(row)
        except queue.Full:
            self._keep([row])

    def knows(self, request_id: UUID) -> bool:
        """Return whether a row is taken and not yet in the database."""
        with self._lock:
            return request_id in self._pending

    def key_of(self, request_id: UUID) -> str | None:
        """Return the name of the key that asked, of a row that is taken and not yet in the database; None of any other."""
        with self._lock:
            return self._pending.get(request_id)

    def counts(self) -> dict[str, int]:
        """Return rows written, spooled, lost and refused so far, rows not yet in Postgres, and the bytes of the spool."""
        sizes = [path.stat().st_size for path in (self._spool, self._draining) if path.exists()]
        with self._lock:
            return self._counts | {"waiting": len(self._pending), "spool_bytes": sum(sizes)}

    def close(self) -> None:
        """Write or spool what is left, and stop."""
        self._stop.set()
        self._thread.join(timeout=30)
        if self._thread.is_alive() and (left := list(self._queued())):  # the database says nothing, and holds it
            self._keep(left)
        self._connection.close()

    def _write_on(self) -> None:
        while not self._stop.is_set() or not self._queue.empty():
            if not self._stop.is_set():
                self._ahead.work()
            rows = self._next_rows()
            if rows:
                self._write(rows)
            elif not self._stop.is_set():
                self._drain()

    def _next_rows(self) -> list[RequestRow]:
        try:
            return [self._queue.get(timeout=0.5), *islice(self._queued(), BATCH - 1)]
        except queue.Empty:
            return []

    def _queued(self) -> Iterator[RequestRow]:
        with suppress(queue.Empty):
            while True:
                yield self._queue.get_nowait()

    def _write(self, rows: Sequence[RequestRow]) -> bool:
        try:
            self._insert(rows)
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            return self._refuse(rows[0], error) if len(rows) == 1 else self._write_singly(rows)
        except (ServiceUnavailable, psycopg.Error) as error:
            log.warning("requests=%d not written, kept in the spool: %s", len(rows), error)
            self._keep(rows)
            return False
        self._done(rows, "written")
        return True

    def _insert(self, rows: Sequence[RequestRow]) -> None:
        """Write rows; those that were on their way into the default partition when their day's was made go there again."""
        for left in (2, 1, 0):
            try:
                return self._connection.run(lambda connection: _insert(connection, rows))
            except psycopg.errors.CheckViolation as error:
                if not left or error.diag.constraint_name is not None:  # a partition's bounds have no name
                    raise
        raise AssertionError("a try returns or raises")

    def _write_singly(self, rows: Sequence[RequestRow]) -> bool:
        written = [self._write([row]) for row in rows]
        return all(written)

    def _refuse(self, row: RequestRow, error: psycopg.Error) -> bool:
        log.error("request=%s refused by Postgres, kept in %s: %s", row.id, self._refused.name, error)
        with self._locked(), self._refused.open("a", encoding="utf-8") as file:
            file.write(_to_line(row))
        self._done([row], "refused")
        return True

    def _keep(self, rows: Sequence[RequestRow]) -> None:
        """Append rows to the spool, or count them as lost when it is full or cannot be written."""
        try:
            with self._locked(), self._spool.open("a", encoding="utf-8") as file:
                if file.tell() > self._spool_bytes:
                    raise OSError(f"the spool holds more than {self._spool_bytes} bytes")
                file.writelines(_to_line(row) for row in rows)
        except OSError as error:
            log.error("requests=%d lost: %s. Next: bring Postgres back.", len(rows), error)
            self._done(rows, "lost")
        else:
            with self._lock:
                self._counts["spooled"] += len(rows)

    def _drain(self) -> None:
        """Write what the spool holds. A row that had reached Postgres before a crash is not doubled."""
        with self._locked():
            if not self._draining.exists():
                if not self._spool.exists():
                    return
                self._spool.rename(self._draining)
        rows: list[RequestRow] = []
        unreadable: list[str] = []
        for line in _lines(self._draining):
            try:
                rows.append(_from_line(line))
            except (ValueError, KeyError, TypeError):  # the last line of a process that was killed
                unreadable.append(line)
        for start in range(0, len(rows), BATCH):
            if not self._drained(rows[start : start + BATCH]):
                return
        if unreadable:
            log.error("lines=%d of the spool cannot be read, kept in %s", len(unreadable), self._refused.name)
            with self._locked(), self._refused.open("a", encoding="utf-8") as file:
                file.writelines(line.rstrip("\n") + "\n" for line in unreadable)
        self._draining.unlink(missing_ok=True)

    def _drained(self, rows: Sequence[RequestRow]) -> bool:
        try:
            self._insert(rows)
        except (psycopg.DataError, psycopg.IntegrityError):
            return self._write_singly(rows)
        except (ServiceUnavailable, psycopg.Error):
            return False  # they stay where they are
        log.info("requests=%d written from the spool", len(rows))
        self._done(rows, "written")
        return True

    def _done(self, rows: Sequence[RequestRow], count: str) -> None:
        with self._lock:
            self._counts[count] += len(rows)
            for row in rows:
                self._pending.pop(row.id, None)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._guard.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _insert(connection: Connection, rows: Sequence[RequestRow]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(_INSERT, [_parameters(row) for row in rows])


def _parameters(row: RequestRow) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in _COLUMNS}
    # A model may write a NUL, which Postgres does not hold in text.
    values["answer"] = None if row.answer is None else row.answer.replace("\x00", "\ufffd")
    return values | {"hits": Jsonb(row.hits), "guardrails": Jsonb(row.guardrails)}


def _to_line(row: RequestRow) -> str:
    value = asdict(row) | {"id": str(row.id), "created_at": row.created_at.isoformat()}
    if row.embedding is not None:
        value["embedding"] = base64.b64encode(np.asarray(row.embedding, dtype="<f4").tobytes()).decode()
    return json.dumps(value) + "\n"


def _from_line(line: str) -> RequestRow:
    value = json.loads(line)
    value |= {"id": UUID(value["id"]), "created_at": datetime.fromisoformat(value["created_at"])}
    if value["embedding"] is not None:
        value["embedding"] = np.frombuffer(base64.b64decode(value["embedding"]), dtype="<f4")
    return RequestRow(**value)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except FileNotFoundError:
        return
