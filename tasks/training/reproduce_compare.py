"""Did a training that was done again come to the same held-out loss?

Reads the manifests of `train` and `evaluate` in the run folder of a reproduction, and those kept with the release. Writes
nothing. The tolerance follows from what differs between the two trainings (`tolerance`). Fails with `ReproductionError`
when the run folder holds another training (another recipe or seed is one), or one that was found and not done, and with
`ManifestError` or `RecipeError`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.contracts import Manifest
from tasks.errors import ReproductionError
from tasks.release.weights import claimed, trained
from tasks.storage import Storage
from tasks.training.recipes import Recipe
from tasks.training.reproduce_checks import kept_recipe
from tasks.training.reproduce_original import Original

_INPUTS = "training_fingerprint"
_FREE = {("distribution", "ranks"), ("distribution", "nodes")}  # `ranks` of the facts decides the tolerance
METRIC, BASE_METRIC = "candidate_loss", "base_loss"
# Nats per token of the held-out rows. The first two are those that tests/training/test_survival.py holds the curves to.
SAME = 1e-6
OTHER_RANKS = 2e-4
OTHER = 5e-3


@dataclass(frozen=True)
class Tolerance:
    """How far apart two held-out losses may be, and why so far."""

    value: float
    why: str


@dataclass(frozen=True)
class Comparison:
    """What was expected of a reproduction, and what was found."""

    release: int
    expected: float
    found: float
    tolerance: float
    why: str
    base_expected: float
    base_found: float
    same_bytes: bool
    weights_expected: str
    weights_found: str

    @property
    def difference(self) -> float:
        """Return found less expected."""
        return self.found - self.expected

    @property
    def within(self) -> bool:
        """Return whether the held-out loss is the same within the tolerance; what is no number is not."""
        return abs(self.difference) <= self.tolerance

    def lines(self) -> list[str]:
        """Return what a person reads."""
        word = "reproduced" if self.within else "NOT reproduced"
        measured = self.base_found - self.base_expected
        weights = "byte for byte those of the release" if self.same_bytes else "other bytes than those of the release"
        return [
            f"release {self.release} {word}: held-out loss {self.found:.6f}, expected {self.expected:.6f} within "
            f"{self.tolerance:g}, difference {self.difference:+.2e}",
            f"  tolerance  {self.why}",
            f"  weights    {weights} ({self.weights_found})",
            f"  base model scored {self.base_found:.6f}, then {self.base_expected:.6f}: measuring explains {measured:+.2e}",
        ]


def unlike(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in what two trainings differ that decides the result, by the facts of their manifests."""
    made, done = then.get("made_with") or {}, now.get("made_with") or {}
    found = ["ranks"] if then.get("ranks") != now.get("ranks") else []
    return found + [name for name in ("hardware", "packages") if not made.get(name) or made[name] != done.get(name)]


def tolerance(accelerator: str, differing: Sequence[str]) -> Tolerance:
    """Return how far apart the losses may be where these things differ."""
    if accelerator == "cpu" and not differing:
        return Tolerance(SAME, "CPU; the same ranks, hardware and packages: only rounding in the last digits")
    if accelerator == "cpu" and list(differing) == ["ranks"]:
        return Tolerance(OTHER_RANKS, "CPU; another number of ranks adds the gradients up in another order")
    if not differing:
        return Tolerance(OTHER, "GPU kernels add up in no fixed order, in bfloat16; assumed, not measured")
    named = ", ".join(name.replace("_", " ") for name in differing)
    return Tolerance(OTHER, f"{named} differ or were not recorded; assumed, not measured")


def compare(storage: Storage, run: str, original: Original) -> Comparison:
    """Return how the training in a run folder compares with the original. Raises ReproductionError, ManifestError."""
    train, evaluate = storage.require_manifest(run, "train"), storage.require_manifest(run, "evaluate")
    weights, release = trained(train), original.release.release
    require_own(run, release, train.facts, weights.uri)
    recipe = require_same_recipe(storage, run, original.train, train)
    held_out = original.dataset.outputs["held_out"].sha256
    for what, expected, found in (
        ("weights", weights.sha256, claimed(evaluate.facts)),
        ("held-out rows", held_out, evaluate.facts.get("held_out_sha256")),
        ("dataset", original.dataset.facts.get("dataset_sha256"), train.facts.get("dataset_sha256")),
        ("base model", original.train.facts.get("base_revision"), train.facts.get("base_revision")),
        # With the same recipe, rows and base it differs by the trainer's version, DeepSpeed's settings or a start adapter.
        ("inputs of training", original.train.facts.get(_INPUTS), train.facts.get(_INPUTS)),
    ):
        if expected != found:
            raise ReproductionError(
                f"expected {what} {expected}, found {found} in {run}. Next: prepare the reproduction anew, in a new run folder."
            )
    allowed = tolerance(recipe.distribution.accelerator, unlike(original.train.facts, train.facts))
    return Comparison(
        release=release,
        expected=metric(original.evaluate.metrics, METRIC),
        found=metric(evaluate.metrics, METRIC),
        tolerance=allowed.value,
        why=allowed.why,
        base_expected=metric(original.evaluate.metrics, BASE_METRIC),
        base_found=metric(evaluate.metrics, BASE_METRIC),
        same_bytes=weights.sha256 == original.weights.sha256,
        weights_expected=original.weights.sha256,
        weights_found=weights.sha256,
    )


def require_same_recipe(storage: Storage, run: str, then: Manifest, now: Manifest) -> Recipe:
    """Return the recipe of both trainings, seed and all; how many ranks shared the work may differ. Raises ReproductionError."""
    recipe = kept_recipe(storage, now)
    expected, found = (_decisive(kept_recipe(storage, then)), _decisive(recipe))
    if other := [
        f"{part}.{key}"
        for part, key in expected.keys() | found.keys()
        if expected.get((part, key)) != found.get((part, key))
    ]:
        raise ReproductionError(
            f"expected the recipe that the release was trained with in {run}, found other values of {', '.join(sorted(other))}. "
            "Next: prepare the reproduction anew, in a new run folder, and train with its recipe."
        )
    return recipe


def _decisive(recipe: Recipe) -> dict[tuple[str, str], Any]:
    """Return every value of a recipe that decides what is trained and measured."""
    flat = {
        (part, key): value
        for part, values in recipe.model_dump(mode="json", exclude={"description", "checkpoints"}).items()
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    }
    return {name: value for name, value in flat.items() if name not in _FREE}


def require_own(run: str, release: int, facts: Mapping[str, Any], uri: str) -> None:
    """Prove that the weights were trained in this run folder: the original's own would reproduce themselves. Raises ReproductionError."""
    if facts.get("reproduces") != release or not uri.startswith(f"{run}/"):
        raise ReproductionError(
            f"expected a training in {run} that reproduces release {release}, found weights of {uri}. "
            f"Next: train with --reproduces {release}, in a run folder that `python -m tasks reproduce {release}` prepared."
        )


def metric(metrics: Mapping[str, float], name: str) -> float:
    """Return a figure of `evaluate`. Raises ReproductionError."""
    if name not in metrics:
        raise ReproductionError(
            f"expected {name} among the metrics of evaluate, found {sorted(metrics)}. Next: evaluate with this code again."
        )
    return metrics[name]
