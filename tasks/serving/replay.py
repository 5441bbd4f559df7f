"""`python -m tasks replay FILE [--kind search|chat] [--limit N] [--client NAME] [--connections N]`.

Sends the questions of a JSONL file (`{"id", "question"}`) to the assistant at MILLRACE_ASSISTANT_URL over
a few connections, in order. Shows progress on stderr; the last line on stdout is a JSON summary. Writes
nothing itself: the assistant records the requests, and `recorded` says that all of them stood in its
table at the end. Exits 2 for a file it cannot use, 75 when the assistant is away or not ready, 1 when
some requests failed.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx

from tasks.errors import DataError, OptionError, ServiceUnavailable, nearest
from tasks.options import parse_options
from tasks.settings import repository_path, settings

log = logging.getLogger(__name__)

BUSY_TRIES = 30
RECORD_TRIES = 100
MOST_CONNECTIONS = 16


@dataclass
class Tally:
    """What came of the requests so far."""

    total: int
    answered: int = 0
    failed: int = 0
    ids: dict[int, str] = field(default_factory=dict)
    first_failure: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, number: int, request_id: str | None, failure: str | None) -> None:
        """Count one request."""
        with self.lock:
            if request_id is not None:
                self.answered += 1
                self.ids[number] = request_id
            else:
                self.failed += 1
                self.first_failure = self.first_failure or failure


def main(arguments: list[str]) -> int:
    """Replay a file; return the exit code."""
    if not arguments or arguments[0].startswith("--"):
        raise OptionError("expected python -m tasks replay FILE [--option value], found no file. Next: name one.")
    given = {"kind": "search", "limit": "0", "client": "replay", "connections": "4"}
    options = parse_options(arguments[1:])
    for name in options:
        if name not in given:
            raise OptionError(f"expected one of {', '.join(given)}, found --{name}.{nearest(name, given)}")
    given |= options
    if given["kind"] not in {"search", "chat"}:
        raise OptionError(f"expected --kind search or chat, found {given['kind']!r}. Next: correct it.")
    for name in ("limit", "connections"):
        if not given[name].isdecimal():
            raise OptionError(f"expected a number for --{name}, found {given[name]!r}. Next: correct it.")
    questions = read_questions(repository_path(arguments[0]), int(given["limit"]))
    key = settings().assistant_key
    kind: Literal["search", "chat"] = "search" if given["kind"] == "search" else "chat"
    summary = replay(
        settings().assistant_url,
        questions,
        kind=kind,
        client=given["client"],
        connections=int(given["connections"]),
        key=key.get_secret_value() if key else None,
    )
    print(json.dumps(summary, sort_keys=True))
    return 1 if summary["failed"] else 0


def read_questions(path: Path, limit: int) -> list[str]:
    """Return the questions in `path`, at most `limit` when it is not 0. Raises DataError."""
    questions: list[str] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"expected a JSONL file of questions at {path}, found {error}. Next: correct it.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            question = json.loads(line)["question"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'expected {{"question": ...}} on line {number} of {path}, found {line[:80]!r}. Next: correct it.'
            ) from error
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"expected a question on line {number} of {path}, found {question!r}. Next: correct it.")
        questions.append(question)
    if not questions:
        raise DataError(f"expected questions in {path}, found none. Next: name another file.")
    return questions[:limit] if limit else questions


def replay(
    url: str,
    questions: Sequence[str],
    *,
    kind: Literal["search", "chat"] = "search",
    client: str = "replay",
    connections: int = 4,
    key: str | None = None,
) -> dict[str, Any]:
    """Send `questions` and return the summary. Raises ServiceUnavailable when the assistant is away."""
    workers = max(1, min(connections, MOST_CONNECTIONS))
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    started, clock = datetime.now(UTC), time.monotonic()
    tally = Tally(len(questions))
    numbered = enumerate(questions)
    with httpx.Client(base_url=url, headers=headers, timeout=180, limits=httpx.Limits(max_connections=workers)) as http:
        _require_ready(http, url)
        with ThreadPoolExecutor(workers) as pool:
            guard = threading.Lock()
            sending = [pool.submit(_send_all, http, numbered, guard, tally, kind, client) for _ in range(workers)]
            while wait(sending, timeout=1.0, return_when=FIRST_EXCEPTION).not_done:
                _show(tally, clock)
            for worker in sending:
                worker.result()
        recorded = _recorded(http)
    _show(tally, clock)
    return {
        "kind": kind,
        "client": client,
        "sent": tally.answered + tally.failed,
        "answered": tally.answered,
        "failed": tally.failed,
        "first_failure": tally.first_failure,
        "recorded": recorded,
        "seconds": round(time.monotonic() - clock, 3),
        "first_id": tally.ids.get(min(tally.ids)) if tally.ids else None,
        "last_id": tally.ids.get(max(tally.ids)) if tally.ids else None,
        "started_at": started.isoformat(),
        "ended_at": datetime.now(UTC).isoformat(),
    }


def _require_ready(http: httpx.Client, url: str) -> None:
    try:
        answer = http.get("/readyz", timeout=10)
    except httpx.TransportError as error:
        raise _away(url, str(error)) from error
    if answer.status_code != 200:
        raise ServiceUnavailable(
            f"expected an assistant with a release at {url}, found {answer.text[:300]}. "
            "Next: release a model (DAG promote_release), then try again."
        )


def _recorded(http: httpx.Client) -> bool:
    """Wait a little until the assistant has written its request log; return whether it has."""
    for _ in range(RECORD_TRIES):
        if http.get("/readyz").json()["requests"]["waiting"] == 0:
            return True
        time.sleep(0.1)
    return False


def _send_all(
    http: httpx.Client, numbered: Iterator[tuple[int, str]], guard: threading.Lock, tally: Tally, kind: str, client: str
) -> None:
    while True:
        with guard:
            number, question = next(numbered, (-1, ""))
        if number < 0:
            return
        tally.add(number, *_send(http, question, kind, client))


def _send(http: httpx.Client, question: str, kind: str, client: str) -> tuple[str | None, str | None]:
    """Return the request's id, or why there is none."""
    body: dict[str, Any]
    if kind == "search":
        path, body = "/v1/search", {"query": question, "user": client}
    else:
        path, body = "/v1/chat/completions", {"messages": [{"role": "user", "content": question}], "user": client}
    for _ in range(BUSY_TRIES):
        try:
            answer = http.post(path, json=body)
        except httpx.ConnectError as error:
            raise _away(str(http.base_url), str(error)) from error
        except httpx.TransportError as error:
            return None, f"{type(error).__name__}: {error}"
        if answer.status_code != 429 or answer.headers.get("x-should-retry") == "false":
            break
        time.sleep(_pause(answer.headers.get("retry-after", "")))
    if answer.status_code != 200:
        return None, f"{answer.status_code}: {answer.text[:300]}"
    return str(answer.json()["request_id"]), None


def _pause(retry_after: str) -> float:
    """Return how long the assistant asks to be left alone, a minute at most; a second where it does not say."""
    return min(60.0, float(retry_after)) if retry_after.isdecimal() else 1.0


def _away(url: str, found: str) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"expected the assistant to answer at {url}, found {found}. Next: `make status`; python -m tasks serve."
    )


def _show(tally: Tally, clock: float) -> None:
    done, now = tally.answered + tally.failed, time.monotonic()
    left = (now - clock) / done * (tally.total - done) if done else float("nan")
    log.info("replay done=%d total=%d failed=%d seconds_left=%.0f", done, tally.total, tally.failed, left)
