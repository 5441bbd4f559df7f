"""Whatever is sent, the API answers as it declares: schemathesis over /openapi.json, and bad input by hand."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks

from tasks.serving.answering import Assistant
from tasks.serving.api import create_app
from tasks.serving.connection import KeptConnection
from tasks.serving.feedback import Said
from tasks.serving.prompt import parse_prompt
from tasks.serving.refusals import UnknownRequest
from tasks.serving.releases import Loaded, Releases
from tasks.serving.request_log import RequestLog
from tasks.serving.transformers_model import TransformersModel
from tasks.settings import load_settings

from .conftest import NOWHERE, WordEmbedder, app_of, call, find_in_memory, make_release
from .test_api import QUESTION, error_of

JSON = {"content-type": "application/json"}
HELD = (
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
)


class KeepsNothing:
    """Feedback in place of a table: every id is unknown, but half of them."""

    def add(self, request_id: Any, said: Said, key_name: str = "") -> str:
        """Take it or refuse it."""
        if request_id.int % 2:
            raise UnknownRequest("expected the id of a served request, found another. Next: use the answer's id.")
        return "accepted" if said.reviewed_by else "pending"


@pytest.fixture(scope="module")
def fuzzed(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The application over the tiny model, for the whole module."""
    folder = tmp_path_factory.mktemp("fuzzed")
    configured = load_settings(
        {
            "MILLRACE_DATABASE_URL": NOWHERE,
            "MILLRACE_MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
            "MILLRACE_CACHE_DIR": str(folder),
        }
    )
    requests = RequestLog(KeptConnection(NOWHERE), folder)
    made = Assistant(Releases(configured, KeptConnection(NOWHERE), threads=1), requests, find_in_memory)
    model, release = TransformersModel("test:tiny", "0", tiny_llama, threads=1), make_release()
    made.releases.put_live(Loaded(release, parse_prompt(release.prompt, "t"), WordEmbedder(), model, None))  # type: ignore[arg-type]
    yield create_app(made, KeepsNothing())  # type: ignore[arg-type]
    made.close()
    model.close()
    requests.close()


@pytest.fixture(scope="module")
def described(fuzzed: Any) -> Any:
    """The application's schema, as it tells it."""
    return schemathesis.openapi.from_asgi("/openapi.json", fuzzed, headers={"host": "127.0.0.1"})


def short(body: Any) -> Any:
    """Return a body whose answer is short; what is refused stays as it is."""
    if isinstance(body, dict) and "messages" in body:
        for name in ("max_tokens", "max_completion_tokens"):
            given_number = body.get(name)
            if given_number is None or (type(given_number) is int and 2 < given_number <= 1024):
                body = body | {name: 2}
    return body


def asked(body: Any) -> Any:
    """Return a body that asks the model there is something, at last: a schema cannot say that the user has the last word."""
    if isinstance(body, dict) and "messages" in body:
        question = {"role": "user", "content": "what is a loop"}
        return body | {"model": "tiny", "messages": [*body["messages"][:1], question]}
    return body


POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [("GET", path, POSITIVE) for path in ("/v1/models", "/healthz", "/readyz")]
    + [
        ("POST", f"/v1/{name}", mode)
        for name in ("chat/completions", "search", "feedback")
        for mode in (POSITIVE, NEGATIVE)
    ],
)
def test_every_answer_is_as_declared(described: Any, method: str, path: str, mode: GenerationMode) -> None:
    statuses: Counter[int] = Counter()

    # The same bodies at every run, so that a failure is the change's.
    @settings(
        max_examples=5 if method == "GET" else 60 if "chat" in path else 120, derandomize=True, deadline=None, database=None,
        phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=described[path][method].as_strategy(generation_mode=mode))
    def every(case: schemathesis.Case) -> None:
        case.body = asked(short(case.body)) if mode is POSITIVE else short(case.body)
        response = case.call(headers={"host": "127.0.0.1"})
        # What is larger than is read at all is refused too; schemathesis counts that as taken.
        held = HELD[:-1] if response.status_code == 413 else HELD
        case.validate_response(response, checks=list(held))
        statuses[response.status_code] += 1
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    every()
    assert (200 in statuses) if mode is POSITIVE else (set(statuses) <= {200, 400, 404, 413}), statuses


def test_all_routes_are_described(fuzzed: Any) -> None:
    described = call(fuzzed, "GET", "/openapi.json").json()
    assert set(described["paths"]) == {
        "/v1/chat/completions", "/v1/search", "/v1/feedback", "/v1/models", "/healthz", "/readyz",
    }  # fmt: skip
    for path, methods in described["paths"].items():
        for operation in methods.values():
            for status, declared in operation["responses"].items():
                wanted = status >= "400" and (path, status) != ("/readyz", "503")
                assert ("ErrorBody" in json.dumps(declared)) is wanted, (path, status)


BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        **QUESTION, "model": "millrace", "user": "u", "stop": "x", "seed": 1, "temperature": 0.5, "top_p": 0.5,
    },
    "/v1/search": {"query": "loop", "user": "u", "k": 2},
    "/v1/feedback": {
        "request_id": "0" * 32, "rating": "up", "correction": "c", "comment": "c", "reviewed_by": "r",
    },
}  # fmt: skip
FIELDS = [(path, name) for path, body in BODIES.items() for name in body]
HALF = "\\ud800"


def send(fuzzed: Any, path: str, text: str | bytes) -> Any:
    """Send a body as it stands."""
    return call(fuzzed, "POST", path, content=text.encode() if isinstance(text, str) else text, headers=JSON)


@pytest.mark.parametrize(("path", "name"), FIELDS)
@pytest.mark.parametrize(
    "value",
    [
        f'"{HALF}"', f'"a{HALF}b"', '"\\u0000"', "1e400", "-1e400", "NaN", "Infinity", "9" * 5000, "9" * 400, "[]", "{}",
        "true", '[{"a": 1}]', f'{{"{HALF}": "{HALF}"}}', "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900,
    ],
    ids=[
        "half", "half-inside", "nul", "huge", "minus-huge", "nan", "infinity", "digits", "long", "list", "object", "true",
        "objects", "half-keys", "deep-list", "deep-object",
    ],
)  # fmt: skip
def test_no_field_takes_what_cannot_be_kept(fuzzed: Any, path: str, name: str, value: str) -> None:
    body = json.dumps(BODIES[path] | {name: "HERE"}).replace('"HERE"', value)
    answer = send(fuzzed, path, body)
    if answer.status_code == 200:  # a list of no stop strings; no other of these values says anything that is allowed
        assert (name, value) == ("stop", "[]")
    else:
        assert answer.status_code == 400 and error_of(answer)["type"] == "invalid_request_error", answer.text


@pytest.mark.parametrize(
    "content",
    [f'"{HALF}"', f'[{{"type": "text", "text": "{HALF}"}}]', f'[{{"type": "{HALF}", "text": "a"}}]', '"\\u0000"'],
)
@pytest.mark.parametrize("role", ["user", "system", "assistant", "developer"])
def test_no_turn_takes_half_a_character(fuzzed: Any, role: str, content: str) -> None:
    turn = f'{{"role": "{role}", "content": {content}}}'
    answer = send(fuzzed, "/v1/chat/completions", f'{{"messages": [{turn}, {{"role": "user", "content": "hi"}}]}}')
    assert answer.status_code == 400 and "content" in error_of(answer)["param"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"\x00", b"\xff\xfe", b'{"query": "\xff"}', "{\"query\": \"é\"}".encode("latin-1"),
        b'{"query": "\xed\xa0\x80"}', b"[" * 200_000, b'{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000, b'{"query": ' + b"9" * 100_000 + b"}", b'{"query": "a", "query": 7}',
        b'{"\\ud800": 1}', b'{"query": "a", "\\ud800\\ud800": 1}', json.dumps({"query": "a", "x" * 90_000: 1}).encode(),
    ],
    ids=range(16),
)  # fmt: skip
def test_what_is_no_request_is_refused_and_said_shortly(fuzzed: Any, body: bytes) -> None:
    for path in BODIES:
        answer = send(fuzzed, path, body)
        assert answer.status_code == 400 and error_of(answer)["type"] == "invalid_request_error"
        assert "route" not in error_of(answer)["message"] and len(answer.content) < 1500


def test_of_a_key_that_stands_twice_the_last_counts(fuzzed: Any) -> None:
    assert send(fuzzed, "/v1/search", '{"query": 7, "query": "loop"}').status_code == 200
    assert send(fuzzed, "/v1/search", '{"query": "loop", "query": 7}').status_code == 400


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", "", "a"]
)
def test_another_content_type_is_refused(fuzzed: Any, kind: str) -> None:
    for path, body in BODIES.items():
        answer = call(fuzzed, "POST", path, content=json.dumps(body).encode(), headers={"content-type": kind})
        assert answer.status_code == 400 and error_of(answer)["type"] == "invalid_request_error"


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "BREW"])
def test_other_methods_are_refused_with_those_that_are_allowed(fuzzed: Any, method: str) -> None:
    for path in BODIES:
        answer = call(fuzzed, method, path)
        assert answer.status_code == 405 and answer.headers["allow"] == "POST"
        assert method == "HEAD" or error_of(answer)["code"] == "no_route"
    long = call(fuzzed, method, "/" + "a" * 5000)
    assert long.status_code == 404 and len(long.content) < 1000


@pytest.mark.parametrize(
    "text",
    [
        "'; DROP TABLE requests; --",
        "<script>alert(1)</script>",
        "{{7*7}}${jndi:ldap://a}",
        "%s%n\r\nX-A: b",
        "\u202e\ufffe",
    ],
)
def test_sql_and_html_are_text_in_every_field(ready: Assistant, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    rows: list[Any] = []
    monkeypatch.setattr(ready.requests, "put", rows.append)
    app = app_of(ready)
    chat = {"messages": [{"role": "user", "content": text}], "max_tokens": 2, "user": text, "stop": text}
    for path, body in (("/v1/chat/completions", chat), ("/v1/search", {"query": text, "user": text})):
        answer = call(app, "POST", path, json=body)
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/json", answer.text
    assert [(row.question, row.client) for row in rows] == [(text, text)] * 2
    named = call(app, "POST", "/v1/chat/completions", json=chat | {"model": text})
    assert named.status_code == 404 and error_of(named)["code"] == "model_not_found"
    assert named.headers["content-type"] == "application/json"
