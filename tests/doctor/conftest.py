"""What the doctor's tests share: settings of the stack with changes, and servers that say what a test wants."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tasks.doctor.examine import Check, Wanted, examine
from tasks.doctor.report import Finding
from tasks.settings import Settings, load_settings

LEAST = {"MILLRACE_DATABASE_URL": "postgresql://u@127.0.0.1/x", "MILLRACE_MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}


def settings(**changes: str) -> Settings:
    """Return the least settings with changes; names without the prefix, in small letters."""
    return load_settings(LEAST | {f"MILLRACE_{name.upper()}": value for name, value in changes.items()})


def one(run: Callable[..., Any], chosen: Settings | None = None, wanted: Wanted | None = None) -> Finding:
    """Return the finding of a single check."""
    found = examine([Check("it", run)], chosen or settings(), wanted or Wanted())
    assert len(found) == 1, found
    return found[0]


@pytest.fixture
def stack_settings(stack: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Return settings of the stack with changes; the AWS variables are set, as for any stage."""
    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)
    env = {name: value for name, value in stack.env.items() if name.startswith("MILLRACE_")}
    return lambda **changes: load_settings(env | {f"MILLRACE_{k.upper()}": v for k, v in changes.items()})


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """Return a function that starts an HTTP server with one answer to everything, and returns its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> str:
        class Answer(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response_only(status)  # without the Date that send_response adds
                for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for each in servers:
        each.shutdown()
        each.server_close()
