"""One database connection that is kept open, and opened again after it was lost.

Reads and writes what its user's work does. Fails with `ServiceUnavailable` when Postgres does not
answer; for a moment after that it fails at once, so that no request waits for a connect timeout that
another has just seen. A server that is frozen ends no statement by its own timeout: after `work_seconds`
the connection is broken from this side.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TypeVar

import psycopg

from tasks.database import Connection, connect
from tasks.errors import ServiceUnavailable

T = TypeVar("T")


class KeptConnection:
    """A connection for one kind of work; one piece of work at a time. Opens on first use."""

    def __init__(
        self, url: str, *, statement_seconds: float = 5.0, rest_seconds: float = 1.0, work_seconds: float = 10.0
    ) -> None:
        self._url = url
        self._work_seconds = work_seconds
        self._statement_ms = int(statement_seconds * 1000)
        self._rest = rest_seconds
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._connection: Connection | None = None
        self._away: ServiceUnavailable | None = None
        self._away_until = 0.0

    def run(self, work: Callable[[Connection], T]) -> T:
        """Return `work(connection)`, done in one transaction.

        A connection found dead is replaced and the work done once more, so the work must be safe to repeat.
        """
        with self._lock:
            kept = self._connection is not None
            try:
                return self._attempt(work)
            except ServiceUnavailable:
                if not kept:
                    raise
            return self._attempt(work)

    def _attempt(self, work: Callable[[Connection], T]) -> T:
        if self._away is not None and time.monotonic() < self._away_until:
            raise ServiceUnavailable(str(self._away))
        try:
            connection = self._connection or self._open()
            with _bounded(connection, self._work_seconds), connection.transaction():
                result = work(connection)
        except ServiceUnavailable as error:
            self._drop()
            self._away, self._away_until = error, time.monotonic() + self._rest
            raise
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            self._drop()
            raise ServiceUnavailable(
                f"expected Postgres to answer, found {str(error).strip() or type(error).__name__}. "
                "Next: `make status`; retry."
            ) from error
        self._away = None
        return result

    def _open(self) -> Connection:
        connection = self._stack.enter_context(connect(self._url))
        connection.commit()  # the lookup of the vector type began a transaction
        connection.autocommit = True
        connection.execute(f"SET statement_timeout = {self._statement_ms}".encode())
        self._connection = connection
        return connection

    def _drop(self) -> None:
        self._connection = None
        try:
            self._stack.close()
        except ServiceUnavailable:
            self._stack = ExitStack()  # it was broken: that is why it is dropped

    def close(self) -> None:
        """Close the connection if one is open."""
        with self._lock:
            self._drop()


@contextmanager
def _bounded(connection: Connection, seconds: float) -> Iterator[None]:
    """End the block's work with an OperationalError when Postgres has not answered after `seconds`."""
    guard, over = threading.Lock(), False

    def break_off() -> None:
        with guard:
            if over or connection.closed:
                return
            # Another thread waits for this socket: it must find it ended, not closed and perhaps opened as something else.
            with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as ended:
                ended.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, break_off)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with guard:
            over = True
