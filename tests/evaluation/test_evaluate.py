"""The whole stage on tiny models, with storage in memory; the ledger, the index and MLflow are those of the integration tests."""

import json
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.evaluation import evaluate, gate
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
TINY = load_recipe("tests/training/tiny.yaml")
RECIPE = TINY.model_copy(update={"evaluation": TINY.evaluation.model_copy(update={"min_rows": len(ROWS)})})


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

    def list(self, prefix: str) -> Any:
        return [(uri, len(body), "") for uri, body in self.bodies.items() if uri.startswith(prefix)]

    def get_folder(self, _files: Any, folder: Path) -> Path:
        return folder


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What MLflow is told. Release 7 is live, no index serves, and the trained weights have a digest of their own."""
    found: dict[str, Any] = {}
    around = {
        "ledger": nobody,
        "live": lambda _connection: SimpleNamespace(release=7),
        "trained": lambda _train: SimpleNamespace(files={}, kind="adapter", sha256="c" * 64),
        "fetch_champion": lambda _context, _release, _signed: Champion("d" * 64, None, None),
        "publish": lambda _settings, run_id, table, _written, metrics: (
            found.update(run=run_id, table=table, metrics=metrics) or "t"
        ),
    }
    for name, value in around.items():
        monkeypatch.setattr(evaluate, name, value)
    monkeypatch.setattr("tasks.knowledge.index_tables.current", lambda _connection: None)
    return found


def make_context(storage: Store) -> StageContext:
    """Return what the stage runs with: four held-out rows, and the recipe of the tiny model."""
    outputs = {
        "recipe": storage.put_json("s3://b/recipe.json", RECIPE.model_dump()),
        "held_out": storage.put_rows("s3://b/held_out.jsonl", ROWS),
    }
    facts = {"mlflow_run_id": "r1", "adapter_sha256": "c" * 64}
    train: Any = SimpleNamespace(outputs=outputs, facts=facts, base_model="base")
    return StageContext(
        SETTINGS, storage, "s3://b/runs/f/1", "evaluate", None, {"train": train, "validate_dataset": train}
    )


def make_passes(folder: Path, *, trained: bool = True) -> list[Pass]:
    """Return a tiny model with a candidate and a champion upon it."""
    base = make_model(folder / "base")
    names = {
        BASE: None,
        CANDIDATE: make_adapter(base, folder / "2", 2, trained),
        CHAMPION: make_adapter(base, folder / "3", 3),
    }
    return [Pass(base, names, base)]


def test_every_model_is_measured_on_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: dict[str, Any]
) -> None:
    storage, wanted = Store(), make_passes(tmp_path)
    context, names = make_context(storage), wanted[0].names
    monkeypatch.setattr(evaluate, "passes", lambda *_: wanted)

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
    again = compare(read_scores(rows), RECIPE)
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


@pytest.mark.parametrize("trained", [False, True])
def test_an_untrained_adapter_changes_no_output_and_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: dict[str, Any], trained: bool
) -> None:
    """Two real models that are equal: all B of the candidate are zero, as they begin."""
    storage, wanted = Store(), make_passes(tmp_path, trained=trained)
    context = make_context(storage)
    monkeypatch.setattr(evaluate, "passes", lambda *_: wanted)
    found = evaluate.run(context, evaluate.Options())
    assert found.facts["output_changed"] is trained
    assert (found.metrics["largest_logit_change"] == 0) is not trained
    assert (found.metrics["candidate_loss"] == found.metrics["base_loss"]) is not trained

    monkeypatch.setattr(gate, "trained", evaluate.trained)
    monkeypatch.setattr(gate, "verify", lambda *_: None)
    measured: Any = SimpleNamespace(outputs=found.outputs, facts=found.facts, metrics=found.metrics, uri="s3://b/m")
    judged = gate.run(
        StageContext(SETTINGS, storage, context.run, "gate", None, {**context.inputs, "evaluate": measured}),
        gate.Options(),
    )
    assert ("does not change the model's output" in judged.facts["reason"]) is not trained, judged.facts["reason"]
    if not trained:
        assert (judged.status, judged.facts["verdict"]) == ("refused", "hold")


@pytest.mark.parametrize(("accelerator", "gpus"), [("cpu", 0), ("cuda", 3)])
def test_one_model_has_left_before_the_next_is_loaded_and_gpus_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: dict[str, Any], accelerator: str, gpus: int
) -> None:
    first, other = make_passes(tmp_path)[0], make_model(tmp_path / "other", seed=5)
    wanted = [Pass(first.model, {BASE: None, CANDIDATE: first.names[CANDIDATE]}, first.model)]
    wanted.append(Pass(other, {CHAMPION: None}, other))
    changes = {
        "evaluation": RECIPE.evaluation.model_copy(update={"gpus": 3}),
        "distribution": RECIPE.distribution.model_copy(update={"accelerator": accelerator}),
    }
    monkeypatch.setattr("tests.evaluation.test_evaluate.RECIPE", RECIPE.model_copy(update=changes))
    context, loaded, left = make_context(Store()), evaluate.switched, []

    def watched(folder: Path, names: Any, _recipe: Any) -> Iterator[tuple[str, Any]]:
        """Load as the stage does, on the CPU: this machine may have no GPU."""
        assert [name for name, model in left if model() is not None] == []
        for name, model in loaded(folder, names, TINY):
            left.append((name, weakref.ref(model)))
            yield name, model

    monkeypatch.setattr(evaluate, "passes", lambda *_: wanted)
    monkeypatch.setattr(evaluate, "switched", watched)
    found = evaluate.run(context, evaluate.Options())
    assert [name for name, _model in left] == [BASE, CANDIDATE, CHAMPION]
    assert found.gpus == gpus


@contextmanager
def nobody(_settings: Any) -> Iterator[None]:
    yield None
