"""Recipes: every one there is must hold, and a mistake is told with its remedy."""

from pathlib import Path

import pytest
import yaml

from tasks.errors import RecipeError
from tasks.training.recipes import RECIPES, Recipe, deepspeed_config, load_recipe, names


@pytest.mark.parametrize("name", names())
def test_every_recipe_holds(name: str) -> None:
    recipe = load_recipe(name)
    assert f"zero{deepspeed_config(recipe)['zero_optimization']['stage']}" in recipe.distribution.deepspeed
    first, second = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[:2]
    assert first.startswith("# ")
    assert second.endswith(f"--recipe {name}"), "the header says how to run it"
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe, "the ranks read it as JSON"


def test_the_recipes_of_the_demo_and_of_production_are_there() -> None:
    assert {"demo", "smoke_cpu", "sft_lora_zero2"} <= set(names())


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    raw = yaml.safe_load((RECIPES / "demo.yaml").read_text(encoding="utf-8"))
    raw["lora"]["rnak"] = raw["lora"].pop("rank")
    raw["optimisation"]["learning_rate"] = "fast"
    raw["optimisation"]["accumulation"] = 3
    raw["data"]["mix"]["feedbak"] = 1
    raw["evalutaion"] = raw.pop("evaluation")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return tmp_path


def test_all_mistakes_are_told_at_once(broken: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("mine", broken)
    text = str(caught.value)
    assert "lora.rnak is not a key. Did you mean 'rank'?" in text
    assert "evalutaion is not a key. Did you mean 'evaluation'?" in text
    assert "lora.rank: field required" in text
    assert "optimisation.accumulation is not a key" in text
    assert "data.mix.feedbak is not a key. Did you mean 'feedback'?" in text
    assert "optimisation.learning_rate" in text
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("part", "key", "value", "told"),
    [
        ("optimisation", "rows_per_batch", 3, "rows_per_batch 3 must divide rows_per_step 16"),
        ("distribution", "ranks", 3, "fits 1, 2 or 4 ranks, not 3"),
        ("distribution", "nodes", 4, "fits 1, 2 or 4 ranks, not 8"),
        ("optimisation", "beta", 0.1, "belongs to method dpo"),
        ("stopping", "evaluate_every_steps", 5, "needs data.validation_rows"),
        ("stopping", "patience", 5, "patience and min_improvement belong together"),
        ("stopping", "spike_steps", 5, "spike_factor and spike_steps belong together"),
        ("data", "mix", {"curated": 0, "feedback": 0, "corpus": 0}, "at least one weight"),
        ("distribution", "ranks", "all", "ranks must be a number"),
        ("distribution", "ranks", 0, "at least 1"),
        ("distribution", "deepspeed", "zero2_pf32", "Did you mean 'zero2_fp32'?"),
        ("optimisation", "precision", "bf16", "bf16 in zero2_fp32.json is False"),
        ("lora", "rank", "8", "lora.rank"),
        ("evaluation", "guards", {"refused": 99}, "expected a margin of at most 0.1 for refused, found 99"),
        ("evaluation", "guards", {"loss": 0.51}, "expected a margin of at most 0.5 for loss, found 0.51"),
        ("evaluation", "guard_rows", 10**6, "evaluation.guard_rows: input should be less than or equal to 50"),
        ("evaluation", "slice_rows", 201, "evaluation.slice_rows: input should be less than or equal to 200"),
        ("evaluation", "review_margin", 2.0, "evaluation.review_margin: input should be less than or equal to 0.5"),
    ],
)
def test_values_must_fit_together(tmp_path: Path, part: str, key: str, value: object, told: str) -> None:
    raw = yaml.safe_load((RECIPES / "demo.yaml").read_text(encoding="utf-8"))
    raw.setdefault(part, {})[key] = value
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(RecipeError, match=".") as caught:
        load_recipe("mine", tmp_path)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tuning": "full"}, "lora must be null when tuning is full"),
        ({"lora": None}, "lora must be given when tuning is lora"),
        ({"method": "dpo"}, "optimisation.beta belongs to method dpo"),
        ({"method": "dpo", "tuning": "full", "lora": None}, "method dpo needs tuning lora or qlora"),
        ({"method": "ppo"}, "method: input should be 'sft', 'dpo' or 'pretrain'"),
    ],
)
def test_method_and_tuning_must_fit(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    raw = yaml.safe_load((RECIPES / "demo.yaml").read_text(encoding="utf-8")) | changes
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe("mine", tmp_path)
    assert told in str(caught.value)


def test_the_accumulation_follows_from_the_ranks() -> None:
    recipe = load_recipe("demo")
    assert [recipe.accumulation(world) for world in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(RecipeError, match="take 1, 2 or 4 ranks"):
        recipe.accumulation(3)


def test_an_unknown_recipe_is_told_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'demo'"):
        load_recipe("dmeo")


def test_a_file_that_is_not_yaml(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("a: [1", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"YAML in mine\.yaml"):
        load_recipe("mine", tmp_path)
