"""The housekeeping of table `requests`: days that have no partition get one, days that are too old go, here and in MLflow.

Reads and writes `requests`, its partitions and `feedback`, and deletes traces of the same age in MLflow. A day goes whole,
when its last moment is older than MILLRACE_KEEP_REQUEST_DAYS. Feedback that reviewers accepted, and corrections that wait for one,
first get a copy of what was asked and answered, because a training reads it; other feedback stays as it is, for its counts. Every
day is a short transaction of its own. Fails with `ServiceUnavailable` when a lock is not to be had, or MLflow does not answer; what
was done before stays done.
"""

import logging
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from tasks.database import Connection, connect
from tasks.errors import ServiceUnavailable
from tasks.mlflow_http import MlflowHttp
from tasks.serving.partitions import LOCK_TIMEOUT, bounds, days_ahead, make, name_of, partitioned, strays
from tasks.serving.spans import EXPERIMENT

log = logging.getLogger(__name__)

T = TypeVar("T")
TRIES, PAUSE_SECONDS = 5, 2.0
# What tasks.training.examples may learn from, now or when somebody has reviewed it.
_KEEP = (
    "UPDATE feedback f SET question = r.question, answer = r.answer, hits = r.hits, index_version = r.index_version "
    "FROM requests r WHERE r.id = f.request_id AND r.created_at >= %(start)s AND r.created_at < %(end)s "
    "AND f.question IS NULL AND f.status <> 'rejected' AND (f.correction IS NOT NULL "
    "OR (f.status = 'accepted' AND f.rating = 'up' AND r.answer IS NOT NULL AND r.error IS NULL))"
)
_LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)


def keep_house(url: str, keep_days: int, now: datetime, *, dry: bool) -> list[dict[str, Any]]:
    """Make partitions, and drop what is older than `keep_days`; return what was (or would be) dropped, oldest first."""
    limit = first_kept(keep_days, now)
    with connect(url, vectors=False) as connection:
        connection.autocommit = True
        old = [day for day in partitioned(connection) if day < limit]
        if dry:
            return [_found(connection, day) for day in old] + _found_strays(connection, limit)
        dropped = [_patiently(partial(drop, connection, day)) for day in old]
        strays_dropped = _patiently(partial(_drop_strays, connection, limit))
        _make_missing(connection, now)
    return [row for row in dropped if row is not None] + strays_dropped


def first_kept(keep_days: int, now: datetime) -> date:
    """Return the oldest day that is kept: the days before it are older than `keep_days` to their last moment."""
    return (now.astimezone(UTC) - timedelta(days=keep_days)).date()


def expire_traces(uri: str, keep_days: int, now: datetime, *, dry: bool) -> list[dict[str, Any]]:
    """Delete the traces in MLflow of the same days; return a row about those that were (or would be) deleted, or none."""
    day = first_kept(keep_days, now)
    with closing(MlflowHttp(uri)) as http:
        count = (http.count_traces_before if dry else http.delete_traces_before)(EXPERIMENT, bounds(day)[0])
    return [{"kind": "traces", "name": EXPERIMENT, "before": day.isoformat(), "rows": count}] if count else []


def drop(connection: Connection, day: date) -> dict[str, Any] | None:
    """Drop a day's partition; return its name, its rows, and the pieces of feedback that got a copy of theirs."""
    table, (start, end) = sql.Identifier(name_of(day)), bounds(day)
    with connection.transaction():
        connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'".encode())
        if day not in partitioned(connection):
            return None  # another housekeeping was here between our look and now
        # Readers go on; a late row waits, and then finds the default partition.
        connection.execute(sql.SQL("LOCK TABLE {} IN SHARE MODE").format(table))
        rows = _count(connection, start, end)
        kept = connection.execute(_KEEP.encode(), {"start": start, "end": end}).rowcount
        # What a candidate answered to them could not be found any more, by a report or by an erasure.
        connection.execute(sql.SQL("DELETE FROM shadow_answers WHERE request_id IN (SELECT id FROM {})").format(table))
        connection.execute(sql.SQL("ALTER TABLE requests DETACH PARTITION {}").format(table))
        connection.execute(sql.SQL("DROP TABLE {}").format(table))
    return {"kind": "request_day", "name": name_of(day), "rows": rows, "feedback_kept": kept}


def _drop_strays(connection: Connection, limit: date) -> list[dict[str, Any]]:
    with connection.transaction():
        connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'".encode())
        connection.execute("LOCK TABLE requests_default IN SHARE ROW EXCLUSIVE MODE")  # nobody writes, all may read
        end = bounds(limit)[0]
        kept = connection.execute(_KEEP.encode(), {"start": _LONG_AGO, "end": end}).rowcount
        connection.execute(
            "DELETE FROM shadow_answers WHERE request_id IN (SELECT id FROM requests_default WHERE created_at < %s)",
            (end,),
        )
        rows = connection.execute("DELETE FROM requests_default WHERE created_at < %s", (end,)).rowcount
    return [{"kind": "request_rows", "name": "requests_default", "rows": rows, "feedback_kept": kept}] if rows else []


def _found(connection: Connection, day: date) -> dict[str, Any]:
    return {"kind": "request_day", "name": name_of(day), "rows": _count(connection, *bounds(day))}


def _found_strays(connection: Connection, limit: date) -> list[dict[str, Any]]:
    query = "SELECT count(*) AS n FROM requests_default WHERE created_at < %s"
    row = connection.execute(query, (bounds(limit)[0],)).fetchone()
    return [{"kind": "request_rows", "name": "requests_default", "rows": row["n"]}] if row and row["n"] else []


def _count(connection: Connection, start: datetime, end: datetime) -> int:
    query = "SELECT count(*) AS n FROM requests WHERE created_at >= %s AND created_at < %s"
    row = connection.execute(query, (start, end)).fetchone()
    return int(row["n"]) if row else 0


def _make_missing(connection: Connection, now: datetime) -> None:
    """Make the partitions of the coming days, and of those whose rows came late."""
    there = partitioned(connection)
    for day in sorted({*strays(connection), *days_ahead(now)}.difference(there)):
        moved = _patiently(partial(make, connection, day))
        if moved is None:
            log.warning("partition=%s is not made: a table has its name, or another makes it", name_of(day))
        else:
            log.info("partition=%s made, rows=%d moved into it", name_of(day), moved)


def _patiently(work: Callable[[], T]) -> T:
    """Do it, more than once where a lock was not to be had. Raises ServiceUnavailable."""
    for tries_left in reversed(range(TRIES)):
        try:
            return work()
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if not tries_left:
                raise ServiceUnavailable(
                    f"expected a lock on table requests within {LOCK_TIMEOUT}, found {str(error).strip()}. "
                    "Next: look who holds it (SELECT * FROM pg_locks), and start housekeeping again."
                ) from error
            time.sleep(PAUSE_SECONDS)
    raise AssertionError("never reached: the last try returns or raises")
