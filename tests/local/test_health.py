"""When S3 counts as healthy: what was written before can be read, or nothing was written yet."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from local.health import Health, s3_readable

KEYS = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


class _Gateway(BaseHTTPRequestHandler):
    status = 200
    seen: tuple[str, str] = ("", "")

    def do_GET(self) -> None:
        type(self).seen = (self.path, self.headers["Authorization"])
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def check() -> Iterator[Health]:
    server = HTTPServer(("127.0.0.1", 0), _Gateway)
    Thread(target=server.serve_forever, daemon=True).start()
    yield s3_readable(server.server_port, KEYS, "/bucket/probe")
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (404, True), (500, False), (403, False), (503, False)])
def test_s3_is_healthy_when_the_probe_is_read_or_was_never_written(check: Health, status: int, healthy: bool) -> None:
    _Gateway.status = status
    missing = check(0.0)
    assert (missing is None) == healthy
    assert healthy or f"status {status}" in (missing or "")
    path, authorization = _Gateway.seen
    assert path == "/bucket/probe"
    assert authorization.startswith("AWS4-HMAC-SHA256 Credential=AK/")


def test_a_server_that_does_not_answer_is_not_healthy() -> None:
    assert "refused" in (s3_readable(1, KEYS, "/bucket/probe")(0.0) or "")
