"""Intervals of means over questions, and of their difference between two versions, by resampling the questions.

Reads and writes nothing but its arguments. The percentile bootstrap (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13); for rankings: Sakai, Evaluating Evaluation Metrics based on the Bootstrap, SIGIR 2006.
All measures are drawn with the same questions, and a difference is drawn question by question (paired): what makes a
question hard for both versions cancels out. The same rows give the same figures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.evaluation.paired import CONFIDENCE, Interval

RESAMPLES = 10_000
SEED = 20_240_229
_BLOCK = 4_000_000  # drawn counts held in memory at once


def intervals(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Interval]:
    """Return the mean of each of `names` over `rows` with its 95 % interval. Raises ValueError without rows."""
    import numpy

    if not rows:
        raise ValueError("expected at least one row to draw from")
    values = numpy.array([[float(row[name]) for name in names] for row in rows])
    count = len(rows)
    generator = numpy.random.default_rng(SEED)
    drawn = numpy.empty((RESAMPLES, len(names)))
    step = max(1, _BLOCK // count)
    for start in range(0, RESAMPLES, step):
        some = min(step, RESAMPLES - start)
        # How often each question is drawn, instead of which: the same distribution, and one product a block.
        counts = generator.multinomial(count, numpy.full(count, 1 / count), size=some)
        drawn[start : start + some] = counts @ values / count
    tail = (1 - CONFIDENCE) / 2
    low, high = numpy.quantile(drawn, [tail, 1 - tail], axis=0)
    means = values.mean(axis=0)
    return {
        name: Interval(float(means[column]), float(low[column]), float(high[column]))
        for column, name in enumerate(names)
    }


def differences(
    now: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, Interval]:
    """Return `now` minus `before` for each of `names`; rows are matched by their `id`. Raises ValueError for other ids."""
    earlier = {row["id"]: row for row in before}
    if len(earlier) != len(before) or sorted(earlier) != sorted(row["id"] for row in now):
        raise ValueError("expected the same questions, each once, on both sides")
    return intervals(
        [{name: float(row[name]) - float(earlier[row["id"]][name]) for name in names} for row in now], names
    )
