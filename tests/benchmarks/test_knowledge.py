"""The benchmarks of the knowledge index, at a size at which they are quick: what they compare, and what they tell of it."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import embedding, index, index_recall, sync
from benchmarks.real_chunks import RealChunks
from benchmarks.result import NotMeasured, Result
from tasks.database import Connection, connect, migrate
from tasks.knowledge.index_tables.contents import COLUMNS
from tasks.knowledge.search import Filters, candidates, search


@pytest.mark.parametrize(
    ("found", "expected"), [("cuda", {"auto": "cuda", "int8": "cpu"}), ("cpu", {"auto": "cpu", "int8": "cpu"})]
)
def test_ours_is_compared_with_sentence_transformers_on_the_same_device(
    found: str, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Theirs:
        def __init__(self, folder: str, device: str) -> None:
            self.device = device

        def encode(self, texts: Sequence[str]) -> str:
            return self.device

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", Theirs)
    monkeypatch.setattr(embedding, "device", lambda: found)
    monkeypatch.setattr(embedding, "load_embedder", lambda settings: Theirs("", f"ours {settings.embedder_precision}"))
    ways, theirs = embedding._ways(embedding.settings_of(tmp_path, "auto"), tmp_path)
    assert {name: ways[base](["text"]) for name, base in theirs.items()} == expected
    assert [ways[name](["text"]) for name in expected] == ["ours auto", "ours int8"]


def test_overlap_is_measured_on_texts_that_calibrated_nothing(tmp_path: Path) -> None:
    texts = embedding.unseen()
    assert sum(map(len, texts)) > 1e6 and not set(texts) & set(topics.values())
    pieces = embedding.chunks(embedding.settings_of(tmp_path, "fp32"), texts[:300])
    reference = "\n".join(topics.values())
    assert len(pieces) > 50 and not [piece for piece in pieces if piece in reference]


def chunks_by_chance(count: int) -> RealChunks:
    """Chunks of packages of different sizes: a quarter of the URIs begin with q."""
    chance = np.random.default_rng(5)
    vectors = chance.normal(size=(count, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    packages = ["qa", "qb", "qc", "qd", "qe", *(f"{letter}x" for letter in "abcdefghijklmno")]
    return RealChunks(
        [
            {
                "chunk_id": hashlib.sha256(str(number).encode()).hexdigest()[:32], "ordinal": number, "title": "T", "text": "t",
                "document_uri": f"{packages[number % 20]}/{number}", "tokens": 1, "start": 0, "end": 1, "chunk_sha256": "0",
                "embedding": vector, "metadata": {"package": packages[number % 20], "ending": ".py" if number % 5 else ".h"},
            }
            for number, vector in enumerate(vectors)
        ],
        "by chance",
    )  # fmt: skip


@pytest.mark.integration
def test_recall_tells_which_way_each_case_went(new_database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def database() -> Iterator[Connection]:
        url = str(new_database("recall"))
        migrate(url)
        with connect(url) as connection:
            yield connection

    monkeypatch.setattr(index_recall, "database", database)
    monkeypatch.setattr(index_recall, "real_chunks", chunks_by_chance)
    monkeypatch.setattr(candidates, "EXACT_ROWS", 300)
    ways = {
        line.partition(" (")[0]: line.rpartition(", ")[2] if "one by one" in line else line.rpartition(" ms, ")[2]
        for line in index_recall.measured(2_000, 20).details
        if "ef_search 40" in line
    }
    through, exact = "HNSW, which gave up on 0 of 20", "one by one"
    assert ways == {
        "no filter": through, "metadata, most": through, "URI prefix, a quarter": through,
        "metadata": exact, "metadata, rare": exact, "URI prefix": exact,
    }  # fmt: skip
    chunks, (question,) = chunks_by_chance(2_001).split(1)
    with database() as connection:
        version = index_recall._indexed(connection, chunks)
        for tuples, times in ((1, 1), (40_000, 0)):
            monkeypatch.setattr(candidates, "SCAN_TUPLES", tuples)
            with index_recall.given_up() as counter:
                hits = search(connection, version.version, question, 450, where=Filters(prefix="q"))
            assert (len(hits), counter.searches) == (450, times), "HNSW, not the tree of URIs"


def test_the_share_nearest_to_what_is_asked_is_chosen_among_values_that_are_frequent_enough() -> None:
    values = ["a"] * 70 + ["b"] * 10 + ["c"] * 20
    assert index_recall.nearest_to(0.12, values) == ("b", 0.1)
    assert index_recall.nearest_to(0.12, values, 20) == ("c", 0.2)
    assert index_recall.nearest_to(0.12, values, 1_000) == ("b", 0.1), "none is: as if nothing were asked"


def test_a_noop_and_a_small_change_are_measured_on_one_first_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    missed = 0

    class Corpus:
        folder = tmp_path

        def changed(self) -> int:
            return sum("Since yesterday" in path.read_text() for path in tmp_path.glob("*.txt"))

        def texts(self) -> set[str]:
            return {"old", *(str(number) for number in range(self.changed() + missed))}

        def sync(self) -> sync.Cost:
            changed = self.changed()
            seen.append(f"sync with {changed} changed")
            counts = {
                "index_documents.chunks": changed,
                "index_documents.embedded": changed,
                "index_documents.from_cache": 0,
                "read_documents.good": 200,
            }
            seconds = 0.1 if len(seen) > 2 else 100.0
            return sync.Cost(worked=seconds, seconds={"list_documents": seconds}, counts=counts)

    @contextmanager
    def corpus(documents: int) -> Iterator[Corpus]:
        for number in range(200):
            (tmp_path / f"{number:03}.txt").write_text("text")
        seen.append("begun")
        yield Corpus()
        seen.append("ended")

    monkeypatch.setattr(sync, "_corpus", corpus)
    monkeypatch.setattr(command, "keep", lambda name, result: seen.append(name))
    assert command.main(["sync_one_percent", "sync_noop"]) == 0
    assert seen == [
        "begun", "sync with 0 changed", "sync with 0 changed", "sync_noop", "sync with 2 changed", "sync_one_percent", "ended",
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert "sync_noop: 0.10% of the first sync, 0 chunks embedded (bound: 2%, 0) holds" in out
    assert "without the start of its processes: 0.10%" in out
    seen.clear()
    assert command.main(["sync_noop"]) == 0 and seen[0] == "begun", "a stack of its own again"
    missed = 1
    assert command.main(["sync_one_percent"]) == 1, "a text that is new was not embedded"


def test_of_several_benchmarks_each_is_told_and_the_worst_decides(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> Result:
        raise NotMeasured("no GPU")

    made = {"good": lambda: Result("2 x", "1 x", True), "bad": lambda: Result("1 x", "2 x", False), "missing": missing}
    monkeypatch.setattr(command, "BENCHMARKS", made)
    monkeypatch.setattr(command, "keep", lambda name, result: None)
    codes = {
        names: command.main(names.split()) for names in ("good", "good bad", "missing good", "missing bad", "x good")
    }
    assert codes == {"good": 0, "good bad": 1, "missing good": 3, "missing bad": 1, "x good": 2}
    out, error = capsys.readouterr()
    assert "missing: not measured: no GPU" in out and "bad: 1 x (bound: 2 x) falls short" in out and "found x." in error


def test_every_bf16_is_asked_for_what_bf16_can() -> None:
    assert [embedding.bound_of(tag) for tag in ("fp32", "bf16", "bf16-openvino")] == [2.5, 4.0, 4.0]


def test_rows_that_are_made_have_every_column() -> None:
    assert {name for name, _type in COLUMNS} == set(index.made_rows(10)[0])
