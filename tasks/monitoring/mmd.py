"""Do two sets of vectors come from one distribution? A kernel two-sample test in linear time and memory.

The statistic is the squared maximum mean discrepancy (Gretton et al., "A Kernel Two-Sample Test", JMLR
2012) of a Gaussian kernel, whose width is the median distance (their heuristic), with the kernel
replaced by random Fourier features (Rahimi and Recht, "Random Features for Large-Scale Kernel Machines",
NIPS 2007): the difference of two means instead of all pairs. The p-value comes from permuting the
labels, so it is exact whatever the distribution: it needs no threshold that was tuned on other data.
Labels are permuted by bins of rows of one side, all of one size, as "Cheap Permutation Testing" does (Domingo-Enrich,
Dwivedi and Mackey, 2025): bins of one distribution are as exchangeable as rows are, and a permutation of some hundred bins
costs the same for a thousand rows and for a million. Rows that fill no whole bin (fewer than one in BINS) are left out.
Pure: reads and writes nothing; the seed is fixed, so the same vectors give the same answer.
"""

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

Vectors = NDArray[numpy.float32]

FEATURES = 512  # cosine and sine of each: 1,024 columns
PERMUTATIONS = 1_999  # least p-value 0.0005: below 0.01 also after Holm's correction over every figure
SEED = 20_070_101
BINS = 128  # of the smaller side, where it has so many rows
_BATCH = 256
_ROWS = 4_096
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
    if width == 0.0:
        return TwoSample(0.0, 1.0)  # all vectors are one vector
    size = max(1, min(len(reference), len(current)) // BINS)
    frequencies = (random.standard_normal((reference.shape[1], FEATURES)) / width).astype(numpy.float32)
    sides = [_bins(side[random.permutation(len(side))], size, frequencies) for side in (reference, current)]
    means = numpy.concatenate(sides)
    labels = numpy.zeros(len(means), dtype=bool)
    labels[: len(sides[0])] = True
    observed = _discrepancy(labels[None, :], means)[0]
    reached = 0
    for start in range(0, permutations, _BATCH):
        batch = random.permuted(numpy.tile(labels, (min(_BATCH, permutations - start), 1)), axis=1)
        # Rounding must not make an equal permutation look smaller than the observed order.
        reached += int((_discrepancy(batch, means) >= observed * (1 - 1e-6)).sum())
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


def _bins(vectors: Vectors, size: int, frequencies: Vectors) -> Vectors:
    """Return the mean of the random Fourier features of every `size` rows."""
    bins = len(vectors) // size
    means = numpy.empty((bins, 2 * FEATURES), dtype=numpy.float32)
    step = max(1, _ROWS // size)
    for start in range(0, bins, step):
        rows = vectors[start * size : min(start + step, bins) * size].astype(numpy.float32, copy=False)
        projected = rows @ frequencies
        stop = start + len(rows) // size
        for half, wave in ((slice(0, FEATURES), numpy.cos), (slice(FEATURES, None), numpy.sin)):
            means[start:stop, half] = wave(projected).reshape(stop - start, size, FEATURES).mean(axis=1)
    means /= numpy.float32(numpy.sqrt(FEATURES))
    return means


def _discrepancy(labels: NDArray[numpy.bool_], means: Vectors) -> NDArray[numpy.float64]:
    """Return the squared distance of the means of both sides, for every row of labels of bins."""
    first = int(labels[0].sum())
    second = labels.shape[1] - first
    weights = numpy.where(labels, numpy.float32(1 / first), numpy.float32(-1 / second))
    difference = weights @ means
    squared: NDArray[numpy.float64] = (difference.astype(numpy.float64) ** 2).sum(axis=1)
    return squared
