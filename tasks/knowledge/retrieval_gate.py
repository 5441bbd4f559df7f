"""Whether a new index version may serve: what it finds for the golden questions, alone and beside the version before.

Reads and writes nothing but its arguments. The rule, for `recall_at_5` and `ndcg_at_10`:

1. recall@5 and the recall of HNSW against an exact scan reach their bounds;
2. the mean difference to the current version, on the same questions, is not below -margin;
3. with at least MIN_QUESTIONS questions, the 95 % interval of that difference is not wholly below 0.

A textbook test of non-inferiority (Piaggio et al., Reporting of Noninferiority and Equivalence Randomized Trials,
JAMA 2012) asks that the *lower* bound of the interval is above -margin. With the hundred questions that a corpus has,
that interval is about 0.1 wide, and an index that is exactly as good but ranks a few questions otherwise would be
refused. So the margin is held against the point estimate (2), and the interval against no difference at all (3): a
loss that is too regular to be chance is refused however small it is. Two measures at 2.5 % each make a false alarm of
(3) at most one in twenty. Below MIN_QUESTIONS a bootstrap interval is too narrow to be trusted, and (3) is left out.
"""

from collections.abc import Sequence
from typing import Protocol

from tasks.evaluation.paired import Interval
from tasks.knowledge.bootstrap import differences
from tasks.knowledge.measure import Measurement

COMPARED = ("recall_at_5", "ndcg_at_10")
MIN_QUESTIONS = 30
_NOTHING = 1e-9  # below it a difference is rounding


class Bounds(Protocol):
    """What the gate holds the figures against; the options of `check_index` are such."""

    @property
    def min_recall_at_5(self) -> float:
        """Least recall@5."""
        ...

    @property
    def min_ann_recall(self) -> float:
        """Least recall of HNSW against an exact scan."""
        ...

    @property
    def retrieval_margin(self) -> float:
        """Allowed loss against the current version."""
        ...


def verdict(now: Measurement, before: Measurement | None, bounds: Bounds) -> list[str]:
    """Return why the new version must not serve; nothing when it may."""
    least = [("recall_at_5", bounds.min_recall_at_5), ("ann_recall", bounds.min_ann_recall)]
    reasons = [
        f"expected {name} of at least {bound:.3f}, found {now.means[name]:.3f}"
        for name, bound in least
        if not now.means[name] >= bound
    ]
    if before is not None:
        change = compared(now, before)
        reasons += [
            reason
            for name in COMPARED
            if (reason := _worse(name, now, before, change[name], bounds.retrieval_margin)) is not None
        ]
    return reasons


def compared(now: Measurement, before: Measurement, names: Sequence[str] = COMPARED) -> dict[str, Interval]:
    """Return the difference of each measure to the earlier version, with its interval. Raises ValueError for other questions."""
    return differences(now.questions, before.questions, names)


def _worse(name: str, now: Measurement, before: Measurement, change: Interval, margin: float) -> str | None:
    if not change.value >= -margin - _NOTHING:
        return (
            f"expected {name} within {margin:.3f} of the current version's {before.means[name]:.3f}, "
            f"found {now.means[name]:.3f}"
        )
    if len(now.questions) >= MIN_QUESTIONS and change.high < -_NOTHING:
        return (
            f"expected {name} no worse than the current version's {before.means[name]:.3f}, found {now.means[name]:.3f}: "
            f"a loss between {-change.high:.3f} and {-change.low:.3f} (95 %) on {len(now.questions)} questions"
        )
    return None
