"""Who may ask: keys with names, every way to come without one, and where the name goes."""

import asyncio
import hashlib
import logging
from typing import Any

import httpx
import pytest

from tasks.errors import SettingsError
from tasks.serving.answering import Assistant
from tasks.serving.keys import Key, parse_keys

from .conftest import app_of, call
from .test_api import QUESTION, error_of

RIGHT, ALSO = (hashlib.sha256(key).hexdigest() for key in (b"right", "schlüssel".encode()))
KEYS = parse_keys(f"team-a={RIGHT},{ALSO}")
BEARER = {"Authorization": "Bearer right"}


def test_a_key_has_a_name_or_the_first_of_its_digits() -> None:
    assert parse_keys(f" {RIGHT.upper()} , Team.A_2={ALSO},") == (Key(RIGHT[:8], RIGHT), Key("Team.A_2", ALSO))
    assert parse_keys(f"a={RIGHT},a={ALSO}") == (Key("a", RIGHT), Key("a", ALSO)), "an old key and its successor"
    assert parse_keys(f"{RIGHT},{RIGHT}") == (Key(RIGHT[:8], RIGHT),)
    assert parse_keys(None) == parse_keys("") == ()


@pytest.mark.parametrize(
    "setting",
    [
        "my-secret-key", "my-secret-key=", f"my secret key={RIGHT}", f"={RIGHT}", f"a=b={RIGHT}", f"my-secret-key={RIGHT}0",
        f"{'x' * 65}={RIGHT}", f"a={RIGHT},b={RIGHT}", hashlib.sha256(b"").hexdigest(), f"n\n={RIGHT}",
    ],
)  # fmt: skip
def test_a_malformed_setting_is_refused_and_not_repeated(setting: str) -> None:
    with pytest.raises(
        SettingsError, match="MILLRACE_ASSISTANT_KEY_SHA256: expected .*, found .*item [12].* Next: "
    ) as caught:
        parse_keys(setting)
    assert "secret" not in str(caught.value) and RIGHT not in str(caught.value)


def asked(app: Any, headers: list[tuple[bytes, bytes]], path: str = "/v1/search") -> httpx.Response:
    """Send headers as bytes, as they are."""

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://assistant.example") as client:
            return await client.post(path, json={"query": "loop"}, headers=headers)

    return asyncio.run(send())


@pytest.mark.parametrize(
    "headers",
    [
        [], [b"Bearer wrong"], [b"Basic right"], [b"right"], [b""], [b"Bearer"], [b"Bearer "], [b"Bearer \xff\xfe"], [b"\xc3\x28 x"],
        [b"Bearer right", b"Bearer right"], [b"Bearer wrong", b"Bearer right"], [b"Bearer right, Bearer right"],
        ["Bearer schlüssel".encode("latin-1")],
    ],
    ids=repr,
)  # fmt: skip
def test_without_one_accepted_key_nothing_is_answered(ready: Assistant, headers: list[bytes]) -> None:
    answer = asked(app_of(ready, keys=KEYS), [(b"Authorization", value) for value in headers])
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    error = error_of(answer)
    assert error["code"] == "invalid_api_key" and error["type"] == "authentication_error"
    assert "right" not in error["message"]


@pytest.mark.parametrize("header", [b"Bearer right", b"bearer  right ", "Bearer schlüssel".encode()])
def test_an_accepted_key_is_served_under_any_host_name(ready: Assistant, header: bytes) -> None:
    assert asked(app_of(ready, keys=KEYS), [(b"Authorization", header)]).status_code == 200


def test_probes_need_no_key(ready: Assistant) -> None:
    assert call(app_of(ready, keys=KEYS), "GET", "/readyz").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_the_row_and_the_log_line_name_the_key(
    ready: Assistant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    rows: list[Any] = []
    monkeypatch.setattr(ready.requests, "put", rows.append)
    with caplog.at_level(logging.INFO):
        answer = call(
            app_of(ready, keys=KEYS), "POST", "/v1/chat/completions", json=QUESTION | {"stream": stream}, headers=BEARER
        )
        call(app_of(ready), "POST", "/v1/search", json={"query": "loop"})
    assert answer.status_code == 200 and answer.headers["x-request-id"] == str(rows[0].id)
    assert [row.key_name for row in rows] == ["team-a", ""]
    assert f"request={rows[0].id} kind=chat key=team-a " in caplog.text and "right" not in caplog.text
