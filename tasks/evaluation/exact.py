"""An exact test of paired yes-or-no answers: did the candidate lose more rows than its margin allows?

Pure. Of n rows `lost` are those that only the reference passed, `won` those that only the candidate passed. How often the two
differ at all is not known, so p is the greatest over all such chances (Suissa and Shuster 1991, The 2 x 2 Matched-Pairs Trial:
Exact Unconditional Design and Analysis; with a margin: Hsueh, Liu and Chen 2001, Unconditional Exact Tests for Equivalence or
Noninferiority for Paired Binary Endpoints): where the truth is within the margin it is not below 5 % more than 5 times in 100,
however few the rows. McNemar's exact test, given the rows that differ, is one of the margin 0 only.

Outcomes are ordered by the score statistic (Tango 1998). It grows with each row lost and falls with each row won, so p never
rises with a row more that is lost, and is greatest where the loss is just the margin.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    Array = NDArray[float64]

_STEPS, _FINER = 256, 3  # chances that are tried, and how often again between the neighbours of the best
_ROUNDING = 1e-9


@lru_cache(maxsize=4096)
def p_lost(rows: int, lost: int, won: int, margin: float) -> float:
    """Return how likely so many rows are lost, net of those won, where at most a share `margin` is. Raises ValueError.

    Where no more than the margin was lost it is 1: nothing speaks against the candidate.
    """
    import numpy

    if min(lost, won) < 0 or rows < max(1, lost + won) or not 0 <= margin < 1:
        raise ValueError(f"expected rows, those lost and won, and a margin below 1, found {rows, lost, won, margin}")
    if lost - won <= rows * margin + _ROUNDING:
        return 1.0
    least = _least_lost(rows, float(_statistic(rows, numpy.array(lost), numpy.array(won), margin)), margin)
    low, high = 0.0, 1.0
    best = 0.0
    for _ in range(_FINER):
        # Squares: rows that seldom differ are where p changes fastest.
        tried = numpy.linspace(low, high, _STEPS)
        found = _tails(rows, least, (1 - margin) / 2 * tried**2, margin)
        place = int(found.argmax())
        best = max(best, float(found[place]))
        low, high = float(tried[max(0, place - 1)]), float(tried[min(_STEPS - 1, place + 1)])
    return min(1.0, best)


def _statistic(rows: int, lost: Any, won: Any, margin: float) -> "Array":
    """Return by how many errors more was lost than the margin; the error is that of the likeliest truth at the margin."""
    import numpy

    middle = (lost + won) * (1 - margin) - 2 * margin * (rows - lost)
    chance = (middle + numpy.sqrt(middle**2 + 8 * rows * won * margin * (1 - margin))) / (4 * rows)  # to win a row
    error = numpy.sqrt(rows * numpy.maximum(2 * chance + margin - margin**2, 0.0))
    return numpy.asarray((lost - won - rows * margin) / numpy.where(error > 0, error, numpy.inf))


def _least_lost(rows: int, reached: float, margin: float) -> "Array":
    """Return for each number of rows won (0 to all) how many must be lost to speak as strongly; more than there are: none can."""
    import numpy

    won = numpy.arange(rows + 1)
    low, high = numpy.zeros(rows + 1, dtype=int), rows - won + 1
    while (open_ := low < high).any():
        middle = (low + high) // 2
        enough = _statistic(rows, middle, won, margin) >= reached - _ROUNDING
        high = numpy.where(open_ & enough, middle, high)
        low = numpy.where(open_ & ~enough, middle + 1, low)
    return low


def _tails(rows: int, least: "Array", chances: "Array", margin: float) -> "Array":
    """Return how likely `least` rows or more are lost, where a row is won by each of `chances` and lost by `margin` more."""
    import numpy
    from scipy.special import betainc, gammaln, xlog1py, xlogy

    won = numpy.arange(rows + 1)
    can = least <= rows - won
    won, least, chance = won[can], least[can], chances[:, None]
    ways = gammaln(rows + 1) - gammaln(won + 1) - gammaln(rows - won + 1)
    weight = numpy.exp(ways + xlogy(won, chance) + xlog1py(rows - won, -chance))
    rate = numpy.minimum(1.0, (chance + margin) / (1 - chance))  # of the rows that are not won
    return numpy.asarray((weight * betainc(least, rows - won - least + 1, rate)).sum(axis=1))
