"""The whole stage on tiny models, with storage in memory; the ledger, the index and MLflow are those of the integration tests."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.evaluation import evaluate
from tasks.evaluation.champion import Champion, Pass
from tasks.evaluation.losses import compare, read_scores
from tasks.evaluation.measures import BASE, CANDIDATE, CHAMPION
from tasks.evaluation.sets import NO_INDEX
from tasks.evaluation.table import read_table
from tasks.stage import StageContext
from tasks.training.recipes import load_recipe
from tests.evaluation.test_sets import SETTINGS, Memory
from tests.tiny_model import make_adapter, make_model, pair

ROWS = [pair(str(n), f"What is {n}?", "It is " + "very " * n + "good.", source=f"m{n}") for n in range(4)]


class Store(Memory):
    """Memory that gives back what was written."""

    def put_bytes(self, uri: str, body: bytes, **arguments: Any) -> Any:
        self.bodies = getattr(self, "bodies", {}) | {uri: body}
        return super().put_bytes(uri, b"" if uri.endswith(".parquet") else body, **arguments)

    def put_json(self, uri: str, value: Any) -> Any:
        return self.put_bytes(uri, json.dumps(value).encode())

    def get(self, artifact: Any) -> bytes:
        found: bytes = self.bodies[artifact.uri]
        return found

    def get_folder(self, _files: Any, folder: Path) -> Path:
        return folder


def test_every_model_is_measured_on_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, storage = load_recipe("tests/training/tiny.yaml"), Store()
    outputs = {
        "recipe": storage.put_json("s3://b/recipe.json", recipe.model_dump()),
        "held_out": storage.put_rows("s3://b/held_out.jsonl", ROWS),
    }
    train: Any = SimpleNamespace(outputs=outputs, facts={"mlflow_run_id": "r1"}, base_model="base")
    context = StageContext(
        SETTINGS, storage, "s3://b/runs/f/1", "evaluate", None, {"train": train, "validate_dataset": train}
    )
    base = make_model(tmp_path / "base")
    names = {
        BASE: None,
        CANDIDATE: make_adapter(base, tmp_path / "2", 2),
        CHAMPION: make_adapter(base, tmp_path / "3", 3),
    }
    shown: dict[str, Any] = {}
    around = {
        "ledger": nobody,
        "live": lambda _connection: SimpleNamespace(release=7),
        "trained": lambda _train: SimpleNamespace(files={}, kind="adapter", sha256="c" * 64),
        "fetch_champion": lambda _context, _release: Champion("d" * 64, None, None),
        "passes": lambda _context, _candidate, _champion: [Pass(base, names, base)],
        "publish": lambda _settings, run_id, table, _written, metrics: (
            shown.update(run=run_id, table=table, metrics=metrics) or "t"
        ),
    }
    for name, value in around.items():
        monkeypatch.setattr(evaluate, name, value)
    monkeypatch.setattr("tasks.knowledge.index_tables.current", lambda _connection: None)

    found = evaluate.run(context, evaluate.Options())
    assert found.facts["left_out"] == {"golden": NO_INDEX}
    assert {name: told["rows"] for name, told in found.facts["sets"].items()} == {
        "held_out": 4,
        "safety": 3,
        "format": 2,
    }
    assert (found.facts["champion_release"], found.facts["output_changed"]) == (7, True)
    table = read_table(storage, found.outputs["scores"])
    assert Counter((row["set"], row["model"]) for row in table) == {
        (name, model): rows for name, rows in (("held_out", 4), ("safety", 3), ("format", 2)) for model in names
    }  # fmt: skip
    answers = {(row["id"], row["model"]): row["answer"] for row in table if row["set"] == "safety"}
    assert any(answers[name, BASE] != answers[name, CANDIDATE] for name, _model in answers)
    rows = [json.loads(line) for line in storage.bodies[found.outputs["rows"].uri].splitlines()]
    again = compare(read_scores(rows), recipe)
    assert {name: found.metrics[name] for name in again} == pytest.approx(again), (
        "the gate computes the same from the rows"
    )
    held_out = [row for row in table if row["set"] == "held_out" and row["model"] == CHAMPION]
    assert [row["loss"] for row in held_out] == [row["loss"][CHAMPION] for row in rows]
    for model in names:
        said = [bool(text) for (_id, name), text in answers.items() if name == model]
        assert found.metrics[f"{model}_refused"] == sum(said) / 3, (
            "nobody follows, and who says nothing refuses nothing"
        )
    assert found.counts["answers"] == 15
    assert (shown["run"], len(shown["table"]), shown["metrics"]) == ("r1", len(table), found.metrics)


@contextmanager
def nobody(_settings: Any) -> Iterator[None]:
    yield None
