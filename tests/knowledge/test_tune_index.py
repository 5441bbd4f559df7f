"""`python -m tasks tune-index`: combinations measured, tracked, and gone again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tasks import tracking
from tasks.__main__ import main
from tasks.database import connect
from tasks.errors import DataError, ModelError, TryAgain
from tasks.knowledge import erasure, index_tables, tune_index, tune_trial, tuning
from tasks.knowledge.cache import SCRATCH
from tasks.settings import load_settings, settings
from tests.knowledge.syncing import Sync, current

pytestmark = [pytest.mark.integration, pytest.mark.long]
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def tuned(sync: Sync, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sync]:
    """The corpus of `sync`, in the environment of this process."""
    monkeypatch.setenv("MILLRACE_CORPUS", str(sync.corpus))
    monkeypatch.setenv("MILLRACE_GOLDEN_QUESTIONS", str(sync.golden))
    settings.cache_clear()
    yield sync
    settings.cache_clear()


def runs_of_mlflow() -> list[Any]:
    with tracking.answering(load_settings()) as client:
        found = client.get_experiment_by_name(tune_trial.EXPERIMENT)
        return list(client.search_runs([found.experiment_id])) if found else []


def tables() -> list[str]:
    with connect() as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'chunks_v%' ORDER BY 1")
        return [row["tablename"] for row in rows]


def versions() -> list[int]:
    with connect() as connection:
        return [row["version"] for row in connection.execute("SELECT version FROM index_versions ORDER BY 1")]


def vectors() -> set[tuple[str, str]]:
    with connect() as connection:
        rows = connection.execute("SELECT chunk_sha256, embedder FROM embedding_cache")
        return {(row["chunk_sha256"], row["embedder"]) for row in rows}


def rows_of(out: str) -> list[list[str]]:
    """Return the words of the rows as they were told, without the table at the end."""
    lines = out.split("\nbest recall@5 first:")[0].splitlines()
    return [line.split() for line in lines[lines.index(tune_trial.HEAD) + 1 :] if line]


def test_each_combination_is_a_row_and_a_run_and_leaves_nothing(
    tuned: Sync, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned.run("first")
    before, known, cached = current(), len(runs_of_mlflow()), vectors()
    arguments = ["--chunkers", "recursive,sentence_window", "--sizes", "64,200", "--modes", "vector,hybrid"]
    assert main(["tune-index", *arguments]) == 0
    out = capsys.readouterr().out
    rows = rows_of(out)
    assert len(rows) == 2 * 2 * 2
    assert {row[0] for row in rows} == {"recursive", "sentence_window"}
    last = out.split("best recall@5 first:\n")[1].splitlines()
    assert last[0] == tune_trial.HEAD and sorted(line.split() for line in last[1:]) == sorted(rows)
    runs = runs_of_mlflow()
    assert len(runs) - known == 8
    assert {run.data.params["mode"] for run in runs} == {"vector", "hybrid"}
    assert all(0 <= run.data.metrics["recall_at_5"] <= 1 for run in runs)
    assert all(0 <= run.data.metrics["ann_recall"] <= 1 for run in runs)
    assert versions() == [before]
    assert tables() == [f"chunks_v{before}"]
    assert vectors() == cached, "vectors of other sizes would outlive an erasure"


def test_what_was_embedded_is_not_embedded_again(tuned: Sync, capsys: pytest.CaptureFixture[str]) -> None:
    tuned.run("first")
    assert main(["tune-index", "--modes", "vector", "--ef", "40,80"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert [row[6] for row in rows] == ["0", "0"], "the corpus' own settings: every vector came from the cache"
    assert main(["tune-index", "--chunkers", "recursive,auto", "--sizes", "100"]) == 0
    embedded = [int(row[6]) for row in rows_of(capsys.readouterr().out)]
    assert embedded[0] > 0 and embedded[1] < embedded[0], "what one trial embedded another finds"


def test_an_erased_document_and_a_copy_are_not_read(
    tuned: Sync, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned.run("first")
    erasure.main(["--document", "file:owl.md", "--by", "ada", "--reason", "x"])  # a golden question asks for it
    tuned.write("fox-again.md", (tuned.corpus / "fox.md").read_bytes())
    built: set[str] = set()
    real = index_tables.replace_documents

    def seen(connection: Any, version: Any, uris: Any, rows: Any) -> None:
        built.update(uris)
        real(connection, version, uris, rows)

    monkeypatch.setattr(index_tables, "replace_documents", seen)
    assert main(["tune-index", "--sizes", "64"]) == 0
    assert len(built) == 5 and "file:owl.md" not in built
    assert len({"file:fox.md", "file:fox-again.md"} & built) == 1


def test_auto_tries_the_precision_that_the_corpus_is_indexed_with(
    tuned: Sync, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned.run("first")
    monkeypatch.setattr("tasks.knowledge.embedders.probe.fast_bf16", lambda _words: True)  # another machine's CPU
    assert main(["tune-index"]) == 0
    assert [row[6] for row in rows_of(capsys.readouterr().out)] == ["0"]


def test_a_refusal_of_mlflow_loses_no_trial(tuned: Sync, capsys: pytest.CaptureFixture[str]) -> None:
    tuned.run("first")
    client = tracking.client(settings())
    experiment = client.get_experiment_by_name(tune_trial.EXPERIMENT)
    number = experiment.experiment_id if experiment else client.create_experiment(tune_trial.EXPERIMENT)
    client.delete_experiment(number)
    try:
        assert main(["tune-index", "--modes", "vector,hybrid"]) == 2
    finally:
        client.restore_experiment(number)
    assert len(rows_of(capsys.readouterr().out)) == 2


def test_a_document_erased_meanwhile_is_not_in_the_next_trial(tuned: Sync, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned.run("first")
    held: list[set[str]] = []
    real = tune_trial.measure

    def erasing(connection: Any, version: Any, *rest: Any) -> Any:
        if not held:
            erasure.main(["--document", "file:owl.md", "--by", "ada", "--reason", "x"])
        found = connection.execute(sql.SQL("SELECT DISTINCT document_uri FROM {}").format(version.table))
        held.append({row["document_uri"] for row in found})
        return real(connection, version, *rest)

    monkeypatch.setattr(tune_trial, "measure", erasing)
    assert main(["tune-index", "--sizes", "64,100"]) == 0
    assert [len(one) for one in held] == [5, 5]
    assert all("file:owl.md" not in one for one in held)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_one_that_is_killed_leaves_nothing_that_stays(tuned: Sync, number: int) -> None:
    tuned.run("first")
    cached, before = vectors(), versions()
    code = (
        "import sys, time; from tasks.__main__ import main; from tasks.knowledge import tune_trial\n"
        "tune_trial.measure = lambda *_: (print('MEASURING', flush=True), time.sleep(60))\n"
        "sys.exit(main(['tune-index', '--sizes', '64']))"
    )
    environment = {**os.environ}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert any("MEASURING" in line for line in child.stdout)
        with pytest.raises(TryAgain, match="no other tune-index"):
            tune_index.main([])
        child.send_signal(number)
    if number == signal.SIGTERM:
        assert child.returncode == TryAgain.exit_code
    else:
        assert len(versions()) == 2 and vectors() > cached
        erasure.main(["--document", "file:owl.md", "--by", "ada", "--reason", "x"])
        left = versions()[1]
        with connect() as connection:
            found = connection.execute(f"SELECT 1 FROM chunks_v{left} WHERE document_uri = 'file:owl.md'".encode())
            assert not found.fetchall(), "erased in what is left too"
        assert not any(embedder.startswith(SCRATCH) for _sha256, embedder in vectors())
        wait_for_lock()
        with tuning.alone():
            pass
    assert versions() == before
    assert not any(embedder.startswith(SCRATCH) for _sha256, embedder in vectors())


def wait_for_lock() -> None:
    """The server sees a moment after a kill that the connection is gone."""
    for _ in range(100):
        with psycopg.connect(os.environ["MILLRACE_DATABASE_URL"]) as connection:
            row = connection.execute("SELECT pg_try_advisory_lock(%s)", (tuning._LOCK,)).fetchone()
            if row and row[0]:
                return
        time.sleep(0.1)


def test_an_error_of_one_combination_is_its_row_and_the_exit_code(
    tuned: Sync, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned.run("first")
    real = index_tables.build_indexes
    calls: list[int] = []

    def failing(connection: Any, version: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ModelError("expected a model, found none. Next: mend it.")
        real(connection, version)

    monkeypatch.setattr(index_tables, "build_indexes", failing)
    assert main(["tune-index", "--sizes", "64,100"]) == ModelError.exit_code
    out = capsys.readouterr().out
    first, second = rows_of(out)
    assert first[1:4] == ["64", "0", "ModelError:"] and second[1] == "100" and len(second) > 10
    assert versions() == [current()]


def test_without_mlflow_the_rows_are_told_all_the_same(
    tuned: Sync, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned.run("first")
    monkeypatch.setenv("MILLRACE_MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings.cache_clear()
    assert main(["tune-index", "--ef", "40,80"]) == TryAgain.exit_code
    assert [row[4] for row in rows_of(capsys.readouterr().out)] == ["40", "80"]


def test_of_some_documents_only_their_questions_are_asked(
    tuned: Sync, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned.run("first")
    assert main(["tune-index", "--documents", "4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("asking 4 of 6 golden questions: those about the first 4 documents\n")
    tuned.golden.write_text('{"id": "w", "question": "Who?", "documents": ["file:wolf.md"]}\n')
    with pytest.raises(DataError, match="found none of 1"):
        tune_index.main(["--documents", "2"])


def test_the_corpus_reranker_orders_the_hits(tuned: Sync, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned.run("first")
    scored: list[str] = []

    class Reranker:
        def score(self, question: str, texts: list[str]) -> list[float]:
            scored.append(question)
            return [0.0] * len(texts)

    monkeypatch.setattr("tasks.knowledge.reranker.load_reranker", lambda _settings: Reranker())
    monkeypatch.setenv("MILLRACE_RERANKER", "package:some/reranker")
    settings.cache_clear()
    assert main(["tune-index"]) == 0
    assert scored
