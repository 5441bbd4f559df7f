"""Which figures of a window are tested, and how large a change must be to matter.

With thousands of requests every tiny difference is significant, so a figure has drifted only when its
corrected p-value is below alpha *and* its change reaches the least one named here. Pure.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

EMBEDDING = "question_embedding"


@dataclass(frozen=True)
class Figure:
    """A column of requests: how its change is measured, and the least change that matters."""

    name: str
    change: Literal["difference", "ratio", "share"]
    least: float
    meaning: str


FIGURES = (
    Figure("best_score", "difference", 0.03, "score of the best document found"),
    Figure("question_length", "ratio", 1.25, "length of the question in characters"),
    Figure("latency_ms", "ratio", 1.5, "milliseconds to the answer"),
    Figure("failed", "share", 0.05, "share of requests that failed"),
)


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

    def to_dict(self) -> dict[str, Any]:
        """Return the test as a JSON value with figures a person can read."""
        return {
            name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in asdict(self).items()
        }


def level(figure: Figure, values: Sequence[float]) -> float:
    """Return what stands for a window: the share of a yes-or-no figure, else the median."""
    return statistics.fmean(values) if figure.change == "share" else statistics.median(values)


def change(figure: Figure, reference: float, current: float) -> float:
    """Return how far a figure moved: a difference, or the larger over the smaller for a ratio."""
    if figure.change != "ratio":
        return current - reference
    # Below one character or millisecond a ratio says nothing.
    low, high = sorted((max(reference, 1.0), max(current, 1.0)))
    return high / low


def matters(figure: Figure, moved: float) -> bool:
    """Return whether a change is large enough to act on."""
    return abs(moved) >= figure.least


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Return the tested columns of a window. Latency counts only where the question was answered."""
    return {
        figure.name: [
            None
            if row[figure.name] is None or (figure.name == "latency_ms" and row["failed"])
            else float(row[figure.name])
            for row in rows
        ]
        for figure in FIGURES
    }


def same_kind(reference: Sequence[Mapping[str, Any]], current: Sequence[Mapping[str, Any]]) -> str:
    """Return the kind (chat, search) that most current requests have: a chat answer takes longer than a search."""
    kinds = [str(row["kind"]) for row in current]
    return statistics.mode(kinds) if kinds else ""
