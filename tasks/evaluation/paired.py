"""Two models on the same rows: means weighted by token, and a paired bootstrap of their difference.

Reads and writes nothing but its arguments. The rows are resampled, not the tokens: answers are the unit
that was drawn. The same seed and rows give the same figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
_BLOCK = 2_000_000  # drawn row numbers held in memory at once


@dataclass(frozen=True)
class Score:
    """One row under one model: negative log-likelihood of its answer, summed, and the number of its tokens."""

    id: str
    loss: float
    tokens: int


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def mean(scores: Sequence[Score], *, resamples: int, seed: int) -> Interval:
    """Return the mean loss per token with its interval."""
    return difference(scores, [Score(score.id, 0.0, score.tokens) for score in scores], resamples=resamples, seed=seed)


def difference(candidate: Sequence[Score], reference: Sequence[Score], *, resamples: int, seed: int) -> Interval:
    """Return the mean loss per token of `candidate` minus that of `reference`; negative means the candidate is better.

    Raises ValueError when they are not the same rows.
    """
    import numpy

    if [(s.id, s.tokens) for s in candidate] != [(s.id, s.tokens) for s in reference] or not candidate:
        raise ValueError("expected the same rows, at least one, in the same order for both models")
    gap = numpy.array([a.loss - b.loss for a, b in zip(candidate, reference, strict=True)])
    tokens = numpy.array([score.tokens for score in candidate], dtype=float)
    generator = numpy.random.default_rng(seed)
    drawn: list[float] = []
    while len(drawn) < resamples:
        some = min(resamples - len(drawn), max(1, _BLOCK // len(gap)))
        picks = generator.integers(0, len(gap), size=(some, len(gap)))
        drawn.extend(gap[picks].sum(axis=1) / tokens[picks].sum(axis=1))
    tail = (1 - CONFIDENCE) / 2
    low, high = numpy.quantile(drawn, [tail, 1 - tail])
    return Interval(float(gap.sum() / tokens.sum()), float(low), float(high))
