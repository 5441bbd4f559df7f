"""The verdict on a candidate: promote, hold or review. A pure function of the evidence.

Reads and writes nothing but its arguments. Whatever is missing, odd or too little is `hold`; only an
interval that lies wholly below zero is `promote`.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from tasks.release.weights import claimed
from tasks.training.recipes import Evaluation

Word = Literal["promote", "hold", "review"]
NEEDED = ("base_loss", "candidate_loss", "difference", "difference_low", "difference_high")


class Verdict(NamedTuple):
    """What the gate says, and why."""

    word: Word
    reason: str


def judge(metrics: Mapping[str, float], facts: Mapping[str, Any], bounds: Evaluation) -> Verdict:
    """Return the verdict on what `evaluate` measured."""
    missing = [name for name in NEEDED if not math.isfinite(metrics.get(name, math.nan))]
    rows = facts.get("rows")
    if missing:
        return Verdict("hold", f"the evidence lacks {', '.join(missing)}")
    if not isinstance(rows, int) or rows < bounds.min_rows:
        return Verdict("hold", f"{rows} held-out rows are fewer than {bounds.min_rows}")
    if facts.get("output_changed") is not True:
        return Verdict("hold", "the training does not change the model's output")
    champion = claimed(facts, "champion_weights_sha256")
    if champion is not None and champion == claimed(facts):
        return Verdict("hold", "nothing new was learned: the candidate has the champion's weights")
    return _compare(metrics, rows, "the champion" if champion is not None else "the base model", bounds)


def _compare(metrics: Mapping[str, float], rows: int, other: str, bounds: Evaluation) -> Verdict:
    low, value, high = (metrics[name] for name in ("difference_low", "difference", "difference_high"))
    if not low <= value <= high:
        return Verdict("hold", f"the difference {value:.4f} lies outside its interval {low:.4f} to {high:.4f}")
    found = f"loss {value:+.3f} against {other} on {rows} rows (95 % interval {low:+.3f} to {high:+.3f})"
    if high < 0 and metrics["candidate_loss"] >= metrics["base_loss"]:
        return Verdict("review", f"{found}, but the candidate is no better than the base model")
    if high < 0:
        return Verdict("promote", f"better: {found}")
    if value < 0 and high <= bounds.review_margin:
        return Verdict("review", f"perhaps better: {found}")
    return Verdict("hold", f"not better: {found}")
