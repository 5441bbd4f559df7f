"""Every try of a stage is a row of `stage_runs`: written when it starts, completed when it ends.

Writes the table and nothing else. A database that is away, or has not the table yet, costs the row and not the stage:
the log says so, and an end whose start could not be written is written whole. What kills a stage outright (SIGKILL, a
lost node) leaves a row without an end.
"""

import json
import logging
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import psycopg

from tasks.contracts import Manifest
from tasks.database import Connection, connect
from tasks.errors import GateRefused, MillraceError, ServiceUnavailable
from tasks.observability.trace import Trace

log = logging.getLogger(__name__)

INTERRUPTED = 130
_COLUMNS = (
    "run", "stage", "part", "try", "trace_id", "host", "started_at",
    "ended_at", "exit_code", "error", "reused", "verdict", "counts",
)  # fmt: skip
_INSERT = (
    f"INSERT INTO stage_runs ({', '.join(_COLUMNS)}) VALUES ({', '.join(f'%({name})s' for name in _COLUMNS)}) "
    "RETURNING id"
).encode()
_END = (
    b"UPDATE stage_runs SET ended_at = %(ended_at)s, exit_code = %(exit_code)s, error = %(error)s, "
    b"reused = %(reused)s, verdict = %(verdict)s, counts = %(counts)s WHERE id = %(id)s"
)


@dataclass
class Attempt:
    """One try of a stage, as its row says it."""

    run: str
    stage: str
    part: str | None
    attempt: int | None
    trace: Trace
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended_at: datetime | None = None
    exit_code: int | None = None
    error: str | None = None
    reused: bool = False
    verdict: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)

    def ended_with(self, manifest: Manifest) -> None:
        """Take over what a manifest says; one that is older than this try was found, not made."""
        self.exit_code = 0 if manifest.status == "complete" else GateRefused.exit_code
        self.reused = manifest.started_at < self.started_at
        self.counts = manifest.counts
        verdict = manifest.facts.get("verdict")
        self.verdict = verdict if isinstance(verdict, str) else None

    def values(self) -> dict[str, object]:
        """Return the columns."""
        return {
            "run": self.run, "stage": self.stage, "part": self.part, "try": self.attempt, "host": platform.node(),
            "trace_id": self.trace.trace_id, "started_at": self.started_at, "ended_at": self.ended_at,
            "exit_code": self.exit_code, "error": self.error, "reused": self.reused, "verdict": self.verdict,
            "counts": json.dumps(dict(self.counts)),
        }  # fmt: skip


@contextmanager
def recorded(url: str, attempt: Attempt) -> Iterator[Attempt]:
    """Record the start of a try, run the block, and record how it ended; errors go on as they are.

    A block that ends without telling its exit code ended well.
    """
    row = _write(url, attempt, lambda connection: _insert(connection, attempt))
    try:
        yield attempt
    finally:
        error = sys.exc_info()[1]
        if error is not None:
            attempt.error = type(error).__name__
            attempt.exit_code = exit_code_of(error)
        attempt.exit_code = attempt.exit_code or 0
        attempt.ended_at = datetime.now(UTC)
        _write(url, attempt, lambda connection: _finish(connection, attempt, row))


def exit_code_of(error: BaseException) -> int:
    """Return the exit code with which the process ends after an error."""
    if isinstance(error, MillraceError):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _write(url: str, attempt: Attempt, work: Callable[[Connection], int | None]) -> int | None:
    try:
        with connect(url, vectors=False) as connection:
            return work(connection)
    except (ServiceUnavailable, psycopg.Error) as error:
        what = "start" if attempt.ended_at is None else "end"
        log.warning(
            "stage=%s its %s is not in stage_runs, so no metric shows it: %s", attempt.stage, what, str(error).strip()
        )
        return None


def _insert(connection: Connection, attempt: Attempt) -> int | None:
    row = connection.execute(_INSERT, attempt.values()).fetchone()
    return int(row["id"]) if row else None


def _finish(connection: Connection, attempt: Attempt, row: int | None) -> int | None:
    if row is None:
        return _insert(connection, attempt)
    connection.execute(_END, attempt.values() | {"id": row})
    return row
