"""`python -m tasks tune-index`: combinations measured, tracked, and gone again."""

from typing import Any

import pytest

from tasks import tracking
from tasks.__main__ import main
from tasks.database import connect
from tasks.errors import OptionError
from tasks.knowledge import tune_index
from tasks.settings import load_settings, settings
from tests.knowledge.syncing import Sync, current

pytestmark = [pytest.mark.integration, pytest.mark.long]


@pytest.fixture
def tuned(sync: Sync, monkeypatch: pytest.MonkeyPatch) -> Sync:
    """The corpus of `sync`, in the environment of this process."""
    monkeypatch.setenv("MILLRACE_CORPUS", str(sync.corpus))
    monkeypatch.setenv("MILLRACE_GOLDEN_QUESTIONS", str(sync.golden))
    settings.cache_clear()
    return sync


def runs_of_mlflow() -> list[Any]:
    with tracking.answering(load_settings()) as client:
        found = client.get_experiment_by_name(tune_index.EXPERIMENT)
        return list(client.search_runs([found.experiment_id])) if found else []


def test_each_combination_is_a_row_and_a_run_and_leaves_nothing(
    tuned: Sync, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned.run("first")
    before, known = current(), len(runs_of_mlflow())
    arguments = ["--chunkers", "recursive,sentence_window", "--sizes", "64,200", "--modes", "vector,hybrid"]
    assert main(["tune-index", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * 2 * 2
    assert "recall@5" in lines[0]
    assert {line.split()[0] for line in lines[1:]} == {"recursive", "sentence_window"}
    runs = runs_of_mlflow()
    assert len(runs) - known == 8
    assert {run.data.params["mode"] for run in runs} == {"vector", "hybrid"}
    assert all(0 <= run.data.metrics["recall_at_5"] <= 1 for run in runs)
    with connect() as connection:
        rows = list(connection.execute("SELECT version FROM index_versions"))
        tables = connection.execute("SELECT count(*) AS n FROM pg_tables WHERE tablename LIKE 'chunks_v%'").fetchone()
    assert [row["version"] for row in rows] == [before]
    assert tables == {"n": 1}


def test_what_was_embedded_is_not_embedded_again(tuned: Sync, capsys: pytest.CaptureFixture[str]) -> None:
    tuned.run("first")
    assert main(["tune-index", "--modes", "vector", "--ef", "40,80"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[6] for row in rows] == ["0", "0"], "the corpus' own settings: every vector came from the cache"


@pytest.mark.parametrize("arguments", [["--size", "3"], ["--sizes", "small"], ["--ef", ""]])
def test_wrong_options_are_told(tuned: Sync, arguments: list[str]) -> None:
    with pytest.raises(OptionError, match="Next"):
        tune_index.main(arguments)
