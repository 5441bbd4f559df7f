"""Which figures of two windows are compared, and how large a change must be to matter. Pure.

With thousands of requests every tiny difference is significant, so a figure has drifted only when its corrected p-value is
below alpha *and* its change reaches the least one named here. Where only some of the traffic changes, a median hardly
moves; so scores and groundedness are compared twice: as numbers, and as the share below the 5th percentile of the
reference, in which a tenth of bad answers shows as a tripling.
"""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy

from tasks.monitoring.window import Floats, Window

EMBEDDING = "question_embedding"
TAIL = 0.05
Pairs = dict[str, tuple[Floats, Floats]]
"""The values of each figure in the reference and in the current window."""


@dataclass(frozen=True)
class Figure:
    """A figure of requests: the column it comes from, how its change is measured, and the least change that matters."""

    name: str
    column: str
    change: Literal["difference", "ratio", "share"]
    least: float
    meaning: str
    bad: Literal["up", "down"] | None = None
    """The direction in which users are worse off; None: a change is no harm by itself."""
    tail: Literal["low"] | None = None
    """`low`: the share of values below the reference's 5th percentile."""
    least_rows: int | None = None
    """Fewest values of each window; None: the setting MILLRACE_DRIFT_MIN_REQUESTS."""


FIGURES = (
    Figure("best_score", "best_score", "difference", 0.03, "score of the best document found", "down"),
    Figure("no_good_hit", "best_score", "share", 0.04, "share of questions without a good hit", "up", "low"),
    Figure("question_length", "question_length", "ratio", 1.25, "length of the question in characters"),
    Figure("other_language", "language", "share", 0.05, "share of questions in another language than most"),
    Figure("answer_length", "answer_length", "ratio", 1.25, "length of the answer in characters"),
    Figure("grounded", "grounded", "difference", 0.05, "share of an answer's words that its documents hold", "down"),
    Figure("ungrounded", "grounded", "share", 0.04, "share of answers that leave their documents", "up", "low"),
    Figure("refused", "refused", "share", 0.05, "share of questions answered 'I do not know'", "up"),
    Figure("negative", "negative", "share", 0.08, "share of ratings that are bad", "up", least_rows=30),
    Figure("latency_ms", "latency_ms", "ratio", 1.5, "milliseconds to the answer"),
    Figure("tokens", "tokens", "ratio", 1.5, "tokens of a request and its answer"),
    Figure("failed", "failed", "share", 0.05, "share of requests that failed"),
)
BY_NAME = {figure.name: figure for figure in FIGURES}
SHARES = tuple(figure.name for figure in FIGURES if figure.change == "share")


@dataclass(frozen=True)
class Test:
    """One test of one figure between two windows."""

    name: str
    p_value: float
    p_adjusted: float
    reference_rows: int
    current_rows: int
    reference: float | None
    """Median (or share) in the reference window; None for vectors."""
    current: float | None
    change: float
    least: float
    drifted: bool
    harm: bool = False
    """Whether it drifted to where users are worse off."""

    def to_dict(self) -> dict[str, Any]:
        """Return the test as a JSON value with figures a person can read."""
        return {
            name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in asdict(self).items()
        }


def pairs(reference: Window, current: Window, least: int) -> tuple[Pairs, dict[str, str]]:
    """Return the values of each figure that can be tested, and why the others cannot."""
    kind = _same_kind(current)
    found: Pairs = {}
    skipped: dict[str, str] = {}
    for figure in FIGURES:
        before, after = (_values(figure, side, kind) for side in (reference, current))
        if figure.column == "language" and len(before):
            usual = statistics.mode(before.tolist())
            before, after = ((side != usual).astype(numpy.float64) for side in (before, after))
        if figure.tail == "low" and len(before):
            before, after = _low(before, after)
        needed = figure.least_rows or least
        if min(len(before), len(after)) < needed:
            skipped[figure.name] = f"{len(before)} and {len(after)} values, {needed} needed"
        elif (before == before[0]).all() and (after == before[0]).all():
            skipped[figure.name] = f"always {before[0]:g}"
        else:
            found[figure.name] = (before, after)
    return found, skipped


def _low(before: Floats, after: Floats) -> tuple[Floats, Floats]:
    """Return which values are in the reference's low tail: below its 5th percentile, or at it where many are equal."""
    edge = numpy.quantile(before, TAIL)
    below = (before < edge).mean() >= TAIL / 2
    low = [(side < edge) if below else (side <= edge) for side in (before, after)]
    return low[0].astype(numpy.float64), low[1].astype(numpy.float64)


def _values(figure: Figure, side: Window, kind: str) -> Any:
    """Return a figure of the requests that have it."""
    if figure.column == "language":
        return side.languages[side.languages != ""]
    values = side.column(figure.column)
    if figure.column in {"latency_ms", "tokens"}:
        # A chat answer takes longer than a search: only the commonest kind's are compared, and only what was answered.
        values = values[(side.kinds == kind) & (side.column("failed") == 0)]
    return values[~numpy.isnan(values)]


def _same_kind(current: Window) -> str:
    return statistics.mode(current.kinds.tolist()) if len(current) else ""


def judge(found: Pairs, p_values: Mapping[str, float], adjusted: Mapping[str, float], alpha: float) -> dict[str, Test]:
    """Return the test of each figure: significant after correction, and large enough to matter."""
    tests = {}
    for name, (before, after) in found.items():
        figure = BY_NAME[name]
        levels = _level(figure, before), _level(figure, after)
        moved = change(figure, *levels)
        drifted = adjusted[name] < alpha and abs(moved) >= figure.least
        worse = levels[1] > levels[0] if figure.bad == "up" else levels[1] < levels[0]
        tests[name] = Test(
            name, p_values[name], adjusted[name], len(before), len(after), *levels, moved, figure.least,
            drifted, drifted and figure.bad is not None and worse,
        )  # fmt: skip
    return tests


def _level(figure: Figure, values: Floats) -> float:
    """Return what stands for a window: the share of a yes-or-no figure, else the median."""
    return float(values.mean() if figure.change == "share" else numpy.median(values))


def change(figure: Figure, reference: float, current: float) -> float:
    """Return how far a figure moved: a difference, or the larger over the smaller for a ratio."""
    if figure.change != "ratio":
        return current - reference
    # Below one character or millisecond a ratio says nothing.
    low, high = sorted((max(reference, 1.0), max(current, 1.0)))
    return high / low
