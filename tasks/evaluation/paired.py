"""Two models on the same rows: means, ratios of sums, and a paired, studentised bootstrap of their difference.

Reads and writes nothing but its arguments. Rows are resampled, not tokens: rows are the unit that was drawn (Koehn 2004,
Statistical Significance Tests for Machine Translation Evaluation). A mean is a ratio of sums, gaps over weights: with the
number of tokens as weights it is per token, with ones it is plain. The same seed and rows give the same figures.

The interval is the bootstrap-t (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 12.5), and never
narrower than Student's: on 8 to 60 rows the percentile bootstrap errs two to three times as often as it says, BCa too, the
bootstrap-t where many rows do not differ at all, and Student where few rows differ much (docs/evaluation.md has the figures).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import bool_, float64
    from numpy.typing import NDArray

    Array = NDArray[float64]

CONFIDENCE = 0.95
_BLOCK = 2_000_000  # drawn row numbers held in memory at once
_EXACT = 1e-12  # an error below this share of the figures is rounding: all rows differ alike


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


@dataclass(frozen=True)
class Drawn:
    """What the bootstrap found, of one comparison or of many over the same number of rows: one column each."""

    rows: int
    value: "Array"
    error: "Array"  # standard error of `value`; 0 where all rows differ alike
    studentised: "Array"  # resamples x comparisons: how many errors a resample's value lies above the value
    flat: "NDArray[bool_]"  # the same shape: whether all rows of the resample differ alike, so that it has no error of its own

    def ends(self, confidence: float = CONFIDENCE) -> tuple["Array", "Array"]:
        """Return the lower and the upper ends of the intervals."""
        import numpy
        from scipy.special import stdtrit

        if self.rows < 2:
            return self.value, self.value
        tail = (1 - confidence) / 2
        low, high = numpy.quantile(self.studentised, [tail, 1 - tail], axis=0)
        student = stdtrit(self.rows - 1, 1 - tail)
        # The upper quantile of what resamples exceed the value by says how far the truth may lie below it.
        return self.value - numpy.maximum(high, student) * self.error, self.value - numpy.minimum(
            low, -student
        ) * self.error

    def p_above(self, bound: float) -> "Array":
        """Return how likely values like these are where the truth is `bound` at most: small means certainly above it.

        The greater of the bootstrap's and Student's. A resample of rows that all differ alike has no error to be measured by
        and is left to Student: it would speak for the candidate the more, the more rows are lost. Where all rows differ
        alike, n rows on one side are as likely as n coins. Answers that are yes or no have a test of their own (`exact`).
        """
        import numpy
        from scipy.special import stdtr

        beyond = self.value - bound
        alike = self.error == 0
        found = beyond / numpy.where(alike, 1.0, self.error)
        exceeding = ((self.studentised >= found) & ~self.flat).sum(axis=0)
        bootstrap = (1 + exceeding) / (1 + len(self.studentised))
        student = stdtr(max(1, self.rows - 1), -found)
        coins = numpy.where(beyond > 0, 0.5**self.rows, 1.0)
        return numpy.asarray(numpy.where(alike, coins, numpy.maximum(bootstrap, student)))


def draw(gaps: "Array", weights: "Array", *, resamples: int, seed: int) -> Drawn:
    """Resample comparisons: each row of `gaps` and `weights` (comparisons x rows) is one. Raises ValueError.

    The error of a ratio is that of its residuals. A resample's squared error is averaged, with the weight of one row,
    with the sample's own: a resample of rows that are all alike would else be infinitely sure of itself.
    """
    import numpy

    if gaps.ndim != 2 or gaps.shape != weights.shape or not gaps.shape[1]:
        raise ValueError("expected as many weights as gaps, at least one")
    count, total = gaps.shape[1], weights.sum(axis=1)
    value = gaps.sum(axis=1) / total
    spread = count / max(1, count - 1)
    residual = gaps - value[:, None] * weights
    error = numpy.sqrt((residual**2).sum(axis=1) * spread) / total
    error[error <= _EXACT * numpy.abs(gaps).sum(axis=1) / total] = 0.0
    squares = [(residual * residual).T, (residual * weights).T, (weights * weights).T]
    found, flat = [], []
    for drawn in _counts(count, resamples, seed):
        sums = drawn @ weights.T
        shift = (drawn @ residual.T) / sums  # of the resample's value from the sample's
        rest, mixed, both = (drawn @ square for square in squares)
        variance = numpy.maximum(rest - 2 * shift * mixed + shift**2 * both, 0.0) * spread / sums**2
        flat.append(variance <= _EXACT * error**2)
        smoothed = (variance + error**2 / count) / (1 + 1 / count)
        found.append(numpy.where(error == 0, 0.0, shift / numpy.sqrt(numpy.where(smoothed == 0, 1.0, smoothed))))
    return Drawn(count, value, error, numpy.concatenate(found), numpy.concatenate(flat))


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
    gaps = numpy.array([[a.loss - b.loss for a, b in zip(candidate, reference, strict=True)]])
    weights = numpy.array([[score.tokens for score in candidate]], dtype=float)
    return interval(draw(gaps, weights, resamples=resamples, seed=seed))


def interval(drawn: Drawn) -> Interval:
    """Return the interval of the first comparison."""
    low, high = drawn.ends()
    return Interval(float(drawn.value[0]), float(low[0]), float(high[0]))


def _counts(count: int, resamples: int, seed: int) -> "Iterator[Array]":
    """Yield blocks (resamples x rows) of how often each resample holds each row."""
    import numpy

    generator = numpy.random.default_rng(seed)
    step = max(1, _BLOCK // count)
    for start in range(0, resamples, step):
        some = min(step, resamples - start)
        picks = generator.integers(0, count, size=(some, count)) + numpy.arange(some)[:, None] * count
        yield numpy.bincount(picks.ravel(), minlength=some * count).reshape(some, count).astype(float)
