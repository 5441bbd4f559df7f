"""The webhook gets a note; what it answers decides whether a retry makes sense. Its URL is in no text."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tasks.errors import ServiceUnavailable, SettingsError
from tasks.release.announce import post


class Hook(BaseHTTPRequestHandler):
    """Answers with the status that the path names; keeps what it got."""

    seen: list[tuple[dict[str, str], dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((dict(self.headers), body))
        self.send_response(int(self.path.strip("/").split("-")[0]))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hook() -> Iterator[str]:
    Hook.seen.clear()
    server = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_note_arrives_with_a_key_against_doubles(hook: str) -> None:
    post(f"{hook}/200", {"release": 3, "text": "Grüße"})
    headers, body = Hook.seen[0]
    assert body == {"release": 3, "text": "Grüße"} and headers["Idempotency-Key"] == "millrace-release-3"


@pytest.mark.parametrize(
    ("status", "error"),
    [(500, ServiceUnavailable), (429, ServiceUnavailable), (404, SettingsError), (403, SettingsError)],
)
def test_the_answer_decides_about_a_retry(hook: str, status: int, error: type[Exception]) -> None:
    with pytest.raises(error, match=str(status)) as raised:
        post(f"{hook}/{status}-secret", {"release": 3})
    assert "secret" not in str(raised.value) and raised.value.__cause__ is None


def test_no_answer_is_tried_again_and_no_address_is_refused() -> None:
    with pytest.raises(ServiceUnavailable):
        post("http://127.0.0.1:9/secret", {"release": 3})
    with pytest.raises(SettingsError) as raised:
        post("file:///etc/secret", {"release": 3})
    assert "secret" not in str(raised.value)
