"""What one client may ask: minutes and days, in time and in threads, and as OpenAI tells it."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, time, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tasks.errors import ServiceUnavailable
from tasks.serving import limits
from tasks.serving.answering import Assistant
from tasks.serving.limits import DayBudget, Limits, PerMinute
from tasks.serving.refusals import LEFT, QuotaUsedUp, RateLimited
from tasks.serving.request_log import RequestRow

from .conftest import app_of, call
from .test_api import QUESTION, error_of
from .test_keys import BEARER, KEYS
from .test_metrics import scrape

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds)


def spent(clock: Clock, tokens: int, client: str = "a", **more: Any) -> RequestRow:
    """Return the row of a request that took so many tokens."""
    values = {"prompt_tokens": tokens - 1, "completion_tokens": 1} | more
    return RequestRow("chat", "q", key_name=client, created_at=clock.now(), **values)


def test_retry_after_is_true_and_no_minute_holds_more() -> None:
    clock = Clock()
    minute = PerMinute(3, clock.monotonic)
    taken: list[float] = []
    waited = 0
    for _ in range(500):
        clock.seconds += 0.25
        try:
            minute.take("a")
        except RateLimited as refused:
            assert 0 < refused.retry_after <= 60
            clock.seconds += refused.retry_after - 0.001
            with pytest.raises(RateLimited):
                minute.take("a")
            clock.seconds += 0.0011
            minute.take("a")  # as it was told
            waited += 1
        taken.append(clock.seconds)
    assert waited > 100
    assert all(late - early >= 60 for early, late in zip(taken, taken[3:], strict=False))


def test_clients_do_not_share_and_those_that_left_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLIENTS", 50)
    clock = Clock()
    minute = PerMinute(1, clock.monotonic)
    for number in range(500):
        minute.take(f"client-{number}")
    assert len(minute._asked) == 50
    with pytest.raises(RateLimited):
        minute.take("client-499")
    clock.seconds = 61
    assert minute.headers("client-499") == {
        "x-ratelimit-limit-requests": "1", "x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "0ms",
    }  # fmt: skip
    assert "client-499" not in minute._asked


def test_many_threads_get_exactly_the_limit() -> None:
    minute, barrier, got = PerMinute(40), threading.Barrier(16), Counter[str]()
    lock = threading.Lock()

    def ask() -> None:
        barrier.wait()
        for _ in range(20):
            try:
                minute.take("a")
                result = "taken"
            except RateLimited:
                result = "refused"
            with lock:
                got[result] += 1

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(ask) for _ in range(16)]:
            done.result()
    assert got == {"taken": 40, "refused": 280}


def test_a_budget_lasts_a_day_of_utc() -> None:
    clock = Clock()
    budget = DayBudget(100, lambda _moment: {}, lambda _id: True, clock.now)
    budget.require("a")
    budget.spend(spent(clock, 60))
    budget.require("a")
    assert budget.headers("a")["x-ratelimit-remaining-tokens"] == "40"
    budget.spend(spent(clock, 70))
    with pytest.raises(QuotaUsedUp) as caught:
        budget.require("a")
    assert caught.value.retry_after == 12 * 3600 and budget.headers("a")["x-ratelimit-remaining-tokens"] == "0"
    budget.require("b")
    late = spent(clock, 500)
    clock.seconds = 12 * 3600 - 1
    with pytest.raises(QuotaUsedUp):
        budget.require("a")
    clock.seconds += 1
    budget.spend(late)  # it began yesterday, where the database counts it too
    assert budget.headers("a")["x-ratelimit-remaining-tokens"] == "100"


def test_what_failed_costs_nothing_and_who_left_pays() -> None:
    clock = Clock()
    budget = DayBudget(100, lambda _moment: {}, lambda _id: True, clock.now)
    budget.spend(spent(clock, 50, error="TooLate"))
    assert budget.headers("a")["x-ratelimit-remaining-tokens"] == "100"
    budget.spend(spent(clock, 50, error=LEFT))
    assert budget.headers("a")["x-ratelimit-remaining-tokens"] == "50"


def test_what_the_database_tells_is_counted_once() -> None:
    clock = Clock()
    waiting: set[UUID] = set()
    asked: list[datetime] = []
    table: Counter[str] = Counter({"a": 30})

    def read(moment: datetime) -> dict[str, int]:
        asked.append(moment)
        return dict(table)

    def left() -> int:
        return int(budget.headers("a")["x-ratelimit-remaining-tokens"])

    budget = DayBudget(100, read, waiting.__contains__, clock.now)
    assert left() == 100
    budget.refresh()
    assert left() == 70 and asked == [datetime(2026, 3, 4, tzinfo=UTC)], "what was used before the start"
    written, spooled = spent(clock, 20), spent(clock, 10)
    waiting |= {written.id, spooled.id}
    for row in (written, spooled):
        budget.spend(row)
    budget.refresh()
    assert left() == 40
    waiting.remove(written.id)
    table["a"] += 20
    budget.refresh()
    budget.refresh()
    assert left() == 40 and list(budget._since) == [spooled.id]
    table["a"] += 5  # another assistant
    budget.refresh()
    assert left() == 35


def test_a_database_that_is_away_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "READ_SECONDS", 0.01)
    errors: list[Exception] = [
        ServiceUnavailable("away"),
        psycopg.errors.UndefinedTable("no table"),
        ServiceUnavailable("away"),
    ]
    there = threading.Event()

    def read(_moment: datetime) -> dict[str, int]:
        if errors:
            raise errors.pop()
        there.set()
        return {"a": 99}

    budget = DayBudget(100, read, lambda _id: True)
    budget.start()
    assert there.wait(10)
    while budget.headers("a")["x-ratelimit-remaining-tokens"] != "1":
        pass
    budget.close()
    assert not budget._thread.is_alive() and caplog.text.count("cannot be read") == 3


@pytest.fixture
def limited(ready: Assistant) -> Assistant:
    """Two requests a minute, and ten tokens a day."""
    ready.limits = Limits(PerMinute(2), DayBudget(10, lambda _moment: {}, lambda _id: True))
    return ready


def test_a_client_beyond_its_minute_is_refused_as_openai_does(
    limited: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Any] = []
    monkeypatch.setattr(limited.requests, "put", rows.append)
    app = app_of(limited, keys=KEYS)
    search = {"json": {"query": "loop"}, "headers": BEARER}
    answers = [call(app, "POST", "/v1/search", **search) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0", "0"]
    assert error_of(answers[2]) | {"message": ""} == {
        "message": "", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded",
    }  # fmt: skip
    assert 55 <= int(answers[2].headers["retry-after"]) <= 60 and answers[2].headers["x-request-id"]
    assert answers[2].headers["x-ratelimit-limit-requests"] == "2"
    assert 55_000 < int(answers[2].headers["x-ratelimit-reset-requests"].removesuffix("ms")) <= 60_000
    other = {"Authorization": "Bearer schlüssel".encode()}
    assert call(app, "POST", "/v1/search", json={"query": "loop"}, headers=other).status_code == 200  # type: ignore[arg-type]
    probe = call(app, "GET", "/healthz")
    assert probe.status_code == 200 and not [name for name in probe.headers if name.startswith("x-ratelimit")]
    assert len(rows) == 3, "a flood does not fill the request log"
    # The two that were refused; nobody without a key uses up anybody's minute.
    assert call(app, "POST", "/v1/search", json={"query": "loop"}).status_code == 401
    assert scrape(app)["limited_total", "requests_per_minute"] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_used_up_day_is_refused_as_openai_does(limited: Assistant, stream: bool) -> None:
    limited.limits = Limits(None, limited.limits._per_day)
    app = app_of(limited, keys=KEYS)
    chat = {"json": QUESTION | {"stream": stream}, "headers": BEARER}
    first, second = (call(app, "POST", "/v1/chat/completions", **chat) for _ in range(2))
    assert first.status_code == 200 and first.headers["x-ratelimit-limit-tokens"] == "10"
    assert second.status_code == 429
    error = error_of(second)
    assert error["code"] == error["type"] == "insufficient_quota"
    assert second.headers["x-ratelimit-remaining-tokens"] == "0" and second.headers["x-should-retry"] == "false"
    then = datetime.now(UTC) + timedelta(seconds=int(second.headers["retry-after"]))
    assert (then + timedelta(seconds=5)).time() < time(0, 1), "midnight"
    assert call(app, "POST", "/v1/search", json={"query": "loop"}, headers=BEARER).status_code == 200, (
        "it costs no token"
    )
    assert scrape(app)["limited_total", "tokens_per_day"] == 1


def test_without_keys_an_address_is_a_client_and_by_default_nothing_is_limited(ready: Assistant) -> None:
    app = app_of(ready)
    answers = [call(app, "POST", "/v1/search", json={"query": "loop"}) for _ in range(30)]
    assert {answer.status_code for answer in answers} == {200}
    assert not [name for name in answers[0].headers if name.startswith("x-ratelimit")]
    ready.limits = Limits(PerMinute(1))
    app = app_of(ready)
    assert [call(app, "GET", "/v1/models").status_code for _ in range(2)] == [200, 429]
    assert list(ready.limits._per_minute._asked) == ["127.0.0.1"]  # type: ignore[union-attr]
