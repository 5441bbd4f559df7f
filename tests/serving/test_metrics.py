"""The assistant's metrics over a real tiny model: what is counted, what is not, and who may read it. And its ids."""

import asyncio
import hashlib
import json
import logging

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from tasks.observability import logs, trace
from tasks.observability.catalog import SERVED
from tasks.serving.answering import Assistant
from tasks.serving.keys import parse_keys

from .conftest import app_of, call

CHAT = {"messages": [{"role": "user", "content": "when does the while loop run the else clause"}], "max_tokens": 6}
KEY = "test-key"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def scrape(app: FastAPI) -> dict[tuple[str, ...], float]:
    """Return the samples as (name, label values in the order of their names): value."""
    answer = call(app, "GET", "/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (
            sample.name.removeprefix("millrace_assistant_"),
            *(text for _label, text in sorted(sample.labels.items())),
        ): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_requests_phases_tokens_and_scores_are_counted(ready: Assistant) -> None:
    app = app_of(ready)
    usage = call(app, "POST", "/v1/chat/completions", json=CHAT).json()["usage"]
    call(app, "POST", "/v1/search", json={"query": "value of a function"})
    call(app, "POST", "/v1/chat/completions", json=CHAT | {"model": "other"})
    call(app, "GET", "/wp-admin")
    call(app, "GET", "/healthz")
    found = scrape(app)
    assert found["requests_total", "chat", "answered"] == found["requests_total", "search", "answered"] == 1
    assert found["requests_total", "chat", "UnknownModel"] == 1
    assert found["tokens_total", "prompt"] == usage["prompt_tokens"]
    assert found["tokens_total", "completion"] == usage["completion_tokens"]
    assert found["phase_seconds_count", "chat", "generation"] == found["phase_seconds_count", "chat", "retrieval"] == 1
    assert found["phase_seconds_count", "chat", "total"] == 2 and found["phase_seconds_count", "search", "total"] == 1
    assert 0 < found["phase_seconds_sum", "chat", "generation"] <= found["phase_seconds_sum", "chat", "total"]
    assert found["best_score_count", "chat"] == 1 and 0 < found["best_score_sum", "chat"] <= 1.001
    assert found["in_flight", "chat"] == 0 and found["places", "chat"] == 9
    # Two scrapes and a probe are no requests; a path that a caller made up is no label.
    assert {key[1:]: number for key, number in scrape(app).items() if key[0] == "responses_total"} == {
        ("200", "/v1/chat/completions"): 1, ("404", "/v1/chat/completions"): 1, ("200", "/v1/search"): 1, ("404", "other"): 1,
    }  # fmt: skip


def test_the_release_and_the_request_log_are_told(ready: Assistant) -> None:
    app = app_of(ready)
    call(app, "POST", "/v1/search", json={"query": "value of a function"})
    found = scrape(app)
    live = ready.releases.live
    assert live is not None
    assert found["ready",] == 1 and found["release_info", "1", "1", "1"] == 1
    assert found["release_created_timestamp_seconds",] == pytest.approx(live.release.created_at.timestamp(), abs=1)
    assert found["request_log_waiting",] == 1  # its database is away
    assert found["request_log_rows_total", "lost"] == 0


def test_every_metric_of_the_catalog_is_told(ready: Assistant) -> None:
    app = app_of(ready)
    call(app, "POST", "/v1/chat/completions", json=CHAT)
    text = call(app, "GET", "/metrics").text
    told = {line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE millrace_")}
    assert told == {name: metric.kind for name, metric in SERVED.items()}
    assert "_created " not in text.replace("release_created_timestamp", "")


def test_without_a_release_it_is_not_ready(assistant: Assistant) -> None:
    found = scrape(app_of(assistant))
    assert found["ready",] == 0 and found["release_behind",] == 1
    assert not [key for key in found if key[0] == "release_info"]


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        ("127.0.0.1", {}, 200), ("::1", {}, 200), ("10.0.0.9", {}, 401), ("10.0.0.9", {"authorization": "Bearer no"}, 401),
        ("10.0.0.9", {"authorization": f"Bearer {KEY}"}, 200), ("127.0.0.1", {"x-forwarded-for": "10.0.0.9"}, 401),
    ],
)  # fmt: skip
def test_from_elsewhere_a_key_is_needed(ready: Assistant, client: str, headers: dict[str, str], status: int) -> None:
    app = app_of(ready, keys=parse_keys(DIGEST))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://assistant.example") as session:
            return await session.get("/metrics", headers=headers)

    answer = asyncio.run(ask())
    assert answer.status_code == status
    assert ("millrace_assistant" in answer.text) == (status == 200)


def test_without_keys_a_web_page_cannot_read_it(ready: Assistant) -> None:
    assert call(app_of(ready), "GET", "/metrics", url="http://evil.example").status_code == 400


def test_an_answer_goes_on_with_the_callers_trace(ready: Assistant) -> None:
    answer = call(
        app_of(ready),
        "POST",
        "/v1/search",
        json={"query": "loop"},
        headers={"traceparent": f"00-{TRACE}-{'1' * 16}-01"},
    )
    place = trace.read(answer.headers["traceparent"])
    assert place is not None and place.trace_id == TRACE and place.span_id != "1" * 16 and place.flags == "01"
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


@pytest.mark.parametrize("header", [{}, {"traceparent": "00-broken"}])
def test_refusals_and_probes_have_ids_too(ready: Assistant, header: dict[str, str]) -> None:
    answers = [call(app_of(ready), "GET", path, headers=header) for path in ("/nowhere", "/healthz")]
    places = [trace.read(answer.headers["traceparent"]) for answer in answers]
    assert None not in places and places[0] != places[1]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 2


def test_the_log_line_of_a_request_has_its_ids(ready: Assistant) -> None:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Keep()
    handler.setFormatter(logs.JsonLines(lambda text: text))
    logger = logging.getLogger("tasks.serving.answering")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        answer = call(app_of(ready), "POST", "/v1/chat/completions", json=CHAT)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    line = json.loads(lines[-1])
    assert line["message"].startswith("request=") and line["request_id"] == answer.json()["request_id"]
    assert f"{line['trace_id']}-{line['span_id']}" in answer.headers["traceparent"]
