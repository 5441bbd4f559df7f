"""Do two sets of vectors come from one distribution? A kernel two-sample test in linear time and memory.

The statistic is the squared maximum mean discrepancy (Gretton et al., "A Kernel Two-Sample Test", JMLR
2012) of a Gaussian kernel, whose width is the median distance (their heuristic), with the kernel
replaced by random Fourier features (Rahimi and Recht, "Random Features for Large-Scale Kernel Machines",
NIPS 2007): the difference of two means instead of all pairs. The p-value comes from permuting the
labels, so it is exact whatever the distribution: it needs no threshold that was tuned on other data.
Pure: reads and writes nothing; the seed is fixed, so the same vectors give the same answer.
"""

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

Vectors = NDArray[numpy.float32]

FEATURES = 512  # cosine and sine of each: 1,024 columns
PERMUTATIONS = 1_999  # least p-value 0.0005: below 0.01 also after Holm's correction over five tests
SEED = 20_070_101
_BATCH = 128
_PAIRS = 1_000


@dataclass(frozen=True)
class TwoSample:
    """The squared discrepancy and the share of label permutations that reach it."""

    statistic: float
    p_value: float


def two_sample(
    reference: Vectors, current: Vectors, *, permutations: int = PERMUTATIONS, seed: int = SEED
) -> TwoSample:
    """Return the discrepancy of two sets of vectors and its permutation p-value."""
    random = numpy.random.default_rng(seed)
    width = _median_distance(reference, current, random)
    pooled = numpy.concatenate([reference, current]).astype(numpy.float32)
    if width == 0.0:
        return TwoSample(0.0, 1.0)  # all vectors are one vector
    features = _features(pooled, width, random)
    rows, first = len(pooled), len(reference)
    labels = numpy.zeros(rows, dtype=bool)
    labels[:first] = True
    observed = _discrepancy(labels[None, :], features, first)[0]
    reached = 0
    for start in range(0, permutations, _BATCH):
        batch = numpy.stack([random.permutation(labels) for _ in range(min(_BATCH, permutations - start))])
        # Rounding must not make an equal permutation look smaller than the observed order.
        reached += int((_discrepancy(batch, features, first) >= observed * (1 - 1e-6)).sum())
    return TwoSample(float(observed), (1 + reached) / (1 + permutations))


def novelty(reference: Vectors, vectors: Vectors, *, same: bool = False) -> NDArray[numpy.float32]:
    """Return 1 minus the cosine to the nearest reference vector, for normalised vectors.

    `same=True` when `vectors` are the reference themselves: a vector is then not its own neighbour.
    """
    nearest = numpy.empty(len(vectors), dtype=numpy.float32)
    for start in range(0, len(vectors), 1_024):
        cosine = vectors[start : start + 1_024] @ reference.T
        if same:
            rows = numpy.arange(len(cosine))
            cosine[rows, rows + start] = -1.0
        nearest[start : start + 1_024] = cosine.max(axis=1)
    result: NDArray[numpy.float32] = numpy.clip(1.0 - nearest, 0.0, 2.0).astype(numpy.float32)
    return result


def furthest(reference: Vectors, vectors: Vectors, count: int, alike: float = 0.8) -> list[int]:
    """Return the positions of up to `count` vectors furthest from the reference, no two of them alike.

    Only what is new counts: further away than 95 % of the reference vectors are from their own nearest.
    """
    away = novelty(reference, vectors)
    usual = float(numpy.quantile(novelty(reference, reference, same=True), 0.95)) if len(reference) > 1 else 0.0
    chosen: list[int] = []
    for position in numpy.argsort(-away, kind="stable"):
        if len(chosen) == count or away[position] <= usual:
            break
        if not chosen or float((vectors[chosen] @ vectors[position]).max()) < alike:
            chosen.append(int(position))
    return chosen


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Return p-values corrected for their number (Holm 1979): the share of false alarms over all tests stays below alpha."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda key: (p_values[key], key))):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def _median_distance(reference: Vectors, current: Vectors, random: numpy.random.Generator) -> float:
    """Return the median distance between vectors of the two sets, over at most 1,000 of each."""
    some = reference[random.permutation(len(reference))[:_PAIRS]]
    others = current[random.permutation(len(current))[:_PAIRS]]
    squared = (some**2).sum(1)[:, None] + (others**2).sum(1)[None, :] - 2.0 * some @ others.T
    return float(numpy.sqrt(max(float(numpy.median(squared)), 0.0)))


def _features(vectors: Vectors, width: float, random: numpy.random.Generator) -> Vectors:
    frequencies = (random.standard_normal((vectors.shape[1], FEATURES)) / width).astype(numpy.float32)
    projected = vectors @ frequencies
    features = numpy.empty((len(vectors), 2 * FEATURES), dtype=numpy.float32)
    numpy.cos(projected, out=features[:, :FEATURES])
    numpy.sin(projected, out=features[:, FEATURES:])
    features /= numpy.float32(numpy.sqrt(FEATURES))
    return features


def _discrepancy(labels: NDArray[numpy.bool_], features: Vectors, first: int) -> NDArray[numpy.float64]:
    """Return the squared distance of the two means, for every row of labels."""
    second = labels.shape[1] - first
    weights = numpy.where(labels, numpy.float32(1 / first), numpy.float32(-1 / second))
    difference = weights @ features
    squared: NDArray[numpy.float64] = (difference.astype(numpy.float64) ** 2).sum(axis=1)
    return squared
