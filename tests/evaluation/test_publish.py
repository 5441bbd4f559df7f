"""What MLflow is shown: a retry adds no row to a table that is there."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.contracts import Artifact
from tasks.evaluation.publish import publish

ROWS = [{"set": "held_out", "id": "a", "model": "base", "loss": 2.5}]


class Client:
    """MLflow: it adds to a table that is there."""

    def __init__(self) -> None:
        self.tables: dict[str, list[str]] = {}
        self.metrics: dict[str, float] = {}

    def list_artifacts(self, run_id: str, folder: str) -> list[Any]:
        assert (run_id, folder) == ("r1", "evaluation")
        return [SimpleNamespace(path=path) for path in self.tables]

    def log_table(self, run_id: str, table: dict[str, list[Any]], path: str) -> None:
        self.tables.setdefault(path, []).extend(table["id"])

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        self.metrics |= {metric.key: metric.value for metric in metrics}


def test_a_retry_writes_no_row_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    client, settings = Client(), SimpleNamespace()

    @contextmanager
    def answering(_settings: Any) -> Iterator[Client]:
        yield client

    monkeypatch.setattr("tasks.tracking.answering", answering)

    def written(letter: str) -> str:
        artifact = Artifact(uri="s3://b/scores.parquet", sha256=letter * 64, bytes=1)
        return publish(settings, "r1", ROWS, artifact, {"base_loss": 2.5})  # type: ignore[arg-type]

    first = written("a")
    client.metrics.clear()  # it was cut short between table and metrics
    assert written("a") == first
    assert client.tables == {first: ["a"]} and client.metrics == {"base_loss": 2.5}
    second = written("b")
    assert client.tables == {first: ["a"], second: ["a"]}
