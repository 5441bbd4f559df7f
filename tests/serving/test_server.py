"""The command line of the assistant."""

import socket

import pytest

from tasks.errors import OptionError, SettingsError
from tasks.serving import server
from tasks.settings import Settings, load_settings

from .conftest import NOWHERE


def configured(**more: str) -> Settings:
    """Return settings with a database that is not there."""
    return load_settings(
        {"MILLRACE_DATABASE_URL": NOWHERE, "MILLRACE_MLFLOW_TRACKING_URI": "http://127.0.0.1:9"} | more
    )


def test_it_does_not_listen_beyond_this_machine_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "settings", configured)
    for host in ("0.0.0.0", "::", "192.0.2.1", "assistant.example"):
        with pytest.raises(SettingsError, match="MILLRACE_ASSISTANT_KEY_SHA256"):
            server.main(["--host", host, "--port", "0"])


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OptionError, match=f"127.0.0.1:{port}"):
            server.listen("127.0.0.1", port)


@pytest.mark.parametrize(
    "arguments", [["--prot", "1"], ["--port", "x"], ["--port", "70000"], ["--threads", "0"], ["--port"], ["serve"]]
)
def test_wrong_options_are_refused(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(server, "settings", configured)
    with pytest.raises(OptionError):
        server.main(arguments)
