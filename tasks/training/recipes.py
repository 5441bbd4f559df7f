"""Training recipes: small YAML files, read strictly.

Reads `tasks/training/recipes/NAME.yaml` (or a file of another path, or of S3) and the DeepSpeed configuration it names in
`tasks/training/deepspeed/`. Writes nothing. Fails with `RecipeError`, naming all problems at once, when
a recipe is unknown, a key is misspelt (with the nearest right name) or missing, or values do not fit together.
"""

import importlib.util
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.errors import ManifestError, RecipeError, nearest
from tasks.evaluation.margins import GUARDS, ONLY_BY_RECIPE, WIDEST
from tasks.settings import repository_path

if TYPE_CHECKING:
    from tasks.contracts import Artifact
    from tasks.storage import Storage  # the ranks read a recipe too, and have no use for its packages

RECIPES = Path(__file__).parent / "recipes"
DEEPSPEED = Path(__file__).parent / "deepspeed"


class Part(BaseModel):
    """Base of a recipe's parts: unknown keys are errors, texts are not taken for numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Mix(Part):
    """How the training rows are shared among their origins; only the ratio of the weights matters.

    An origin that has fewer rows than its share gives what it has, and the others fill up.
    """

    curated: float = Field(ge=0, description="Examples that people wrote (and the docstrings of the demo)")
    feedback: float = Field(ge=0, description="Accepted corrections of served answers")
    corpus: float = Field(ge=0, description="Pairs made from the documents of the corpus")

    @model_validator(mode="after")
    def _some(self) -> "Mix":
        if self.curated + self.feedback + self.corpus <= 0:
            raise ValueError("at least one weight must be above 0")
        return self


class Data(Part):
    """Which examples, and how many of their tokens."""

    train_rows: int = Field(ge=8, description="Most training examples, over all origins")
    validation_rows: int = Field(ge=0, description="Examples that can stop a training early; sources of their own")
    held_out_rows: int = Field(ge=4, description="Held-out examples, of sources that training never sees")
    rows_per_source: int = Field(ge=1, description="Most examples of one source (module, file)")
    max_overlap: float = Field(ge=0, le=1, description="Share of training rows also held out that refuses the dataset")
    max_tokens: int = Field(ge=16, description="Longest example; what is cut off its answer is counted as truncated")
    max_truncated: float = Field(ge=0, le=1, description="Share of truncated training rows that refuses the dataset")
    system_prompt: str = Field(description="System message before every question; empty for none")
    mix: Mix


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
    """How the weights are trained. A row is an example, or a pack of examples when `packing`."""

    epochs: int = Field(ge=1)
    rows_per_step: int = Field(ge=1, description="Rows of one optimiser step, over all ranks of all nodes")
    rows_per_batch: int = Field(ge=1, description="Rows of one forward pass of one rank; the accumulation follows")
    packing: bool = Field(description="Join examples to packs of up to max_tokens; each sees only itself")
    learning_rate: float = Field(gt=0)
    warmup_share: float = Field(ge=0, lt=1, description="Share of the steps before the cosine begins")
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    gradient_checkpointing: bool
    precision: Literal["fp32", "bf16"]
    seed: int = Field(ge=0)
    beta: float | None = Field(default=None, gt=0, description="Method dpo: how dear it is to leave the reference")


class Stopping(Part):
    """When a training ends before its last step. A loss that is not finite always ends it."""

    evaluate_every_steps: int | None = Field(default=None, ge=1, description="Steps between validation losses")
    patience: int | None = Field(default=None, ge=1, description="Validations without a better loss before it stops")
    min_improvement: float | None = Field(default=None, ge=0, description="How much lower a better loss is")
    spike_factor: float | None = Field(default=None, gt=1, description="A spike: loss above this x the running median")
    spike_steps: int | None = Field(default=None, ge=1, description="Spikes in a row before it stops")

    @model_validator(mode="after")
    def _complete(self) -> "Stopping":
        if (self.patience is None) != (self.min_improvement is None):
            raise ValueError("patience and min_improvement belong together: give both, or neither")
        if self.patience is not None and self.evaluate_every_steps is None:
            raise ValueError("patience needs evaluate_every_steps")
        if (self.spike_factor is None) != (self.spike_steps is None):
            raise ValueError("spike_factor and spike_steps belong together: give both, or neither")
        return self


class Distribution(Part):
    """Where it runs."""

    accelerator: Literal["cpu", "cuda"]
    ranks: int | Literal["all"] = Field(description="Processes of each machine, or `all` accelerators it has")
    nodes: int = Field(default=1, ge=1, description="Machines")
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

    max_lost_minutes: float = Field(default=5, gt=0, description="Most work that a killed training loses")
    every_steps: int | None = Field(default=None, ge=1, description="Null: computed from the time of a step")
    keep: int = Field(ge=1)


class Evaluation(Part):
    """How the candidate is compared."""

    rows_per_batch: int = Field(ge=1)
    golden_questions: int | None = Field(
        default=None, ge=0, description="Golden questions answered; null: all, 0: a person decides"
    )
    safety_probes: int | None = Field(
        default=None, ge=0, description="Safety probes answered; null: all, 0: a person decides"
    )
    format_probes: int | None = Field(
        default=None, ge=0, description="Format probes answered; null: all, 0: a person decides"
    )
    answer_tokens: int = Field(default=128, ge=1, description="Longest answer of those, in tokens")
    resamples: int = Field(ge=1000, description="Bootstrap resamples")
    min_rows: int = Field(ge=1, description="Fewest held-out rows that can carry a verdict")
    review_margin: float = Field(
        ge=0, le=0.5, description="An interval that ends within this above zero goes to a person"
    )
    margin: float = Field(default=0, ge=0, description="How much better, in nats per token, a candidate must surely be")
    guards: dict[str, float] = Field(
        default_factory=dict, description="Other margins than GUARDS, up to WIDEST: how much worse each measure may get"
    )
    guard_rows: int = Field(
        default=8,
        ge=2,
        le=50,
        description="Fewest rows on which a guard is judged; a set without them is held",
    )
    slice_rows: int = Field(default=20, ge=2, le=200, description="Fewest rows on which a guard is judged in one slice")
    seed: int = Field(ge=0)
    gpus: int = Field(
        default=1, ge=1, description="GPUs that hold the whole base model in bf16, 2 GB a billion weights"
    )

    @model_validator(mode="after")
    def _guarded(self) -> "Evaluation":
        for name, margin in self.guards.items():
            known = (*GUARDS, *ONLY_BY_RECIPE)
            if name not in known:
                raise ValueError(
                    f"guards: expected measures of {', '.join(known)}, found {name!r}.{nearest(name, known)}"
                )
            if not (math.isfinite(margin) and margin >= 0):
                raise ValueError(f"guards: expected a margin of at least 0 for {name}, found {margin}")
            if margin > WIDEST[name]:
                raise ValueError(f"guards: expected a margin of at most {WIDEST[name]:g} for {name}, found {margin:g}")
        return self

    @property
    def asked(self) -> dict[str, int | None]:
        """How many rows of each set are answered: None all, 0 none, and then a person looks instead."""
        return {"golden": self.golden_questions, "safety": self.safety_probes, "format": self.format_probes}

    @property
    def margins(self) -> dict[str, float]:
        """How much worse each measure may surely get: those of the house, and the recipe's own."""
        return GUARDS | self.guards


class Recipe(Part):
    """A whole recipe."""

    description: str
    method: Literal["sft", "dpo", "pretrain"]
    tuning: Literal["lora", "qlora", "full"]
    data: Data
    lora: Lora | None = None
    optimisation: Optimisation
    stopping: Stopping = Stopping()
    distribution: Distribution
    checkpoints: Checkpoints
    evaluation: Evaluation

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        if problems := _misfits(self):
            raise ValueError("; ".join(problems))
        return self

    def accumulation(self, world: int) -> int:
        """Return how many forward passes each of `world` ranks makes for one step. Raises RecipeError."""
        how = self.optimisation
        if how.rows_per_step % (world * how.rows_per_batch):
            raise RecipeError(
                f"expected a number of ranks that divides a step of {how.rows_per_step} rows into batches of "
                f"{how.rows_per_batch}, found {world}. Next: take {fitting_ranks(self)} ranks over all nodes, or change "
                "optimisation.rows_per_step or rows_per_batch in the recipe."
            )
        return how.rows_per_step // (world * how.rows_per_batch)


def require_packages(recipe: Recipe) -> None:
    """Raise RecipeError when a package that only some recipes need is missing here."""
    if recipe.tuning == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError(
            "expected the package bitsandbytes for tuning qlora, found none. Next: use the image of the stages, or "
            "install requirements/stage.txt, or take a recipe with tuning lora."
        )


def fitting_ranks(recipe: Recipe) -> str:
    """Return the numbers of ranks that the recipe can run on, as a text."""
    batches, rest = divmod(recipe.optimisation.rows_per_step, recipe.optimisation.rows_per_batch)
    found = [str(world) for world in range(1, batches + 1) if batches % world == 0 and not rest]
    return ", ".join(found[:-1]) + (" or " if len(found) > 1 else "") + found[-1] if found else "no number of"


def _misfits(recipe: Recipe) -> list[str]:
    """Return what the parts of a recipe say against each other."""
    how, spread, problems = recipe.optimisation, recipe.distribution, []
    if (recipe.lora is None) != (recipe.tuning == "full"):
        problems.append(f"lora must be {'null' if recipe.tuning == 'full' else 'given'} when tuning is {recipe.tuning}")
    if (how.beta is None) == (recipe.method == "dpo"):
        problems.append("optimisation.beta belongs to method dpo, and only there")
    if recipe.method == "dpo" and recipe.tuning == "full":
        problems.append("method dpo needs tuning lora or qlora: the model without its adapter is the reference")
    if recipe.method == "dpo" and how.packing:
        problems.append("optimisation.packing must be false when method is dpo: its rows are pairs")
    if recipe.stopping.evaluate_every_steps is not None and not recipe.data.validation_rows:
        problems.append("stopping.evaluate_every_steps needs data.validation_rows above 0")
    if how.rows_per_step % how.rows_per_batch:
        problems.append(f"rows_per_batch {how.rows_per_batch} must divide rows_per_step {how.rows_per_step}")
    elif isinstance(spread.ranks, int) and how.rows_per_step % (spread.ranks * spread.nodes * how.rows_per_batch):
        problems.append(
            f"rows_per_step {how.rows_per_step} in batches of {how.rows_per_batch} fits {fitting_ranks(recipe)} ranks, "
            f"not {spread.ranks * spread.nodes}"
        )
    return problems


def names() -> list[str]:
    """Return the names of the recipes there are."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(storage: "Storage", kept: "Artifact") -> Recipe:
    """Return a recipe as a training kept it among its outputs. Raises ManifestError, and ValidationError for other keys."""
    return Recipe.model_validate(storage.get_json(kept), strict=False)


def load_recipe(name: str, folder: Path = RECIPES, storage: "Storage | None" = None) -> Recipe:
    """Return the recipe called `name`, or in the file `name` where it ends in .yaml (of `storage` where it is in S3). Raises RecipeError."""
    text, file = _text(name, folder, storage)
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"expected YAML in {file}, found {error}. Next: correct that line.") from error
    recipe, problems = _parse(raw)
    if recipe is not None:
        problems += _deepspeed_problems(recipe)
    if recipe is None or problems:
        raise RecipeError(
            f"expected a recipe in {file} as tasks/training/recipes.py describes, found:\n  "
            + "\n  ".join(problems)
            + "\nNext: correct these keys; the other recipes are examples."
        )
    return recipe


def _text(name: str, folder: Path, storage: "Storage | None") -> tuple[str, str]:
    """Return the text of a recipe, and the name of its file."""
    own = name.endswith(".yaml")
    if own and name.startswith("s3://") and storage is not None:
        try:
            return storage.get_bytes(name).decode(), name
        except ManifestError as error:
            raise RecipeError(f"expected a recipe at {name}, found none. Next: correct the place.") from error
    path = repository_path(name) if own else folder / f"{name}.yaml"
    known = sorted(entry.stem for entry in folder.glob("*.yaml"))
    if own and not path.is_file():
        raise RecipeError(f"expected a recipe in the file {name}, found none. Next: correct the path.")
    if not own and name not in known:
        raise RecipeError(f"expected a recipe ({', '.join(known)}), found {name!r}.{nearest(name, known)}")
    return path.read_text(encoding="utf-8"), path.name


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
        named = part.model_fields[str(step)].annotation
        # `Lora | None` is a part as much as `Data`
        part = next(
            kind for kind in (named, *get_args(named)) if isinstance(kind, type) and issubclass(kind, BaseModel)
        )
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
