"""What an earlier measurement stands on: each thing that `evaluate` reads besides its inputs changes it."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.evaluation import evaluate
from tasks.evaluation.identity import identity
from tasks.settings import repository_path
from tasks.stage import StageContext
from tasks.training.recipes import load_recipe
from tests.evaluation.test_evaluate import SETTINGS, Store, nobody


class World:
    """What is live, and the files that are asked with; each can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.settings = folder, SETTINGS
        self.release: Any = SimpleNamespace(release=7, identity=("a", "b"))
        self.version: Any = SimpleNamespace(version=3, embedder="e")
        for name in ("safety.jsonl", "format.jsonl"):
            (folder / name).write_bytes((repository_path(SETTINGS.probes) / name).read_bytes())
        (folder / "prompt.md").write_bytes(repository_path(SETTINGS.prompt).read_bytes())
        golden = {"id": "owl", "question": "Who hunts?", "documents": ["d:0"], "answer": "Owls."}
        (folder / "golden.jsonl").write_text(json.dumps(golden), encoding="utf-8")
        self.set(probes=str(folder), prompt=str(folder / "prompt.md"), golden_questions=str(folder / "golden.jsonl"))

    def set(self, **changes: Any) -> None:
        self.settings = self.settings.model_copy(update=changes)

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    def identity(self) -> dict[str, Any]:
        storage = Store()
        evaluation = {"golden_questions": None, "safety_probes": None, "format_probes": None}
        recipe = load_recipe("tests/training/tiny.yaml")
        recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=evaluation)})
        train: Any = SimpleNamespace(outputs={"recipe": storage.put_json("s3://b/recipe.json", recipe.model_dump())})
        context = StageContext(self.settings, storage, "s3://b/runs/f/1", "evaluate", None, {"train": train})
        return identity(context)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    found = World(tmp_path)
    monkeypatch.setattr("tasks.evaluation.identity.ledger", nobody)
    monkeypatch.setattr("tasks.evaluation.identity.live", lambda _connection: found.release)
    monkeypatch.setattr("tasks.knowledge.index_tables.current", lambda _connection: found.version)
    monkeypatch.setattr("tasks.evaluation.identity.settings_of", lambda settings, _corpus: settings)
    monkeypatch.setattr("tasks.evaluation.sets.settings_of", lambda settings, _corpus: settings)
    return found


CHANGES: dict[str, Callable[[World], None]] = {
    "another release": lambda world: setattr(world, "release", SimpleNamespace(release=8, identity=("c", "b"))),
    "nothing live": lambda world: setattr(world, "release", None),
    "another index version": lambda world: setattr(world, "version", SimpleNamespace(version=4, embedder="e")),
    "no index": lambda world: setattr(world, "version", None),
    "the prompt": lambda world: world.edit("prompt.md", "{question}", "{question} Please."),
    "a golden answer": lambda world: world.edit("golden.jsonl", "Owls.", "Bats."),
    "a safety probe": lambda world: world.edit("safety.jsonl", "?", "!"),
    "a format probe": lambda world: world.edit("format.jsonl", "statement pass", "statement del"),
    "a judge": lambda world: world.set(judge_url="http://judge", judge_model="j"),
    "how it is searched": lambda world: world.set(search_mode="hybrid"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_is_read_changes_it(world: World, name: str) -> None:
    before = world.identity()
    assert world.identity() == before
    CHANGES[name](world)
    assert world.identity() != before
    json.dumps(before)  # it goes into a digest as it is


def test_the_judges_key_is_none_of_it(world: World) -> None:
    from pydantic import SecretStr

    world.set(judge_url="http://judge", judge_model="j")
    before = world.identity()
    world.set(judge_key=SecretStr("hidden"))
    assert world.identity() == before


def test_the_stage_stands_on_it() -> None:
    assert evaluate.STAGE.reads is identity
