"""Training recipes: small YAML files, read strictly.

Reads `tasks/training/recipes/NAME.yaml` and the DeepSpeed configuration it names in
`tasks/training/deepspeed/`. Writes nothing. Fails with `RecipeError`, naming all problems at once, when
a recipe is unknown, a key is misspelt (with the nearest right name) or missing, or values do not fit together.
"""

import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.errors import RecipeError, nearest

RECIPES = Path(__file__).parent / "recipes"
DEEPSPEED = Path(__file__).parent / "deepspeed"


class Part(BaseModel):
    """Base of a recipe's parts: unknown keys are errors, texts are not taken for numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Data(Part):
    """Which examples, and how many of their tokens."""

    train_rows: int = Field(ge=8, description="Most training examples; feedback comes first, then spread over sources")
    held_out_rows: int = Field(ge=4, description="Held-out examples, of sources that training never sees")
    rows_per_source: int = Field(ge=1, description="Most examples of one source (module, file)")
    max_overlap: float = Field(ge=0, le=1, description="Share of training rows also held out that refuses the dataset")
    max_tokens: int = Field(ge=16, description="Longest example; what is cut off its answer is counted as truncated")
    system_prompt: str = Field(description="System message before every question; empty for none")


class Lora(Part):
    """The adapter."""

    rank: int = Field(ge=1, le=512)
    alpha: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)
    targets: list[str] = Field(min_length=1, description="Names of the linear layers that get an adapter")
    last_layers: int | None = Field(
        default=None, ge=1, description="Only the last N blocks; the gradient stops below them, which saves a third"
    )


class Optimisation(Part):
    """How the adapter is trained."""

    epochs: int = Field(ge=1)
    rows_per_step: int = Field(ge=1, description="Examples of one optimiser step on one rank")
    accumulation: int = Field(ge=1, description="Parts a step is cut into to save memory; divides rows_per_step")
    learning_rate: float = Field(gt=0)
    warmup_share: float = Field(ge=0, lt=1, description="Share of the steps before the cosine begins")
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    gradient_checkpointing: bool
    precision: Literal["fp32", "bf16"]
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _divides(self) -> "Optimisation":
        if self.rows_per_step % self.accumulation:
            raise ValueError(f"accumulation {self.accumulation} must divide rows_per_step {self.rows_per_step}")
        return self


class Distribution(Part):
    """Where it runs."""

    accelerator: Literal["cpu", "cuda"]
    ranks: int | Literal["all"] = Field(description="Processes of this machine, or `all` accelerators it has")
    deepspeed: str = Field(description="File in tasks/training/deepspeed, without .json")

    @model_validator(mode="after")
    def _countable(self) -> "Distribution":
        if self.accelerator == "cpu" and self.ranks == "all":
            raise ValueError("ranks must be a number when accelerator is cpu")
        if isinstance(self.ranks, int) and self.ranks < 1:
            raise ValueError("ranks must be at least 1")
        return self


class Checkpoints(Part):
    """What survives a preemption."""

    every_steps: int = Field(ge=1)
    keep: int = Field(ge=1)


class Evaluation(Part):
    """How the candidate is compared."""

    rows_per_batch: int = Field(ge=1)
    resamples: int = Field(ge=1000, description="Bootstrap resamples")
    min_rows: int = Field(ge=1, description="Fewest held-out rows that can carry a verdict")
    review_margin: float = Field(ge=0, description="An interval that ends within this above zero goes to a person")
    seed: int = Field(ge=0)


class Recipe(Part):
    """A whole recipe."""

    description: str
    method: Literal["sft"]
    data: Data
    lora: Lora
    optimisation: Optimisation
    distribution: Distribution
    checkpoints: Checkpoints
    evaluation: Evaluation


def names() -> list[str]:
    """Return the names of the recipes there are."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name: str, folder: Path = RECIPES) -> Recipe:
    """Return the recipe called `name`. Raises RecipeError."""
    path = folder / f"{name}.yaml"
    known = sorted(entry.stem for entry in folder.glob("*.yaml"))
    if name not in known:
        raise RecipeError(f"expected a recipe ({', '.join(known)}), found {name!r}.{nearest(name, known)}")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"expected YAML in {path.name}, found {error}. Next: correct that line.") from error
    recipe, problems = _parse(raw)
    if recipe is not None:
        problems += _deepspeed_problems(recipe)
    if recipe is None or problems:
        raise RecipeError(
            f"expected a recipe in {path.name} as tasks/training/recipes.py describes, found:\n  "
            + "\n  ".join(problems)
            + "\nNext: correct these keys; the other recipes are examples."
        )
    return recipe


def deepspeed_config(recipe: Recipe) -> dict[str, Any]:
    """Return the DeepSpeed configuration that the recipe names, as it stands in its file."""
    config: dict[str, Any] = json.loads((DEEPSPEED / f"{recipe.distribution.deepspeed}.json").read_text("utf-8"))
    return config


def _parse(raw: Any) -> tuple[Recipe | None, list[str]]:
    try:
        return Recipe.model_validate(raw), []
    except ValidationError as error:
        return None, [_problem(item["type"], item["loc"], item["msg"]) for item in error.errors(include_url=False)]


def _problem(kind: str, place: tuple[int | str, ...], text: str) -> str:
    name = ".".join(map(str, place)) or "the file"
    if kind == "extra_forbidden":
        return f"{name} is not a key.{nearest(str(place[-1]), _keys(place[:-1]))}"
    return f"{name}: {text[:1].lower()}{text[1:]}"


def _keys(place: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the part at `place` knows."""
    part: type[BaseModel] = Recipe
    for step in place:
        inner = part.model_fields[str(step)].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        part = inner
    return list(part.model_fields)


def _deepspeed_problems(recipe: Recipe) -> list[str]:
    known = sorted(path.stem for path in DEEPSPEED.glob("*.json"))
    name = recipe.distribution.deepspeed
    if name not in known:
        return [f"distribution.deepspeed: {name!r} is no file of tasks/training/deepspeed.{nearest(name, known)}"]
    bf16 = bool(deepspeed_config(recipe).get("bf16", {}).get("enabled"))
    if bf16 != (recipe.optimisation.precision == "bf16"):
        return [f"optimisation.precision is {recipe.optimisation.precision}, but bf16 in {name}.json is {bf16}"]
    return []
