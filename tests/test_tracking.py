"""MLflow that refuses access, or is away, is a named error; no password of its address is in a text."""

import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tasks import tracking
from tasks.errors import MillraceError, ServiceUnavailable, SettingsError
from tasks.settings import load_settings


class Server(BaseHTTPRequestHandler):
    """Answers everything with one status; counts the requests."""

    status, asked = 401, 0

    def do_GET(self) -> None:
        type(self).asked += 1
        body = b"You are not authenticated."
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked = 0
    made = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://ada:hunter7@127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


def ask(uri: str) -> None:
    found = load_settings({"MILLRACE_DATABASE_URL": "postgresql://u:p@h/m", "MILLRACE_MLFLOW_TRACKING_URI": uri})
    with tracking.tried_once(), tracking.answering(found) as client:
        client.get_registered_model("m")


@pytest.mark.parametrize(("status", "error"), [(401, SettingsError), (403, SettingsError), (503, ServiceUnavailable)])
def test_an_answer_that_is_no_is_a_named_error(
    server: str, status: int, error: type[MillraceError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "status", status)
    with pytest.raises(error, match="127.0.0.1") as raised:
        ask(server)
    assert "hunter7" not in str(raised.value)
    assert Server.asked == 1, "tried once"
    assert traceback.format_exception_only(raised.value)[0].count("Next:") == 1


def test_a_link_holds_no_password() -> None:
    assert tracking.public("http://ada:p@ss@mlflow:5000/x") == "http://mlflow:5000/x"
    assert tracking.public("found https://a:b@h/ and http://plain:1/a@b") == "found https://h/ and http://plain:1/a@b"
