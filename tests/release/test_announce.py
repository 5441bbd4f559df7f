"""A note reaches each channel once; what a channel answers decides whether a retry makes sense. No secret is in a text."""

import json
import re
import socketserver
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from tasks.errors import ServiceUnavailable, SettingsError
from tasks.release import announce_rollback
from tasks.release.channels import News, blocks, channels, post, send_all
from tasks.settings import load_settings

NOTE = {
    "event": "millrace.release", "release": 3, "kind": "promotion", "model_name": "m", "model_version": "7",
    "index_version": 4, "approved_by": "ada", "reason": "better <!channel> & more", "restores": None,
    "evidence_uri": "s3://b/releases/e", "text": "Grüße",
}  # fmt: skip
NEWS = News("Release 3 is live", "# Release 3\n\nGrüße\n.\nend\n", NOTE, "s3://b/runs/promote_release/r")
SECRET = "hunter7"  # by a name, so that the lines of source in a traceback do not hold it
LEAST = {"MILLRACE_DATABASE_URL": "postgresql://u:p@127.0.0.1/m", "MILLRACE_MLFLOW_TRACKING_URI": "http://m"}


class Hook(BaseHTTPRequestHandler):
    """Answers with the status that the path names; keeps what it got."""

    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, dict(self.headers), body))
        status = int(self.path.strip("/").split("-")[0])
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", "/200-elsewhere")
        self.end_headers()

    def do_GET(self) -> None:
        self.seen.append((self.path, dict(self.headers), {}))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Garbage(socketserver.StreamRequestHandler):
    """Speaks something else than HTTP."""

    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"what do you want?\r\n\r\n")


class Mail(socketserver.StreamRequestHandler):
    """A mail server without STARTTLS; it refuses the address nobody@, and full@ for now. Keeps what it took."""

    taken: list[tuple[str, str]] = []

    def handle(self) -> None:
        to, answers = "", {"MAIL": "250 ok", "DATA": "354 go on", "RSET": "250 ok", "QUIT": "221 bye"}
        self._say("220 here")
        while line := self.rfile.readline().decode().strip():
            verb = line[:4].upper()
            if verb == "RCPT":
                to = line.split("<")[1].split(">")[0]
                self._say({"nobody": "550 no", "full": "452 later"}.get(to.partition("@")[0], "250 ok"))
            else:
                self._say(answers.get(verb, "250 here"))
            if verb == "DATA":
                self.taken.append((to, b"".join(iter(self.rfile.readline, b".\r\n")).decode()))
                self._say("250 taken")
            if verb == "QUIT":
                return

    def _say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


class Store:
    """The storage of a stage, in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def exists(self, uri: str) -> bool:
        return uri in self.kept

    def put_json(self, uri: str, value: Any) -> None:
        self.kept[uri] = value


def serve(server: socketserver.TCPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def hook() -> Iterator[str]:
    Hook.seen.clear()
    for port in serve(HTTPServer(("127.0.0.1", 0), Hook)):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def mail() -> Iterator[dict[str, str]]:
    Mail.taken.clear()
    for port in serve(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail)):
        yield {
            "smtp_host": "127.0.0.1", "smtp_port": str(port), "smtp_starttls": "no", "mail_from": "millrace@example.org",
        }  # fmt: skip


def context(store: Store, **values: str) -> Any:
    """A stage's context with these settings of announcements."""
    found = load_settings(LEAST | {f"MILLRACE_ANNOUNCE_{name.upper()}": value for name, value in values.items()})
    return SimpleNamespace(settings=found, storage=store, folder="s3://b/runs/promote_release/r/announce")


def test_a_note_arrives_with_a_key_against_doubles(hook: str) -> None:
    assert send_all(context(Store(), webhook=f"{hook}/200"), NEWS) == {"sent": ["webhook"], "sent_before": []}
    _path, headers, body = Hook.seen[0]
    assert body == NOTE and headers["Idempotency-Key"] == NEWS.key


def test_a_key_is_of_one_release_of_one_installation() -> None:
    """Every installation counts its releases from 1, and a receiver may hear of several."""
    assert NEWS.key == News("again", "tried again", NOTE, NEWS.run).key
    others = [
        News(NEWS.title, NEWS.text, NOTE | {"model_name": "another"}, NEWS.run),
        News(NEWS.title, NEWS.text, NOTE, "s3://another/runs/promote_release/r"),
        News(NEWS.title, NEWS.text, NOTE | {"release": 4}, NEWS.run),
    ]
    assert len({NEWS.key, *(other.key for other in others)}) == 4
    assert re.fullmatch(r"millrace-release-3-[0-9a-f]{16}", NEWS.key)


@pytest.mark.parametrize(
    ("status", "error"),
    [(500, ServiceUnavailable), (429, ServiceUnavailable), (404, SettingsError), (403, SettingsError)],
)
def test_the_answer_decides_about_a_retry(hook: str, status: int, error: type[Exception]) -> None:
    with pytest.raises(error, match=str(status)) as raised:
        post(SecretStr(f"{hook}/{status}-secret"), "MILLRACE_ANNOUNCE_SLACK", NOTE, "k")
    assert "secret" not in str(raised.value) and raised.value.__cause__ is None


def test_no_answer_is_tried_again_and_no_address_is_refused() -> None:
    with pytest.raises(ServiceUnavailable):
        post(SecretStr("http://127.0.0.1:9/secret"), "MILLRACE_ANNOUNCE_WEBHOOK", NOTE, "k")
    with pytest.raises(SettingsError, match="MILLRACE_ANNOUNCE_WEBHOOK") as raised:
        post(SecretStr("file:///etc/secret"), "MILLRACE_ANNOUNCE_WEBHOOK", NOTE, "k")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_no_receipt(hook: str, status: int) -> None:
    """urllib would ask the other place by GET, without the note, and take its 200 for an answer."""
    with pytest.raises(SettingsError, match=f"{status}.*MILLRACE_ANNOUNCE_WEBHOOK") as raised:
        send_all(context(Store(), webhook=f"{hook}/{status}-{SECRET}"), NEWS)
    assert [path for path, _headers, _body in Hook.seen] == [f"/{status}-{SECRET}"]
    assert SECRET not in "".join(traceback.format_exception(raised.value))


def test_an_answer_that_is_no_http_stops_nobody_and_tells_no_secret(hook: str) -> None:
    for port in serve(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Garbage)):
        with pytest.raises(ServiceUnavailable, match="webhook: .*BadStatusLine") as raised:
            send_all(context(Store(), webhook=f"http://127.0.0.1:{port}/{SECRET}", slack=f"{hook}/200"), NEWS)
    assert [path for path, _headers, _body in Hook.seen] == ["/200"]
    assert SECRET not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize(
    "address",
    [
        f"http://127.0.0.1:port/{SECRET}",
        f"http://127.0.0.1/{SECRET} a",
        f"http://[/{SECRET}",
        f"http://127.0.0.1/{SECRET}é",
    ],
)
def test_an_address_that_is_none_stops_nobody_and_tells_no_secret(hook: str, address: str) -> None:
    with pytest.raises(SettingsError, match="webhook: .*MILLRACE_ANNOUNCE_WEBHOOK") as raised:
        send_all(context(Store(), webhook=address, slack=f"{hook}/200"), NEWS)
    assert [path for path, _headers, _body in Hook.seen] == ["/200"]
    assert SECRET not in "".join(traceback.format_exception(raised.value))


def test_slack_gets_blocks_in_which_a_reason_commands_nothing() -> None:
    body = blocks(NEWS)
    assert body["text"] == "Release 3 is live"
    assert [block["type"] for block in body["blocks"]] == ["header", "section", "context"]
    section = body["blocks"][1]["text"]["text"]
    assert section.startswith(
        "m version 7 with index version 4 is live.\nApproved by ada: better &lt;!channel&gt; &amp;"
    )
    long = News("t" * 200, "x", NOTE | {"reason": "r" * 5000, "kind": "rollback"}, "")
    assert len(blocks(long)["blocks"][1]["text"]["text"]) <= 3000
    assert len(blocks(long)["blocks"][0]["text"]["text"]) == 150
    assert "Rolled back by ada" in blocks(long)["blocks"][1]["text"]["text"]


def test_one_that_fails_does_not_stop_the_others_and_a_retry_tells_only_it(hook: str, mail: dict[str, str]) -> None:
    store, to = Store(), {"mail_to": "one@example.org, full@example.org,two@example.org"}
    with pytest.raises(
        ServiceUnavailable, match=r"release 3, .*webhook: .*503.*mail to full@example\.org: .*452"
    ) as raised:
        send_all(context(store, webhook=f"{hook}/503-secret", slack=f"{hook}/200-slack", **mail, **to), NEWS)
    assert "secret" not in str(raised.value)
    assert [path for path, _headers, _body in Hook.seen] == ["/503-secret", "/200-slack"]
    assert [address for address, _text in Mail.taken] == ["one@example.org", "two@example.org"]
    to["mail_to"] = to["mail_to"].replace("full", "emptied")
    told = send_all(context(store, webhook=f"{hook}/200", slack=f"{hook}/200-slack", **mail, **to), NEWS)
    assert told["sent"] == ["webhook", "mail to emptied@example.org"]
    assert told["sent_before"] == ["slack", "mail to one@example.org", "mail to two@example.org"]
    assert len(Hook.seen) == 3 and len(Mail.taken) == 3


def test_what_only_a_person_can_correct_is_not_tried_again(hook: str, mail: dict[str, str]) -> None:
    values = mail | {"mail_to": "nobody@example.org,one@example.org"}
    with pytest.raises(
        SettingsError, match=r"slack: .*404.*MILLRACE_ANNOUNCE_SLACK.*mail to nobody@example\.org: .*550"
    ):
        send_all(context(Store(), slack=f"{hook}/404", **values), NEWS)
    assert [address for address, _text in Mail.taken] == ["one@example.org"]


def test_a_mail_is_whole(mail: dict[str, str]) -> None:
    import email
    import email.policy

    send_all(context(Store(), **mail, mail_to="one@example.org"), NEWS)
    message = email.message_from_string(Mail.taken[0][1], policy=email.policy.default)
    assert (message["Subject"], message["From"]) == ("Release 3 is live", "millrace@example.org")
    assert message["Message-ID"] == f"<{NEWS.key}@millrace.invalid>"
    assert "Grüße" in message.get_content()


def test_mail_is_encrypted_unless_the_settings_say_no(mail: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="STARTTLS"):  # the server has none
        send_all(context(Store(), **(mail | {"smtp_starttls": "yes"}), mail_to="one@example.org"), NEWS)
    assert not Mail.taken
    secret = {"smtp_user": "u", "smtp_password": "hunter2"}
    with pytest.raises(SettingsError, match="encrypted") as raised:
        channels(context(Store(), **mail, **secret, mail_to="one@example.org").settings)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("missing", ["smtp_host", "mail_from"])
def test_half_a_mail_server_is_told(mail: dict[str, str], missing: str) -> None:
    del mail[missing]
    with pytest.raises(SettingsError, match=f"MILLRACE_ANNOUNCE_{missing.upper()}"):
        channels(context(Store(), **mail, mail_to="one@example.org").settings)


def test_an_address_that_is_none_and_a_user_without_a_password_are_told(mail: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="MAIL_TO"):
        channels(context(Store(), **mail, mail_to="one@example.org,").settings)
    with pytest.raises(SettingsError, match="one of both"):
        channels(context(Store(), **mail, mail_to="one@example.org", smtp_user="u").settings)


def test_a_mail_server_that_is_away_is_tried_again(mail: dict[str, str]) -> None:
    with pytest.raises(ServiceUnavailable, match="mail to one@example.org"):
        send_all(context(Store(), **(mail | {"smtp_port": "9"}), mail_to="one@example.org"), NEWS)


def test_nobody_is_told_where_nothing_is_set() -> None:
    assert send_all(context(Store()), NEWS) == {"sent": [], "sent_before": []}


def test_a_rollback_says_where_it_leads() -> None:
    facts = NOTE | {"kind": "rollback", "restores": 1, "mirror_problem": "it is away"}
    text = announce_rollback.announcement(SimpleNamespace(facts=facts))  # type: ignore[arg-type]
    assert text.startswith(
        "# Release 3: back to release 1\n\nm version 7 with index version 4 is live.\nRolled back by ada"
    )
    assert text.endswith("tries again. it is away\n")
