"""The `openai` client, unchanged, against the assistant on a port."""

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI

from tasks.serving.answering import Assistant
from tasks.serving.refusals import Busy, KnowledgeAway

from .conftest import app_of

MESSAGES: Any = [{"role": "user", "content": "when does the while loop run the else clause"}]
Serve = Callable[[FastAPI], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return what serves an application on a free port, and its URL."""
    running: list[tuple[uvicorn.Server, threading.Thread, socket.socket]] = []

    def start(app: FastAPI) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
        thread.start()
        running.append((server, thread, listener))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread, listener in running:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


def client_of(url: str, key: str = "none", retries: int = 0) -> openai.OpenAI:
    """Return the client as its documentation makes it."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=retries, timeout=60)


def test_it_lists_asks_streams_and_stops(ready: Assistant, serve: Serve) -> None:
    client = client_of(serve(app_of(ready)))
    assert [model.id for model in client.models.list()] == ["millrace", "tiny"]
    asked: dict[str, Any] = {"model": "millrace", "messages": MESSAGES, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    assert whole.object == "chat.completion" and whole.choices[0].message.role == "assistant" and whole.usage
    text = whole.choices[0].message.content or ""
    assert text and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.model_extra and whole.model_extra["documents"][0]["uri"] == "pydoc:topics/while"

    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage == whole.usage and [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].id.startswith("chatcmpl-")

    stop = text[4:6]
    stopped = client.chat.completions.create(**asked, stop=stop).choices[0]
    assert stopped.message.content == text[: text.index(stop)] and stopped.finish_reason == "stop"
    with client.chat.completions.stream(**asked, stop=stop) as events:
        assert events.get_final_completion().choices[0].message.content == text[: text.index(stop)]


def test_its_async_client_asks_many_at_once(ready: Assistant, serve: Serve) -> None:
    import asyncio

    url = serve(app_of(ready))

    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=60) as client:
            made = [
                client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=4, temperature=0)
                for _ in range(6)
            ]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*made)]

    assert len(set(asyncio.run(ask()))) == 1


def test_what_is_refused_is_the_error_of_its_kind(ready: Assistant, serve: Serve) -> None:
    client = client_of(serve(app_of(ready)))
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model") and "GET /v1/models" in str(
        unknown.value
    )
    with pytest.raises(openai.BadRequestError) as malformed:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=7)
    assert malformed.value.param == "temperature" and malformed.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, n=3)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="tiny", input="loop")
    with pytest.raises(openai.APIStatusError) as large:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a" * 1_100_000}])
    assert large.value.status_code == 413 and large.value.code == "request_too_large"
    with pytest.raises(openai.InternalServerError) as away:  # feedback that cannot be kept: no database is here
        client.post("/feedback", body={"request_id": "0" * 32, "rating": "up"}, cast_to=object)
    assert away.value.status_code == 503


def test_a_key_is_asked_for(ready: Assistant, serve: Serve) -> None:
    from tasks.serving.keys import parse_keys

    url = serve(app_of(ready, keys=parse_keys(hashlib.sha256(b"right").hexdigest())))
    assert client_of(url, "right").chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2).choices
    with pytest.raises(openai.AuthenticationError) as refused:
        client_of(url, "wrong", retries=3).models.list()
    assert refused.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("error", "kind", "status"), [(Busy, openai.RateLimitError, 429), (KnowledgeAway, openai.InternalServerError, 503)]
)
def test_what_passes_is_tried_again_and_ends(
    ready: Assistant, serve: Serve, monkeypatch: pytest.MonkeyPatch, error: Any, kind: Any, status: int
) -> None:
    calls, real, failures = [], ready.stream, [9]

    def crowded(*asked: Any) -> Any:
        calls.append(time.monotonic())
        if len(calls) <= failures[0]:
            raise error("expected room, found none. Next: retry.")
        return real(*asked)

    monkeypatch.setattr(ready, "stream", crowded)
    client = client_of(serve(app_of(ready)), retries=2)
    with pytest.raises(kind) as ended:
        client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2)
    assert ended.value.status_code == status and len(calls) == 3
    assert all(later - earlier >= 0.9 for earlier, later in zip(calls, calls[1:], strict=False)), "as Retry-After says"
    calls.clear()
    failures[0] = 1
    assert client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2).choices and len(calls) == 2


def test_a_flood_is_answered_or_told_to_come_back_and_every_request_is_recorded(
    ready: Assistant, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Any] = []
    monkeypatch.setattr(ready.requests, "put", rows.append)
    url, answers = serve(app_of(ready)), []

    def ask() -> None:
        body = {"messages": MESSAGES, "max_tokens": 40}
        answers.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120))

    flood = [threading.Thread(target=ask) for _ in range(50)]
    for thread in flood:
        thread.start()
    for thread in flood:
        thread.join()
    statuses = [answer.status_code for answer in answers]
    assert len(answers) == 50 and set(statuses) == {200, 429}, statuses
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 429)
    accepted = {answer.json()["request_id"] for answer in answers if answer.status_code == 200}
    assert len(rows) == 50 and accepted == {str(row.id) for row in rows if row.error is None}
    assert {row.error for row in rows} == {None, "Busy"} and all(
        row.answer is not None for row in rows if not row.error
    )


@pytest.mark.parametrize("chunked", [False, True])
def test_ten_megabytes_are_not_read_to_their_end(ready: Assistant, serve: Serve, chunked: bool) -> None:
    host, port = serve(app_of(ready)).removeprefix("http://").split(":")
    sent = 0
    with socket.create_connection((host, int(port)), timeout=20) as line:
        length = "Transfer-Encoding: chunked" if chunked else "Content-Length: 10000000"
        head = f"POST /v1/search HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n{length}\r\n\r\n"
        line.sendall(head.encode())
        block = b"2710\r\n" + b"x" * 10_000 + b"\r\n" if chunked else b"x" * 10_000
        try:
            while sent < 10_000_000:
                line.sendall(block)
                sent += 10_000
        except OSError:
            pass  # it was refused and closed meanwhile
        try:
            told = line.recv(65536)
        except ConnectionResetError:
            told = b""
    assert not told or told.startswith(b"HTTP/1.1 413")
    assert told or sent < 10_000_000
    assert httpx.post(f"http://{host}:{port}/v1/search", json={"query": "loop"}, timeout=20).status_code == 200
