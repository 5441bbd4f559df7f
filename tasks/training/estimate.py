"""How long a training will take, and what it will cost.

Reads the newest finished trainings (table `stage_costs`, and their manifests) and settings; writes nothing. An earlier
training with the same recipe and base model tells the tokens per second of a rank, and how long everything around the
steps took; without one the work in floating-point operations is divided by what a GPU is assumed to achieve
(MILLRACE_GPU_TFLOPS). The basis is always said. Never fails for want of an earlier training.
"""

import logging
from dataclasses import dataclass

from tasks.contracts import Manifest, manifest_uri
from tasks.database import connect
from tasks.errors import ManifestError
from tasks.stage import StageContext
from tasks.training import flops
from tasks.training.recipes import Recipe

log = logging.getLogger(__name__)

_LOOK_BACK = 200  # finished trainings, newest first
# A LoRA step over 4 x 256 tokens of a model of 135 million weights takes 8 to 20 s on the two cores of two ranks.
_CPU_TFLOPS = 0.02
_AROUND_SECONDS = 120.0  # fetching the model, starting the ranks, saving; where no earlier training tells


@dataclass(frozen=True)
class Work:
    """What is to be computed: tokens over all epochs, on so many ranks, and the mean length of the row a token stands in."""

    tokens: int
    context_length: float
    world: int


@dataclass(frozen=True)
class Estimate:
    """Time and cost, and where the figures come from. `cost` is None without a price."""

    seconds: float
    gpu_hours: float
    cost: float | None
    basis: str


@dataclass(frozen=True)
class Earlier:
    """A finished training of the same recipe and base model."""

    run: str
    tokens_per_second: float  # of one rank
    around_seconds: float


def estimate(
    context: StageContext, name: str, recipe: Recipe, base_model: str, shape: flops.Shape, work: Work
) -> Estimate:
    """Return time and cost of the work, by the newest finished training like it, else by its operations."""
    settings, cuda = context.settings, recipe.distribution.accelerator == "cuda"
    found = earlier(context, name, base_model)
    if found is not None:
        seconds = work.tokens / (found.tokens_per_second * work.world) + found.around_seconds
        basis = f"{found.tokens_per_second:,.0f} tokens/s a rank in {found.run}"
    else:
        rate = settings.gpu_tflops if cuda else _CPU_TFLOPS
        seconds = work.tokens * flops.token_flops(shape, recipe, work.context_length) / (rate * 1e12 * work.world)
        seconds += _AROUND_SECONDS
        said = "MILLRACE_GPU_TFLOPS" if cuda else "assumed of a CPU rank"
        basis = f"floating-point operations at {rate:g} TFLOP/s a rank ({said}); no earlier training tells"
    hours = seconds * work.world / 3600 if cuda else 0.0
    cost = None if settings.gpu_hour_price is None else hours * settings.gpu_hour_price
    return Estimate(seconds, hours, cost, basis)


def earlier(context: StageContext, recipe: str, base_model: str) -> Earlier | None:
    """Return the newest finished training of this recipe and base model whose manifest is still there."""
    with connect(context.settings.database_url.get_secret_value(), vectors=False) as connection:
        rows = connection.execute(
            "SELECT run FROM stage_costs WHERE stage = 'train' AND status = 'complete' AND run <> %s "
            "GROUP BY run ORDER BY max(ended_at) DESC LIMIT %s",
            (context.run, _LOOK_BACK),
        ).fetchall()
    for row in rows:
        try:
            manifest = context.storage.read_manifest(manifest_uri(row["run"], "train"))
        except ManifestError as error:
            log.warning("an earlier training tells nothing: %s", error)
            continue
        if manifest is not None and (found := _told(manifest, recipe, base_model)) is not None:
            return found
    return None


def _told(manifest: Manifest, recipe: str, base_model: str) -> Earlier | None:
    facts, metrics = manifest.facts, manifest.metrics
    speed, ranks = metrics.get("tokens_per_second", 0.0), int(facts.get("ranks", 0))
    if (facts.get("recipe"), facts.get("base_model")) != (recipe, base_model) or speed <= 0 or ranks <= 0:
        return None
    around = max(0.0, metrics.get("stage_seconds", 0.0) - metrics.get("train_seconds", 0.0))
    return Earlier(manifest.run, speed / ranks, around)
