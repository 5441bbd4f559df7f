"""Compare two windows: every figure, the questions' vectors, one correction for all, and who stands out. Pure.

Plain figures are tested by `p_values_of` (Kolmogorov and Smirnov for numbers, the z-test of two proportions for shares);
the nightly check passes Evidently's, which are the same tests. Vectors are tested by `tasks.monitoring.mmd`. Holm's
correction keeps the chance of any false alarm of a night below alpha.

**Who stands out.** A client, or one question asked again and again, that hardly came before and whose share of the traffic grew
by SURGE is looked at apart: the windows are compared once more without it. Harm that is then gone, or that nothing is left to
confirm, was its doing (a broken client, a load test, abuse), and no reason to train or to index.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
from numpy.typing import NDArray
from scipy import stats

from tasks.monitoring import mmd
from tasks.monitoring.figures import EMBEDDING, SHARES, Pairs, Test, judge, pairs
from tasks.monitoring.window import Floats, Window

SURGE = 0.08
HARDLY = 0.25  # of its share now
_FEW = 20
Tester = Callable[[Pairs], dict[str, float]]


@dataclass(frozen=True)
class Compared:
    """What was found: the tests, what could not be tested, and what stood out."""

    tests: dict[str, Test]
    skipped: dict[str, str]
    surges: dict[str, float] = field(default_factory=dict)
    """Share of the current window by `client` and by `question`: the largest that grew."""
    set_aside: int = 0
    """Rows of the current window of whoever stands out."""
    without: "Compared | None" = None
    """The comparison without them."""

    @property
    def drifted(self) -> list[str]:
        """Names of the figures that drifted."""
        return sorted(name for name, test in self.tests.items() if test.drifted)

    @property
    def harm(self) -> list[str]:
        """Names of the figures that drifted to where users are worse off."""
        return sorted(name for name, test in self.tests.items() if test.harm)

    @property
    def lasting(self) -> list[str]:
        """Of the harm, what is there without whoever stands out too."""
        return self.harm if self.without is None else sorted({*self.harm} & {*self.without.harm})

    @property
    def judged(self) -> dict[str, Test]:
        """The tests that a decision is made on: those without whoever stands out, where that was tested."""
        tests = self.tests if self.without is None or not self.without.tests else self.without.tests
        return {name: replace(test, harm=name in self.lasting) for name, test in tests.items()}


def p_values_of(found: Pairs) -> dict[str, float]:
    """Return the p-value of each figure: two-sample Kolmogorov-Smirnov, or the z-test of two proportions."""
    return {
        name: two_shares(*pair) if name in SHARES else float(stats.ks_2samp(*pair).pvalue)
        for name, pair in found.items()
    }


def two_shares(before: Floats, after: Floats) -> float:
    """Return the two-sided p-value of the shares of two yes-or-no columns being one."""
    return share_p_value(numpy.array([before.sum(), after.sum()]), numpy.array([len(before), len(after)]))


def share_p_value(cases: NDArray[Any], rows: NDArray[Any]) -> float:
    """Return the two-sided p-value of two shares, `cases` of `rows` each, being one: the z-test with the pooled share."""
    pooled = cases.sum() / rows.sum()
    if pooled in {0.0, 1.0}:
        return 1.0
    deviation = numpy.sqrt(pooled * (1 - pooled) * (1 / rows).sum())
    return float(2 * stats.norm.sf(abs(cases[0] / rows[0] - cases[1] / rows[1]) / deviation))


def exactly(found: Pairs, p_values: dict[str, float]) -> dict[str, float]:
    """Return the p-values with those of shares of few cases replaced by Fisher's exact ones: there z promises too much."""
    better = {}
    for name, (before, after) in found.items():
        cases = before.sum() + after.sum()
        if name in SHARES and min(cases, len(before) + len(after) - cases) < _FEW:
            table = [[side.sum(), len(side) - side.sum()] for side in (before, after)]
            better[name] = float(stats.fisher_exact(table).pvalue)
    return p_values | better


def compare(reference: Window, current: Window, *, alpha: float, least: int, tester: Tester = p_values_of) -> Compared:
    """Compare two windows of at least `least` rows each."""
    found = _compare(reference, current, alpha, least, tester)
    surges, aside = surging(reference, current)
    rows = int(aside[1].sum())
    without = None
    if found.harm and rows:
        rest = reference.take(~aside[0]), current.take(~aside[1])
        # Nothing left to compare: whoever stands out is the night, and nobody knows how the others fare.
        without = _compare(*rest, alpha, least, tester) if min(map(len, rest)) >= least else Compared({}, {})
    return Compared(found.tests, found.skipped, surges, rows, without)


def _compare(reference: Window, current: Window, alpha: float, least: int, tester: Tester) -> Compared:
    found, skipped = pairs(reference, current, least)
    p_values = exactly(found, tester(found)) if found else {}
    sizes = len(reference.vectors), len(current.vectors)
    if min(sizes) < least:
        skipped[EMBEDDING] = f"{sizes[0]} and {sizes[1]} vectors of one embedder, {least} needed"
    else:
        p_values[EMBEDDING] = mmd.two_sample(reference.vectors, current.vectors).p_value
    adjusted = mmd.holm(p_values)
    tests = judge(found, p_values, adjusted, alpha)
    if EMBEDDING in p_values:
        tests[EMBEDDING] = Test(
            EMBEDDING, p_values[EMBEDDING], adjusted[EMBEDDING], *sizes, None, None, 0.0, 0.0,
            adjusted[EMBEDDING] < alpha,
        )  # fmt: skip
    return Compared(tests, skipped)


Masks = tuple[NDArray[numpy.bool_], NDArray[numpy.bool_]]


def surging(reference: Window, current: Window) -> tuple[dict[str, float], Masks]:
    """Return the largest share that grew by SURGE among clients and among questions, and the rows of all that did.

    Only who hardly came before is taken out (of both windows): a client that always was much of the traffic is the traffic.
    """
    aside = numpy.zeros(len(reference), dtype=bool), numpy.zeros(len(current), dtype=bool)
    surges = {}
    for name in ("clients", "questions"):
        before, after = _shares(getattr(reference, name)), _shares(getattr(current, name))
        grown = {
            key: share
            for key, share in after.items()
            if share - before.get(key, 0.0) >= SURGE and before.get(key, 0.0) <= HARDLY * share
        }
        if grown:
            surges[name.removesuffix("s")] = max(grown.values())
            for mask, side in zip(aside, (reference, current), strict=True):
                mask |= numpy.isin(getattr(side, name), list(grown))
    return surges, aside


def _shares(values: NDArray[numpy.int64]) -> dict[int, float]:
    found, counts = numpy.unique(values, return_counts=True)
    return {int(value): int(count) / len(values) for value, count in zip(found, counts, strict=True)}
