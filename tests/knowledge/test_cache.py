"""The cache of vectors against real Postgres: what it counts, keeps, and has after a SIGKILL."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import psycopg
import pytest

from tasks.database import connect, migrate
from tasks.errors import ModelError
from tasks.knowledge import cache
from tasks.knowledge.cache import EmbeddingCache, text_sha256, vectors
from tasks.knowledge.embedders import identity
from tasks.settings import settings
from tests.knowledge.syncing import environment_of

pytestmark = pytest.mark.integration
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def environment(stack: Any, new_database: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    values = {
        **stack.env,
        "MILLRACE_DATABASE_URL": str(new_database("cache")),
        "MILLRACE_CACHE_DIR": str(tmp_path_factory.mktemp("models")),
        "MILLRACE_EMBEDDER_PRECISION": "fp32",
    }
    migrate(values["MILLRACE_DATABASE_URL"])
    with environment_of(values):
        yield values


@pytest.fixture
def embedder(environment: dict[str, str]) -> str:
    """The configured embedder, with nothing in the cache."""
    with connect() as connection:
        connection.execute("TRUNCATE embedding_cache")
    return identity(settings())


def stored() -> int:
    with connect() as connection:
        row = connection.execute("SELECT count(*) AS n FROM embedding_cache").fetchone()
        assert row is not None
        return int(row["n"])


def test_a_stream_loads_one_model_and_counts_exactly(embedder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    real = cache.load_embedder
    monkeypatch.setattr(cache, "load_embedder", lambda *args: loads.append(args) or real(*args))
    made = EmbeddingCache(settings(), embedder)
    done: list[tuple[int, int]] = []
    first = made.vectors(["one", "two", "one", "cut " * 300], progress=lambda *numbers: done.append(numbers))
    second = made.vectors(["two", "three"])
    third = made.vectors(["cut " * 300])
    assert (first.embedded, first.from_cache, first.truncated) == (3, 0, 1)
    assert (second.embedded, second.from_cache, second.truncated) == (1, 1, 0)
    assert (third.embedded, third.from_cache, third.truncated) == (0, 1, 0)
    assert (made.embedded, made.from_cache, made.truncated) == (4, 2, 1)
    assert done[-1] == (3, 3)
    assert len(loads) == 1
    assert stored() == 4
    for found, texts in ((first, ["one", "two"]), (second, ["two", "three"])):
        assert set(found.by_sha256) >= {text_sha256(text) for text in texts}
    assert numpy.array_equal(first.by_sha256[text_sha256("two")], second.by_sha256[text_sha256("two")])
    assert second.by_sha256[text_sha256("two")].dtype == numpy.float32


def test_unchanged_work_loads_no_model(embedder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors(settings(), embedder, ["one", "two"])

    def forbidden(*_args: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(cache, "load_embedder", forbidden)
    found = vectors(settings(), embedder, ["two", "one"])
    assert (found.embedded, found.from_cache) == (0, 2)
    assert vectors(settings(), embedder, []).by_sha256 == {}
    with pytest.raises(AssertionError):
        vectors(settings(), embedder, ["three"])


def test_each_embedder_has_vectors_of_its_own(embedder: str) -> None:
    vectors(settings(), embedder, ["one"])
    other = vectors(settings(), embedder.replace("+fp32", "+bf16-openvino"), ["one"])
    assert (other.embedded, stored()) == (1, 2)
    with pytest.raises(ModelError):
        vectors(settings(), "package:no_such_package/model@0123+fp32", ["one"])


def test_questions_of_a_model_with_prompts_are_kept_apart(embedder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors(settings(), embedder, ["one"])
    assert vectors(settings(), embedder, ["one"], kind="query").from_cache == 1  # no prompts: one vector for both
    monkeypatch.setattr(cache, "prompts", lambda *_args: {"query": "query: ", "document": ""})
    found = vectors(settings(), embedder, ["one"], kind="query")
    assert (found.embedded, list(found.by_sha256), stored()) == (1, [text_sha256("one")], 2)
    again = vectors(settings(), embedder, ["one"], kind="query")
    assert (again.from_cache, list(again.by_sha256)) == (1, [text_sha256("one")])


def test_stored_questions_need_no_embedder(embedder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors(settings(), embedder, ["plain"], kind="query")
    monkeypatch.setattr(cache, "prompts", lambda *_args: {"query": "query: ", "document": ""})
    vectors(settings(), embedder, ["own"], kind="query")

    def gone(*_args: Any) -> None:
        raise ModelError("gone")

    monkeypatch.setattr(cache, "prompts", gone)
    monkeypatch.setattr(cache, "load_embedder", gone)
    assert vectors(settings(), embedder, ["plain"], kind="query").from_cache == 1
    assert vectors(settings(), embedder, ["own"], kind="query").from_cache == 1
    with pytest.raises(ModelError, match="gone"):
        vectors(settings(), embedder, ["plain", "new"], kind="query")


def test_scratch_vectors_are_kept_apart(embedder: str) -> None:
    vectors(settings(), embedder, ["one"])
    scratch = EmbeddingCache(settings(), embedder, scratch=True)
    assert (scratch.vectors(["one", "two"]).embedded, scratch.vectors(["one", "two"]).embedded) == (1, 0)
    with connect() as connection:
        rows = connection.execute("SELECT embedder FROM embedding_cache ORDER BY embedder").fetchall()
    assert [row["embedder"] for row in rows] == [embedder, cache.SCRATCH + embedder]
    assert vectors(settings(), embedder, ["two"]).embedded == 1, "what goes again serves nothing else"


def test_a_killed_run_goes_on_where_it_was(embedder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"sentence number {number} of many" for number in range(6000)]
    code = (
        "from tasks.knowledge import cache; from tasks.settings import settings\n"
        "cache._ROWS_A_STORE = 64\n"
        f"cache.vectors(settings(), {embedder!r}, [f'sentence number {{n}} of many' for n in range(6000)])"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY) as child:
        while stored() == 0 and child.poll() is None:
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    before = stored()
    assert 0 < before < len(texts)
    found = vectors(settings(), embedder, texts)
    assert (found.from_cache, found.embedded) == (before, len(texts) - before)
    assert stored() == len(texts) == len(found.by_sha256)


def test_two_writers_with_texts_in_common_do_not_wait_for_each_other(
    embedder: str, environment: dict[str, str]
) -> None:
    made = EmbeddingCache(settings(), embedder)
    vector = numpy.ones(384, dtype=numpy.float32)
    made._store({"b": vector, "a": vector})
    with psycopg.connect(environment["MILLRACE_DATABASE_URL"]) as connection:
        rows = connection.execute("SELECT chunk_sha256 FROM embedding_cache ORDER BY ctid").fetchall()
    assert rows == [("a",), ("b",)]  # always in the order of their keys
    made._store({"a": vector, "c": vector})
    assert stored() == 3
