"""Without a training: what may differ between two of them, how far apart their losses may be, and the command."""

from typing import Any

import pytest

from tasks.errors import OptionError, RecipeError, ReproductionError
from tasks.storage import Storage
from tasks.training import made_with, reproduce
from tasks.training.recipes import load_recipe, names
from tasks.training.reproduce_compare import (
    OTHER,
    OTHER_RANKS,
    SAME,
    Comparison,
    metric,
    require_own,
    tolerance,
    unlike,
)

MADE = {"code_revision": "a" * 40, "packages": {"torch": "2.13.0"}, "hardware": "x86_64 one"}
FACTS: dict[str, Any] = {"ranks": 2, "training_fingerprint": "f", "made_with": MADE}


@pytest.mark.parametrize(
    ("accelerator", "change", "named", "allowed"),
    [
        ("cpu", {}, [], SAME),
        ("cpu", {"made_with": MADE | {"code_revision": "b"}}, [], SAME),
        ("cpu", {"ranks": 4}, ["ranks"], OTHER_RANKS),
        ("cpu", {"training_fingerprint": "g"}, ["training_fingerprint"], OTHER),
        ("cpu", {"made_with": MADE | {"hardware": "arm64"}}, ["hardware"], OTHER),
        ("cpu", {"made_with": MADE | {"packages": {"torch": "2.14.0"}}}, ["packages"], OTHER),
        ("cpu", {"ranks": 4, "made_with": MADE | {"hardware": "arm64"}}, ["ranks", "hardware"], OTHER),
        ("cuda", {}, [], OTHER),
        ("cuda", {"ranks": 4}, ["ranks"], OTHER),
    ],
)
def test_the_tolerance_follows_from_what_differs(
    accelerator: str, change: dict[str, Any], named: list[str], allowed: float
) -> None:
    differing = unlike(FACTS, FACTS | change)
    assert differing == named
    found = tolerance(accelerator, differing)
    assert found.value == allowed
    assert all(name.replace("_", " ").split()[0] in found.why for name in named)


def test_what_was_not_recorded_is_not_taken_for_the_same() -> None:
    """Also where neither side says it: two unknowns are not equal."""
    assert unlike(FACTS | {"made_with": None}, FACTS) == ["hardware", "packages"]
    assert unlike(FACTS | {"made_with": None}, FACTS | {"made_with": None}) == ["hardware", "packages"]


@pytest.mark.parametrize(
    ("found", "within"), [(2.0, True), (2.0000009, True), (2.0000011, False), (1.9, False), (float("nan"), False)]
)
def test_a_loss_is_within_or_not(found: float, within: bool) -> None:
    made = Comparison(1, 2.0, found, SAME, "why", 3.0, 3.0, False, "a", "b")
    assert made.within is within
    assert ("NOT reproduced" in made.lines()[0]) is not within
    assert "other bytes" in made.lines()[2]


def test_a_figure_that_is_not_there_is_no_comparison() -> None:
    with pytest.raises(ReproductionError, match="expected candidate_loss"):
        metric({"loss": 1.0}, "candidate_loss")


@pytest.mark.parametrize(
    ("facts", "uri"),
    [
        ({}, "s3://b/models/f/adapter"),  # `train` without --reproduces finds the original
        ({"reproduces": 3}, "s3://b/models/f/adapter"),
        ({"reproduces": 4}, "s3://b/runs/r/1/train/reproduction/adapter"),
        ({"reproduces": 3}, "s3://b/runs/r/10/train/reproduction/adapter"),
    ],
)
def test_the_original_does_not_reproduce_itself(facts: dict[str, Any], uri: str) -> None:
    with pytest.raises(ReproductionError, match="--reproduces 3"):
        require_own("s3://b/runs/r/1", 3, facts, uri)


def test_every_recipe_comes_back_from_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small numbers too: 1e-06 without a point would be read as a text."""
    storage = Storage("http://127.0.0.1:9")
    for name in names():
        recipe = load_recipe(name)
        written = {"s3://b/recipe.yaml": reproduce.as_yaml(recipe)}
        monkeypatch.setattr(storage, "get_bytes", written.__getitem__)
        assert load_recipe("s3://b/recipe.yaml", storage=storage) == recipe


def test_a_recipe_in_s3_needs_a_storage() -> None:
    with pytest.raises(RecipeError, match="found none"):
        load_recipe("s3://b/recipe.yaml")


@pytest.mark.parametrize("arguments", [[], ["three"], ["3", "--run", "runs/1"], ["3", "--model", "x"], ["--start"]])
def test_a_wrong_command_is_told(arguments: list[str]) -> None:
    with pytest.raises(OptionError, match="reproduce RELEASE"):
        reproduce.main(arguments)


def test_a_training_says_what_it_is_made_with() -> None:
    found = made_with.packages()
    assert {"python", "torch", "transformers", "deepspeed", "peft"} <= set(found)
    assert made_with.hardware(load_recipe("smoke_cpu")).strip()
