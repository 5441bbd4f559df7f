"""The partitions of table `requests`: one a UTC day, `requests_20261122`, made before the day begins.

The assistant makes them (`Ahead`, on the thread of its request log) and so does housekeeping; an advisory lock keeps two
from making one at once. Rows that came before their partition stand in `requests_default` and are moved in the transaction
that makes it. A lock that is not to be had within `LOCK_TIMEOUT` is given up, so that whoever writes is never stopped for
longer. Raises what psycopg raises; `Ahead` raises nothing.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta

import psycopg
from psycopg import sql

from tasks.database import Connection
from tasks.errors import ServiceUnavailable
from tasks.serving.connection import KeptConnection

log = logging.getLogger(__name__)

DAYS_AHEAD = 7
LOCK_TIMEOUT = "2s"
AGAIN_SECONDS, AGAIN_WHEN_AWAY_SECONDS = 3600.0, 60.0
_LOCK = 0x44617973  # any constant number, other than those of migrations, ledger, mirror and backup; ours spells "Days"
_NAME = re.compile(r"requests_(\d{8})")


def name_of(day: date) -> str:
    """Return the name of a day's partition."""
    return f"requests_{day:%Y%m%d}"


def bounds(day: date) -> tuple[datetime, datetime]:
    """Return the first moment of a day and the first after it."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return start, start + timedelta(days=1)


def days_ahead(now: datetime) -> list[date]:
    """Return today and the days after it that have their partition before they begin."""
    today = now.astimezone(UTC).date()
    return [today + timedelta(days=number) for number in range(DAYS_AHEAD + 1)]


def partitioned(connection: Connection) -> list[date]:
    """Return the days that have a partition, oldest first."""
    rows = connection.execute(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
        "WHERE i.inhparent = to_regclass('requests') ORDER BY c.relname"
    )
    found = [_NAME.fullmatch(row["relname"]) for row in rows]
    return [datetime.strptime(match[1], "%Y%m%d").date() for match in found if match]


def strays(connection: Connection) -> list[date]:
    """Return the days whose rows stand in the default partition, oldest first."""
    rows = connection.execute(
        "SELECT DISTINCT (created_at AT TIME ZONE 'UTC')::date AS day FROM requests_default ORDER BY 1"
    )
    return [row["day"] for row in rows]


def make(connection: Connection, day: date) -> int | None:
    """Make the partition of `day`; return how many rows moved into it.

    None: it is there, another makes it now, or a table that is no partition has its name (one that somebody detached to
    keep; its day's rows stay in the default partition).
    """
    table, (start, end) = sql.Identifier(name_of(day)), bounds(day)
    with connection.transaction():
        if not _alone(connection) or _exists(connection, name_of(day)):
            return None
        connection.execute(
            sql.SQL(
                "CREATE TABLE {} (LIKE requests INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES INCLUDING STORAGE)"
            ).format(table)
        )
        # From here nobody writes into the default partition or reads it, so no row can be missed or seen twice.
        connection.execute("LOCK TABLE requests_default IN ACCESS EXCLUSIVE MODE")
        moved = connection.execute(
            sql.SQL(
                "WITH moved AS (DELETE FROM requests_default WHERE created_at >= {start} AND created_at < {end} RETURNING *) "
                "INSERT INTO {table} SELECT * FROM moved"
            ).format(table=table, start=sql.Literal(start), end=sql.Literal(end))
        ).rowcount
        connection.execute(
            sql.SQL("ALTER TABLE requests ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
                table, sql.Literal(start.isoformat()), sql.Literal(end.isoformat())
            )
        )
    return moved


def _alone(connection: Connection) -> bool:
    """Set how long a lock is waited for, and take the lock of those who make partitions, until the transaction ends."""
    connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'".encode())
    row = connection.execute("SELECT pg_try_advisory_xact_lock(%s) AS held", (_LOCK,)).fetchone()
    return row is not None and bool(row["held"])


def _exists(connection: Connection, name: str) -> bool:
    row = connection.execute("SELECT to_regclass(%s) IS NOT NULL AS found", (name,)).fetchone()
    return row is not None and bool(row["found"])


class Ahead:
    """Makes the partitions of the coming days, at first and then every hour. What it cannot do it logs, and tries again."""

    def __init__(self, connection: KeptConnection, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._connection, self._now = connection, now
        self._next = 0.0

    def work(self) -> None:
        """Make what is missing, when it is time to."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + AGAIN_SECONDS
        try:
            there = self._connection.run(partitioned)
            # Today last: its rows may lie in the default partition, and moving them may take longer than we are given.
            self._make(sorted((day for day in days_ahead(self._now()) if day not in there), reverse=True))
        except ServiceUnavailable as error:  # away, or somebody held a lock for too long
            self._next = time.monotonic() + AGAIN_WHEN_AWAY_SECONDS
            log.warning("partitions of requests are not made, rows go to requests_default: %s", error)
        except psycopg.Error as error:  # rights, or a schema that is older
            log.warning("partitions of requests are not made, rows go to requests_default: %s", str(error).strip())

    def _make(self, days: Iterable[date]) -> None:
        for day in days:
            moved = self._connection.run(lambda connection, day=day: make(connection, day))  # type: ignore[misc]
            if moved is not None:
                log.info("partition=%s made, rows=%d moved into it", name_of(day), moved)
