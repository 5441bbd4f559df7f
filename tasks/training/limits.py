"""When a training saves, and when it stops: by its clock, its loss, and its validation loss.

Reads and writes nothing; `tasks.training.control` asks after each step. Everything here is the same on all
ranks, except the clock: rank 0's decides.
"""

import math
import statistics
from collections import deque
from typing import Any

from tasks.training.recipes import Checkpoints, Stopping

RECENT = 20  # steps that a median or a mean looks back
_COST = 0.05  # largest share of the time that checkpoints may take


class SaveClock:
    """When the next checkpoint is due, by step times and by what a checkpoint costs."""

    def __init__(self, checkpoints: Checkpoints, now: float) -> None:
        self.checkpoints, self.last, self.cost = checkpoints, now, 0.0

    def due(self, step: int, step_seconds: float, now: float) -> bool:
        """Return whether to save after this step: were the next step waited for, too much could be lost."""
        if self.checkpoints.every_steps is not None:
            return step % self.checkpoints.every_steps == 0
        interval = max(self.checkpoints.max_lost_minutes * 60, self.cost / _COST)
        return now - self.last + step_seconds > interval

    def saved(self, seconds: float, now: float) -> None:
        """Note a checkpoint that took `seconds`."""
        self.last, self.cost = now, seconds


class LossWatch:
    """Whether a training has gone wrong: a loss that is not finite, or far above what it was, several steps in a row."""

    def __init__(self, stopping: Stopping) -> None:
        self.stopping = stopping
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.high = 0

    def wrong(self, loss: float) -> str | None:
        """Return what is wrong with the loss of this step, or None."""
        if not math.isfinite(loss):
            return f"a loss of {loss}"
        factor, steps = self.stopping.spike_factor, self.stopping.spike_steps
        if factor is None or steps is None or len(self.recent) < RECENT:
            self.recent.append(loss)
            return None
        usual = statistics.median(self.recent)
        if loss <= factor * usual:
            self.recent.append(loss)
            self.high = 0
            return None
        self.high += 1  # a high loss is no part of what is usual
        if self.high < steps:
            return None
        return f"{self.high} losses in a row above {factor:g} times the usual {usual:.3f}, now {loss:.3f}"

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"recent": list(self.recent), "high": self.high}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.recent.extend(kept["recent"])
        self.high = kept["high"]


class Patience:
    """Whether the validation loss still improves."""

    def __init__(self, stopping: Stopping) -> None:
        self.stopping = stopping
        self.best: float | None = None
        self.best_step = 0
        self.bad = 0

    def improved(self, loss: float, step: int) -> bool:
        """Note a validation loss; return whether it is the best so far by at least `min_improvement`."""
        least = self.stopping.min_improvement or 0.0
        if math.isfinite(loss) and (self.best is None or loss < self.best - least):
            self.best, self.best_step, self.bad = loss, step, 0
            return True
        self.bad += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether the patience of the recipe is at its end."""
        return self.stopping.patience is not None and self.bad >= self.stopping.patience

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"best": self.best, "best_step": self.best_step, "bad": self.bad}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.best, self.best_step, self.bad = kept["best"], kept["best_step"], kept["bad"]
