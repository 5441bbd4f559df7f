"""Answers as events: through the application, and through a real server whose clients leave or stall."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from tasks.errors import ServiceUnavailable
from tasks.serving import streaming, telling
from tasks.serving.answering import Assistant, Begun
from tasks.serving.language_model import Sampling
from tasks.serving.refusals import LEFT
from tasks.serving.telling import Teller
from tasks.serving.transformers_model import TransformersModel

from .conftest import app_of, call
from .test_api import QUESTION, error_of

LONG = QUESTION | {"max_tokens": 300, "temperature": 1.5, "seed": 4}


def events(answer: httpx.Response) -> list[Any]:
    """Return the bodies of an event stream; [DONE] as it stands."""
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream"), answer.text
    lines = [line for line in answer.text.split("\n\n") if not line.startswith(":")]
    assert lines.pop() == "" and all(line.startswith("data: ") and "\n" not in line for line in lines)
    found = [line.removeprefix("data: ") for line in lines]
    return [one if one == "[DONE]" else json.loads(one) for one in found]


@pytest.fixture
def rows(ready: Assistant, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What goes to the request log."""
    found: list[Any] = []
    monkeypatch.setattr(ready.requests, "put", found.append)
    return found


@pytest.fixture
def url(ready: Assistant) -> Iterator[str]:
    """A server of the application on a port of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app_of(ready), log_config=None, timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def wait_for(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_the_chunks_are_the_answer(ready: Assistant, rows: list[Any]) -> None:
    whole = call(app_of(ready), "POST", "/v1/chat/completions", json=QUESTION).json()
    told = QUESTION | {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, done = events(call(app_of(ready), "POST", "/v1/chat/completions", json=told))
    first, *pieces, last, used = chunks
    assert done == "[DONE]"
    assert {one["object"] for one in chunks} == {"chat.completion.chunk"}
    assert {one["id"] for one in chunks} == {"chatcmpl-" + first["request_id"].replace("-", "")}
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["documents"] == whole["documents"]
    text = "".join(one["choices"][0]["delta"]["content"] for one in pieces)
    assert text == whole["choices"][0]["message"]["content"] == rows[1].answer
    assert last["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert last["millrace"].keys() == whole["millrace"].keys()
    assert used["choices"] == [] and used["usage"] == whole["usage"]
    assert [one["usage"] for one in (first, *pieces, last)] == [None] * (len(pieces) + 2)
    assert str(rows[1].id) == first["request_id"] and rows[1].error is None


def test_usage_is_told_where_it_is_asked_for(ready: Assistant) -> None:
    found = events(call(app_of(ready), "POST", "/v1/chat/completions", json=QUESTION | {"stream": True}))
    assert not any("usage" in one for one in found[:-1])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (QUESTION | {"model": "other"}, 404, "model_not_found"),
        (QUESTION | {"messages": [{"role": "user", "content": "word " * 1500}]}, 400, "context_length_exceeded"),
        ({"messages": []}, 400, "invalid_request"),
    ],
)
def test_what_is_refused_has_a_status(ready: Assistant, body: dict[str, Any], status: int, code: str) -> None:
    answer = call(app_of(ready), "POST", "/v1/chat/completions", json=body | {"stream": True})
    assert answer.status_code == status and error_of(answer)["code"] == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ServiceUnavailable("expected a model, found none."), "service_unavailable"),
        (ValueError("secret"), "internal_error"),
    ],
)
def test_what_breaks_later_is_an_event(
    ready: Assistant, rows: list[Any], monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(TransformersModel, "_tokens", broken)
    first, last = events(call(app_of(ready), "POST", "/v1/chat/completions", json=QUESTION | {"stream": True}))
    assert first["choices"] and last["error"]["code"] == code and "secret" not in str(last)
    assert rows[0].error in ("ServiceUnavailable", "InternalError")


@pytest.fixture
def held(ready: Assistant, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The model makes a first token, and waits for this event before the next."""
    go = threading.Event()
    put = Teller.put

    def waiting(teller: Teller, token: int) -> None:
        put(teller, token)
        assert go.wait(30)

    monkeypatch.setattr(Teller, "put", waiting)
    yield go
    go.set()


def test_who_leaves_ends_the_generation_and_gives_the_place_back(
    ready: Assistant, rows: list[Any], url: str, held: threading.Event
) -> None:
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=LONG | {"stream": True}, timeout=30) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        while '"content": ""' in (line := next(lines)) or not line.startswith("data: "):
            continue  # until the first piece
    wait_for(lambda: rows)
    held.set()
    (row,) = rows
    assert row.error == LEFT and row.answer and 0 < row.completion_tokens < 5 and row.prompt_tokens > 0
    again = httpx.post(f"{url}/v1/chat/completions", json=QUESTION, timeout=30)
    assert again.status_code == 200


def test_who_leaves_the_line_is_not_served(
    ready: Assistant, rows: list[Any], url: str, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "PATIENCE", 0.05)
    first = threading.Thread(target=lambda: httpx.post(f"{url}/v1/chat/completions", json=QUESTION, timeout=60))
    first.start()
    wait_for(lambda: ready._listeners)
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=LONG | {"stream": True}, timeout=30) as answer:
        lines = answer.iter_lines()
        while next(lines) != ": waiting":
            continue
    wait_for(lambda: rows)
    assert rows[0].error == LEFT and rows[0].completion_tokens == 0 and not held.is_set()
    held.set()
    first.join(30)
    wait_for(lambda: len(rows) == 2)
    assert rows[1].error is None


def test_a_stop_ends_what_is_written_with_what_there_is(
    ready: Assistant, rows: list[Any], url: str, held: threading.Event
) -> None:
    answers: list[Any] = []
    body = LONG | {"stream": True}
    thread = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60))
    )
    thread.start()
    wait_for(lambda: any(listener.tokens for listener in ready._listeners))
    ready.hurry()
    held.set()
    thread.join(30)
    *_, last, done = events(answers[0])
    assert done == "[DONE]" and last["choices"][0]["finish_reason"] == "length"
    assert rows[0].error is None and rows[0].completion_tokens < 5


def test_a_stream_that_never_began_gives_its_place_back(ready: Assistant, rows: list[Any]) -> None:
    """Whatever still refers to it."""
    asked: Any = ([{"role": "user", "content": "loop"}], None, Sampling(4), "")
    inner = ready.stream(*asked)
    begun = next(inner)
    assert isinstance(begun, Begun)
    response = streaming.EventStream(streaming.chunks(begun, inner, with_usage=False), inner)

    async def gone(*_: Any) -> Any:
        raise OSError("the client has gone")

    asyncio.run(response({"type": "http", "asgi": {"spec_version": "2.4"}}, gone, gone))
    assert rows[0].error == LEFT and ready.releases.live.users == 0  # type: ignore[union-attr]


def test_a_client_that_takes_nothing_is_let_go(
    ready: Assistant, rows: list[Any], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "STALLED_SECONDS", 0.5)
    monkeypatch.setattr(streaming, "event", lambda body: f"data: {json.dumps(body)}{' ' * 2_000_000}\n\n")
    body = json.dumps(LONG | {"stream": True}).encode()
    host, port = url.removeprefix("http://").split(":")
    with contextlib.closing(socket.create_connection((host, int(port)))) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        wait_for(lambda: rows)
    assert rows[0].error == LEFT


def test_several_are_told_beside_each_other(ready: Assistant, url: str) -> None:
    texts: list[str] = []

    def ask() -> None:
        found = events(httpx.post(f"{url}/v1/chat/completions", json=QUESTION | {"stream": True}, timeout=60))
        texts.append("".join(one["choices"][0]["delta"].get("content", "") for one in found[:-1]))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(texts) == 5 and len(set(texts)) == 1 and texts[0]
