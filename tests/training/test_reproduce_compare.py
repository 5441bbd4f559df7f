"""Without a training: what may differ between two of them, how far apart their losses may be, and the command."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from tasks import models
from tasks.contracts import Artifact, Manifest
from tasks.errors import OptionError, RecipeError, ReproductionError, ServiceUnavailable
from tasks.release.weights import trained
from tasks.storage import Storage
from tasks.training import made_with, reproduce, reproduce_checks
from tasks.training.recipes import load_recipe, names
from tasks.training.reproduce_compare import (
    OTHER,
    OTHER_RANKS,
    SAME,
    Comparison,
    compare,
    metric,
    require_own,
    tolerance,
    unlike,
)
from tasks.training.reproduce_original import Original

MADE = {"code_revision": "a" * 40, "packages": {"torch": "2.13.0"}, "hardware": "x86_64 one"}
FACTS: dict[str, Any] = {"ranks": 2, "training_fingerprint": "f", "made_with": MADE}


@pytest.mark.parametrize(
    ("accelerator", "change", "named", "allowed"),
    [
        ("cpu", {}, [], SAME),
        ("cpu", {"made_with": MADE | {"code_revision": "b"}}, [], SAME),
        ("cpu", {"ranks": 4}, ["ranks"], OTHER_RANKS),
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


RUN = "s3://b/runs/reproduce/1"


class Kept:
    """A storage with one reproduction: its manifests, and the recipes by their places."""

    def __init__(self, manifests: dict[str, Manifest], recipes: dict[str, Any]) -> None:
        self.manifests, self.recipes = manifests, recipes

    def require_manifest(self, _run: str, stage: str) -> Manifest:
        return self.manifests[stage]

    def get_json(self, artifact: Artifact) -> Any:
        return self.recipes[artifact.uri]


def manifest(stage: str, run: str, **fields: Any) -> Manifest:
    now = datetime.now(UTC)
    return Manifest(
        stage=stage, run=run, status="complete", fingerprint="f", code_revision="c", host="h", started_at=now, ended_at=now,
        **fields,
    )  # fmt: skip


def training(run: str, folder: str, **facts: Any) -> Manifest:
    files = {
        f"adapter/{name}": Artifact(uri=f"{folder}/adapter/{name}", sha256="1" * 64, bytes=1)
        for name in ("adapter_model.safetensors", "adapter_config.json")
    }
    files["recipe"] = Artifact(uri=f"{run}/recipe.json", sha256="2" * 64, bytes=1)
    known = FACTS | {"adapter_uri": f"{folder}/adapter", "dataset_sha256": "d", "base_revision": "b"}
    return manifest("train", run, outputs=files, facts=known | facts)


def compared(changes: dict[str, dict[str, Any]], **facts: Any) -> Comparison:
    """Compare a reproduction with its release, where its recipe has these changes and its training these facts."""
    held_out = Artifact(uri="s3://b/datasets/d/held_out.jsonl", sha256="3" * 64, bytes=1)
    original = training("s3://b/runs/fine_tune/1", "s3://b/models/f")
    again = training(RUN, f"{RUN}/train/reproduction", **({"reproduces": 3} | facts))
    losses = {"candidate_loss": 2.0, "base_loss": 3.0}
    told = {"weights_sha256": trained(again).sha256, "held_out_sha256": held_out.sha256}
    recipe = load_recipe("smoke_cpu").model_dump(mode="json")
    changed = {part: recipe[part] | changes[part] if part in changes else recipe[part] for part in recipe}
    kept = Kept(
        {"train": again, "evaluate": manifest("evaluate", RUN, metrics=losses, facts=told)},
        {"s3://b/runs/fine_tune/1/recipe.json": recipe, f"{RUN}/recipe.json": changed},
    )
    dataset = manifest("validate_dataset", "s3://b", outputs={"held_out": held_out}, facts={"dataset_sha256": "d"})
    then = Original(
        SimpleNamespace(release=3),
        dataset,
        original,
        manifest("evaluate", "s3://b", metrics=losses),
        trained(original),  # type: ignore[arg-type]
    )
    return compare(kept, RUN, then)  # type: ignore[arg-type]


def test_the_same_recipe_is_compared_whoever_shared_the_work() -> None:
    assert compared({}).tolerance == SAME
    assert compared({"distribution": {"ranks": 4}, "checkpoints": {"keep": 7}}, ranks=4).tolerance == OTHER_RANKS


@pytest.mark.parametrize(
    ("changes", "facts", "named"),
    [
        ({"optimisation": {"seed": 1}}, {}, r"optimisation\.seed"),
        ({"optimisation": {"learning_rate": 0.5}}, {}, r"optimisation\.learning_rate"),
        ({"evaluation": {"review_margin": 0.4}}, {}, r"evaluation\.review_margin"),
        ({}, {"training_fingerprint": "g"}, "inputs of training f, found g"),
    ],
)
def test_another_recipe_or_seed_reproduces_nothing(
    changes: dict[str, dict[str, Any]], facts: dict[str, Any], named: str
) -> None:
    """Whatever its loss: it is the very same here."""
    with pytest.raises(ReproductionError, match=named):
        compared(changes, **facts)


def test_an_outage_is_not_a_base_model_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> Any:
        raise ServiceUnavailable("expected S3 to answer, found nothing. Next: retry.")

    monkeypatch.setattr(models, "fetch", away)
    facts = {"base_model": "s3://b/base", "base_revision": "b"}
    original = SimpleNamespace(train=SimpleNamespace(facts=facts))
    with pytest.raises(ServiceUnavailable):
        reproduce_checks.base_model(SimpleNamespace(cache_dir=None), None, original)  # type: ignore[arg-type]


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
