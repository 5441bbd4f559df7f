"""What one client may ask: so many requests in any minute, and so many tokens in a day (UTC).

A client is an API key's name; where no keys are set, only this machine asks, and requests are counted by address, tokens
together. Minutes are counted in this process. Tokens are those of table `requests`, so that a restart forgives nothing and
several assistants share a budget: a thread sums today's rows up every READ_SECONDS, and what this process has answered since
is added. While Postgres is away, what this process knows is what counts; no request waits for it. A request that was let
in is answered to its end, so a budget is passed by at most the requests that were in flight when it was used up. Requests
that failed cost nothing. Writes nothing. Fails with `RateLimited` and `QuotaUsedUp`.
"""

import logging
import math
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg

from tasks.database import Connection
from tasks.errors import ServiceUnavailable
from tasks.serving.connection import KeptConnection
from tasks.serving.refusals import LEFT, QuotaUsedUp, RateLimited
from tasks.serving.request_log import RequestRow

log = logging.getLogger(__name__)

MINUTE = 60.0
CLIENTS = 10_000  # remembered at once; the one that asked longest ago is forgotten first
READ_SECONDS = 15.0
CHAT = "/v1/chat/completions"

Headers = dict[str, str]
Read = Callable[[datetime], Mapping[str, int]]


class PerMinute:
    """At most `most` requests of a client in any minute. Safe to use from many threads."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._asked: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, client: str) -> None:
        """Count a request. Raises RateLimited, which counts nothing."""
        with self._lock:
            asked = self._recent(client)
            if len(asked) >= self._most:
                raise RateLimited(
                    f"expected at most {self._most} requests in a minute, found more. Next: wait as Retry-After says.",
                    retry_after=asked[0] + MINUTE - self._clock(),
                )
            asked.append(self._clock())
            self._asked[client] = asked
            self._asked.move_to_end(client)
            while len(self._asked) > CLIENTS:
                self._asked.popitem(last=False)

    def headers(self, client: str) -> Headers:
        """Return OpenAI's headers: the limit, what is left of it, and in how long it is whole again."""
        with self._lock:
            asked = self._recent(client)
            whole = asked[-1] + MINUTE - self._clock() if asked else 0.0
            return _headers("requests", self._most, self._most - len(asked), whole)

    def _recent(self, client: str) -> deque[float]:
        """Return when a client asked in the last minute; one that did not is forgotten."""
        asked, gone = self._asked.get(client, deque()), self._clock() - MINUTE
        while asked and asked[0] <= gone:
            asked.popleft()
        if not asked:
            self._asked.pop(client, None)
        return asked


class DayBudget:
    """At most `most` tokens of a client in a day. Safe to use from many threads; `start` begins to read."""

    def __init__(
        self,
        most: int,
        read: Read,
        waiting: Callable[[UUID], bool],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._most, self._read, self._waiting, self._clock = most, read, waiting, clock
        self._day = clock().date()
        self._recorded: Mapping[str, int] = {}  # by client, as the database told it
        self._since: dict[UUID, tuple[str, int]] = {}  # requests that may not have been among them
        self._sum: Counter[str] = Counter()  # of those, by client
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="day-budget", daemon=True)

    def require(self, client: str) -> None:
        """Raise QuotaUsedUp when a client has nothing left today."""
        if self._left(client) <= 0:
            raise QuotaUsedUp(
                f"expected at most {self._most} tokens in a day, found them used up. "
                "Next: wait until midnight (UTC), or ask whoever runs this assistant for more.",
                retry_after=self._seconds_left(),
            )

    def headers(self, client: str) -> Headers:
        """Return OpenAI's headers, as those of requests."""
        return _headers("tokens", self._most, max(0, self._left(client)), self._seconds_left())

    def spend(self, row: RequestRow) -> None:
        """Count the tokens of a request that has ended, and was given to the request log."""
        tokens = row.prompt_tokens + row.completion_tokens
        with self._lock:
            self._turn()
            if tokens and row.error in (None, LEFT) and row.created_at.date() == self._day:
                self._since[row.id] = row.key_name, tokens
                self._sum[row.key_name] += tokens

    def refresh(self) -> None:
        """Read today's sums. Raises ServiceUnavailable and psycopg's errors, and then keeps what it knows."""
        with self._lock:
            self._turn()
            day = self._day
            written = [one for one in self._since if not self._waiting(one)]
        found = self._read(datetime(day.year, day.month, day.day, tzinfo=UTC))
        with self._lock:
            self._turn()
            if day == self._day:
                self._recorded = found
                for one in written:
                    client, tokens = self._since.pop(one)
                    self._sum[client] -= tokens
                self._sum = +self._sum  # clients with nothing go

    def start(self) -> None:
        """Begin to read, on a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self.refresh()
            except (ServiceUnavailable, psycopg.Error) as error:
                log.warning("what clients have used today cannot be read, what is known counts: %s", error)
            self._stop.wait(READ_SECONDS)

    def _left(self, client: str) -> int:
        with self._lock:
            self._turn()
            return self._most - self._recorded.get(client, 0) - self._sum[client]

    def _seconds_left(self) -> float:
        now = self._clock()
        tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return (tomorrow - now).total_seconds()

    def _turn(self) -> None:
        """At midnight everybody begins anew."""
        if (today := self._clock().date()) != self._day:
            self._day, self._recorded = today, {}
            self._since.clear()
            self._sum.clear()


class Limits:
    """The limits of an assistant: none, one, or both."""

    def __init__(self, per_minute: PerMinute | None = None, per_day: DayBudget | None = None) -> None:
        self._per_minute, self._per_day = per_minute, per_day

    def admit(self, path: str, key_name: str, address: str) -> None:
        """Count a request of `/v1`. Raises RateLimited, and QuotaUsedUp for one that would be generated an answer."""
        if self._per_day is not None and path == CHAT:
            self._per_day.require(key_name)
        if self._per_minute is not None:
            self._per_minute.take(key_name or address)

    def headers(self, key_name: str, address: str) -> Headers:
        """Return OpenAI's headers about the limits there are."""
        found = self._per_minute.headers(key_name or address) if self._per_minute is not None else {}
        return found | (self._per_day.headers(key_name) if self._per_day is not None else {})

    def spend(self, row: RequestRow) -> None:
        """Count the tokens of a request that has ended."""
        if self._per_day is not None:
            self._per_day.spend(row)


def tokens_since(connection: KeptConnection) -> Read:
    """Return what reads the tokens of each client since a moment."""

    def read(moment: datetime) -> Mapping[str, int]:
        def work(opened: Connection) -> Mapping[str, int]:
            rows = opened.execute(
                "SELECT key_name, sum(prompt_tokens + completion_tokens)::bigint AS tokens FROM requests "
                "WHERE created_at >= %s AND (error IS NULL OR error = %s) GROUP BY key_name",
                (moment, LEFT),
            ).fetchall()
            return {row["key_name"]: row["tokens"] for row in rows}

        return connection.run(work)

    return read


def _headers(what: str, limit: int, left: int, seconds: float) -> Headers:
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(left),
        f"x-ratelimit-reset-{what}": f"{math.ceil(seconds * 1000)}ms",
    }
