"""The assistant as it runs: its own process, real Postgres and S3, a real embedder, real LoRA adapters."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import httpx
import pytest

from tasks.contracts import digest_of
from tasks.database import connect, migrate
from tasks.knowledge import index_tables
from tasks.knowledge.embedders import load_embedder
from tasks.models import revision
from tasks.release import ledger
from tasks.serving.prompt import prompt_digest
from tasks.settings import REPOSITORY, Settings, load_settings
from tasks.storage import Storage

from .conftest import CHUNKS, PROMPT

pytestmark = pytest.mark.integration
ASK = {"messages": [{"role": "user", "content": "when does the while loop run its else clause"}], "max_tokens": 24}


class Bridge:
    """A TCP port in front of Postgres that can be taken away and brought back."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._open: list[socket.socket] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._listener: socket.socket | None = None

    def up(self) -> None:
        """Forward connections; once is enough."""
        if self._listener is not None:
            return
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections, and break those that are open."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for side in self._open:
            try:
                side.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed by its peer already
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._open += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while block := source.recv(65536):
                target.sendall(block)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


@dataclass
class World:
    """Settings, storage and what releases are made of."""

    settings: Settings
    storage: Storage
    environment: dict[str, str]
    bridge: Bridge
    base_uri: str
    base_revision: str
    adapters: list[tuple[str, str]]
    embedder: str
    index_version: int

    def release(self, adapter: int | None, **changed: Any) -> int:
        """Append a row to the ledger and return its number."""
        uri, sha256 = self.adapters[adapter] if adapter is not None else (None, None)
        values: dict[str, Any] = {
            "model_name": "tiny", "model_version": str(adapter), "adapter_uri": uri, "adapter_sha256": sha256,
            "base_model": self.base_uri, "base_revision": self.base_revision, "prompt": PROMPT,
            "prompt_sha256": prompt_digest(PROMPT), "index_version": self.index_version, "embedder": self.embedder,
            "dataset_sha256": None, "code_revision": "test", "evidence_uri": "s3://none/none",
            "evidence_sha256": "0" * 64,
        }  # fmt: skip
        with connect(self.settings.database_url.get_secret_value()) as connection:
            live = ledger.live(connection)
            number = live.release if live else None
            made = ledger.append(
                connection, ledger.Parts(**values | changed), kind="promotion", approved_by="test", reason="test",
                run=f"test-{time.monotonic_ns()}", expected_live=number,
            )  # fmt: skip
        return made.release

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Return the rows of a query."""
        with connect(self.settings.database_url.get_secret_value()) as connection:
            return connection.execute(query.encode(), values).fetchall()


def build_index(settings: Settings) -> tuple[str, int]:
    """Index CHUNKS with the real embedder; return its identity and the version."""
    embedder = load_embedder(settings)
    vectors = embedder.encode([chunk.text for chunk in CHUNKS])
    about = {"fingerprint": "t", "corpus": "t", "corpus_sha256": "t", "embedder": embedder.name, "dimensions": 384}
    rows = [
        {"chunk_id": chunk.chunk_id, "document_uri": chunk.document_uri, "ordinal": 0, "title": chunk.title,
         "text": chunk.text, "tokens": 9, "start": 0, "end": 9, "chunk_sha256": "0", "embedding": vector}
        for chunk, vector in zip(CHUNKS, vectors, strict=True)
    ]  # fmt: skip
    with connect(settings.database_url.get_secret_value()) as connection:
        version = index_tables.begin(connection, f"serving-{time.monotonic_ns()}", about)
        index_tables.replace_documents(connection, version, [chunk.document_uri for chunk in CHUNKS], rows)
        index_tables.build_indexes(connection, version)
    return embedder.name, version.version


@pytest.fixture(scope="module")
def world(
    stack: Any,
    new_database: Any,
    tiny_llama: Path,
    tiny_loras: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    """Everything that releases are made of, in the stack's Postgres and S3."""
    database = new_database("serving")
    values = stack.env | {"MILLRACE_DATABASE_URL": database}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        settings = load_settings(values)
        migrate(database)
        storage = Storage(settings.s3_endpoint_url)
        bucket = f"s3://{settings.s3_bucket}/serving-test"
        storage.put_folder(f"{bucket}/base", tiny_llama)
        adapters = []
        for number, folder in enumerate(tiny_loras):
            uri = f"{bucket}/adapter-{number}"
            adapters.append((uri, digest_of(storage.put_folder(uri, folder))))
        embedder, version = build_index(settings)
        url = urlsplit(database)
        bridge = Bridge(url.hostname or "", url.port or 5432)
        away = urlunsplit(url._replace(netloc=f"{url.netloc.rpartition(':')[0]}:{bridge.port}"))
        environment = os.environ | stack.env | {
            "MILLRACE_DATABASE_URL": away, "MILLRACE_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        }  # fmt: skip
        yield World(
            settings, storage, environment, bridge, f"{bucket}/base", revision("s3://", tiny_llama), adapters,
            embedder, version,
        )  # fmt: skip
        bridge.down()


@contextmanager
def served(environment: dict[str, str], *arguments: str) -> Iterator[tuple[httpx.Client, "subprocess.Popen[bytes]"]]:
    """Run `python -m tasks serve` on a free port; yield a client and the process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tasks", "serve", "--port", str(port), "--threads", "1", *arguments]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            until(lambda: _status(client, "/healthz") == 200)
            yield client, process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _status(client: httpx.Client, path: str) -> int:
    try:
        return client.get(path).status_code
    except httpx.TransportError:
        return 0


def until(condition: Callable[[], object], seconds: float = 90) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_from_no_release_through_promotions_and_an_outage_to_a_clean_end(world: World) -> None:
    world.bridge.up()
    with served(world.environment) as (client, process):
        # Nothing released: it lives, and says what it waits for.
        until(lambda: "no release" in (client.get("/readyz").json()["problem"] or ""))
        assert client.post("/v1/chat/completions", json=ASK).status_code == 503

        first = world.release(adapter=0)
        until(lambda: client.get("/readyz").status_code == 200)
        answer = client.post("/v1/chat/completions", json=ASK | {"user": "someone"}).json()
        assert answer["documents"][0]["uri"] == "pydoc:topics/while" and answer["millrace"]["release"] == first
        request_id = UUID(answer["request_id"])
        until(lambda: client.get("/readyz").json()["requests"]["waiting"] == 0)
        row = world.rows("SELECT *, vector_dims(embedding) AS dims FROM requests WHERE id = %s", request_id)[0]
        assert row["kind"] == "chat" and row["client"] == "someone" and row["question"] == ASK["messages"][0]["content"]
        assert row["answer"] == answer["choices"][0]["message"]["content"] and row["dims"] == 384
        assert row["release"] == first and row["index_version"] == world.index_version and row["error"] is None
        assert row["hits"][0]["document_uri"] == "pydoc:topics/while" and 0 < row["best_score"] <= 1
        assert row["completion_tokens"] == answer["usage"]["completion_tokens"] and row["latency_ms"] > 0
        assert 0 < row["retrieval_ms"] < row["first_token_ms"] < row["latency_ms"] and 0 <= row["grounded"] <= 1
        assert len(row["trace_id"]) == 32 and row["guardrails"] == [] and row["refused"] is False

        _give_feedback(world, client, answer)
        second, texts = _promote_while_answering(world, client)
        assert texts[first] != texts[second]
        _refuse_a_damaged_release(world, client, second)
        _outage(world, client)

        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def _give_feedback(world: World, client: httpx.Client, answer: dict[str, Any]) -> None:
    pending = client.post("/v1/feedback", json={"request_id": answer["id"], "rating": "down", "comment": "'; --"})
    accepted = client.post(
        "/v1/feedback",
        json={"request_id": answer["request_id"], "rating": "down", "correction": "When it ends.", "reviewed_by": "me"},
    )
    assert pending.json()["status"] == "pending" and accepted.json()["status"] == "accepted"
    rows = world.rows("SELECT * FROM feedback WHERE request_id = %s ORDER BY id", UUID(answer["request_id"]))
    assert [row["status"] for row in rows] == ["pending", "accepted"] and rows[1]["reviewed_by"] == "me"
    unknown = client.post("/v1/feedback", json={"request_id": str(UUID(int=1)), "rating": "up"})
    assert unknown.status_code == 404


def _promote_while_answering(world: World, client: httpx.Client) -> tuple[int, dict[int, str]]:
    """Promote a second adapter while four clients ask without a pause: every one of them is answered."""
    stop, texts, failures = threading.Event(), {}, []

    def ask() -> None:
        while not stop.is_set():
            answer = client.post("/v1/chat/completions", json=ASK)
            if answer.status_code != 200:
                failures.append(answer.text)
                return
            body = answer.json()
            texts.setdefault(body["millrace"]["release"], body["choices"][0]["message"]["content"])
            if texts[body["millrace"]["release"]] != body["choices"][0]["message"]["content"]:
                failures.append("one release gave two answers")

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for thread in clients:
        thread.start()
    second = world.release(adapter=1)
    try:
        until(lambda: second in texts or failures)
        time.sleep(1)
    finally:
        stop.set()
        for thread in clients:
            thread.join()
    assert failures == []
    return second, texts


def _refuse_a_damaged_release(world: World, client: httpx.Client, live: int) -> None:
    """Releases that cannot be loaded leave the old one answering, and say why; the next good one is taken."""
    for changed, reason in (
        ({"adapter_sha256": "f" * 64}, "digest"),
        ({"base_revision": "0" * 64}, "revision"),
        ({"prompt": "no places", "prompt_sha256": prompt_digest("no places")}, "front matter"),
    ):
        broken = world.release(adapter=0, **changed)
        until(lambda broken=broken: f"release {broken} did not load" in (client.get("/readyz").json()["problem"] or ""))
        ready = client.get("/readyz")
        assert ready.status_code == 200 and reason in ready.json()["problem"] and ready.json()["release"] == live
        assert client.post("/v1/chat/completions", json=ASK).json()["millrace"]["release"] == live
    good = world.release(adapter=None)
    until(lambda: client.get("/readyz").json()["release"] == good)
    assert client.get("/readyz").json()["problem"] is None
    assert client.post("/v1/chat/completions", json=ASK).json()["millrace"]["release"] == good


def _outage(world: World, client: httpx.Client) -> None:
    """Without Postgres a search says so at once and is spooled; when it is back, the spool is written."""
    before = world.rows("SELECT count(*) AS n FROM requests WHERE client = 'outage'")[0]["n"]
    world.bridge.down()
    for _ in range(3):
        started = time.monotonic()
        answer = client.post("/v1/search", json={"query": "loop", "user": "outage"})
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "knowledge_unavailable"
        assert time.monotonic() - started < 5
    until(lambda: client.get("/readyz").json()["requests"]["spooled"] >= 3)
    assert client.get("/readyz").status_code == 200
    until(lambda: "ledger cannot be read" in (client.get("/readyz").json()["problem"] or ""))
    assert client.post("/v1/feedback", json={"request_id": str(UUID(int=1)), "rating": "up"}).status_code == 503
    world.bridge.up()
    until(lambda: client.post("/v1/search", json={"query": "loop", "user": "outage"}).status_code == 200)
    until(lambda: client.get("/readyz").json()["requests"]["waiting"] == 0)
    rows = world.rows("SELECT error, embedding IS NOT NULL AS embedded FROM requests WHERE client = 'outage'")
    failed = [row for row in rows if row["error"] == "KnowledgeAway"]
    assert len(rows) - before >= 4 and len(failed) >= 3 and all(row["embedded"] for row in rows)
    counts = client.get("/readyz").json()["requests"]
    assert counts["lost"] == counts["refused"] == counts["spool_bytes"] == 0


def test_it_starts_without_a_database_and_replays(world: World, tmp_path: Path) -> None:
    world.bridge.down()
    with served(world.environment) as (client, process):
        until(lambda: "ledger cannot be read" in (client.get("/readyz").json()["problem"] or ""))
        world.bridge.up()
        if not world.rows("SELECT 1 FROM releases LIMIT 1"):
            world.release(adapter=0)
        until(lambda: client.get("/readyz").status_code == 200)
        questions = tmp_path / "questions.jsonl"
        questions.write_text("".join(f'{{"id": "q{n}", "question": "what is loop {n}?"}}\n' for n in range(30)))
        environment = world.environment | {"MILLRACE_ASSISTANT_URL": str(client.base_url)}
        command = [sys.executable, "-m", "tasks", "replay", str(questions), "--limit", "25", "--client", "replayed"]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
        assert '"answered": 25' in done.stdout.splitlines()[-1] and '"recorded": true' in done.stdout
        assert world.rows("SELECT count(*) AS n FROM requests WHERE client = 'replayed'")[0]["n"] == 25
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    away = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert away.returncode == 75 and "Next:" in away.stderr


def test_a_shadow_answers_beside_the_live_model_and_its_answers_are_recorded(world: World) -> None:
    """The candidate comes from MLflow's registry, its bytes from S3 by their digest; nobody gets what it says."""
    import mlflow

    world.bridge.up()
    live = world.release(adapter=0)
    uri, sha256 = world.adapters[1]
    registry = mlflow.MlflowClient(tracking_uri=world.settings.mlflow_tracking_uri)
    name = f"shadowed-{time.monotonic_ns()}"
    registry.create_registered_model(name)
    tags = {
        "weights": "adapter", "adapter_uri": uri, "adapter_sha256": sha256, "base_model": world.base_uri,
        "base_revision": world.base_revision,
    }  # fmt: skip
    version = registry.create_model_version(name, source=uri, tags=tags).version
    shadow = {"MILLRACE_MODEL_NAME": name, "MILLRACE_SHADOW_MODEL_VERSION": str(version), "MILLRACE_SHADOW_SHARE": "1"}
    with served(world.environment | shadow | {"MILLRACE_TRACE_SHARE": "1"}) as (client, process):
        until(lambda: client.get("/readyz").json()["release"] == live, 240)
        answers = [client.post("/v1/chat/completions", json=ASK).json() for _ in range(2)]
        ids = [UUID(answer["request_id"]) for answer in answers]
        until(lambda: len(world.rows("SELECT 1 FROM shadow_answers WHERE request_id = ANY(%s)", ids)) == 2)
        assert client.get("/readyz").json()["shadow"] is None
        until(lambda: 'traces_total{result="written"} 2.0' in client.get("/metrics").text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    rows = world.rows("SELECT * FROM shadow_answers WHERE request_id = ANY(%s)", ids)
    said = {answer["choices"][0]["message"]["content"] for answer in answers}
    assert len(said) == 1 and {row["answer"] for row in rows if row["error"] is None}.isdisjoint(said)
    done = next(row for row in rows if row["error"] is None)
    assert (done["adapter_sha256"], done["release"], done["model_version"]) == (sha256, live, str(version))
    assert done["answer"] and 0 <= (done["grounded"] or 0) <= 1 and done["latency_ms"] > 0 and done["live_ms"] > 0
