"""Replay against a real HTTP server on a free port."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from tasks.errors import DataError, OptionError, ServiceUnavailable
from tasks.serving import replay as module
from tasks.serving.answering import Assistant
from tasks.serving.replay import _send, main, read_questions, replay
from tasks.serving.server import listen

from .conftest import app_of


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve `app` on a free port; yield its URL."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)


def test_every_question_is_sent_once(ready: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECORD_TRIES", 2)  # its database is away: the rows stay in the spool
    seen: list[str] = []
    find = ready._find

    def noting(loaded: Any, question: str, vector: Any, k: int) -> Any:
        seen.append(str(vector.tobytes()))
        return find(loaded, question, vector, k)

    ready._find = noting
    questions = [f"question about loop{number}" for number in range(40)]
    with serving(app_of(ready)) as url:
        summary = replay(url, questions, client="test", connections=4)
        one = replay(url, questions[:1], kind="chat", client="test")
    assert (summary["sent"], summary["answered"], summary["failed"]) == (40, 40, 0)
    assert len(seen) == 41 and summary["first_id"] != summary["last_id"] and summary["recorded"] is False
    assert summary["started_at"] < summary["ended_at"] and one["answered"] == 1


def test_failures_are_counted_and_the_first_is_shown(ready: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECORD_TRIES", 2)
    with serving(app_of(ready)) as url:
        summary = replay(url, ["loop", "x" * 9000, "while"])
    assert (summary["answered"], summary["failed"]) == (2, 1) and summary["first_failure"].startswith("400")


def test_an_absent_or_empty_assistant_is_told_apart_from_a_bug(assistant: Assistant) -> None:
    with pytest.raises(ServiceUnavailable) as caught:
        replay("http://127.0.0.1:9", ["loop"])
    assert caught.value.exit_code == 75
    with serving(app_of(assistant)) as url, pytest.raises(ServiceUnavailable, match="release"):
        replay(url, ["loop"])


@pytest.mark.parametrize("text", ["", "\n\n", "{", '{"id": 1}', '{"question": 3}', '{"question": " "}', "[]"])
def test_a_file_without_questions_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(DataError):
        read_questions(path, 0)


def test_the_limit_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"q{n}"}) for n in range(5)))
    assert read_questions(path, 2) == ["q0", "q1"] and len(read_questions(path, 0)) == 5
    with pytest.raises(DataError):
        read_questions(tmp_path / "none.jsonl", 0)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--kind", "chat"], ["f", "--kind", "sing"], ["f", "--limit", "x"], ["f", "--clinet", "a"]],
)
def test_wrong_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(OptionError):
        main(arguments)


def test_who_is_asked_to_wait_waits_and_a_budget_that_is_used_up_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("tasks.serving.replay.time.sleep", slept.append)
    said = iter(
        [
            httpx.Response(429, headers={"Retry-After": "17"}),
            httpx.Response(429),
            httpx.Response(429, headers={"Retry-After": "3600", "x-should-retry": "false"}, text="insufficient_quota"),
        ]
    )
    with httpx.Client(transport=httpx.MockTransport(lambda _: next(said)), base_url="http://assistant") as client:
        assert _send(client, "why?", "search", "me") == (None, "429: insufficient_quota")
    assert slept == [17.0, 1.0]
