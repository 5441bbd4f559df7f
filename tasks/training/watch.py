"""What the stage does with the events of its ranks: the task's log, MLflow, and uploads of checkpoints.

Gets each event of each rank of this node (see `tasks.training.control`). Writes one line to the log every half
minute and at both ends, `progress.json` for whoever watches the run, the loss curve to MLflow, and hands a
checkpoint to the uploads as soon as all ranks of this node have written their part.
"""

import logging
import time
from typing import Any

from tasks.stage import StageContext
from tasks.training.curve import Curve
from tasks.training.team import Team
from tasks.training.uploads import Uploads

log = logging.getLogger(__name__)
_EVERY = 30.0  # seconds between two lines in the log


class Watch:
    """Called with (rank, event). Only rank 0 speaks for the training; each rank for its part of a checkpoint."""

    def __init__(self, context: StageContext, team: Team, curve: Curve | None, uploads: Uploads) -> None:
        self.context, self.team, self.curve, self.uploads = context, team, curve, uploads
        self.checkpoint_seconds = 0.0
        self._saved: dict[int, set[int]] = {}
        self._told = -_EVERY

    def __call__(self, rank: int, event: dict[str, Any]) -> None:
        """Handle one event."""
        if "checkpoint" in event:
            self._checkpoint(rank, event)
        elif rank == 0:
            if self.curve is not None:
                self.curve.add(event)
            if "loss" in event:
                self._tell(event)

    def _checkpoint(self, rank: int, event: dict[str, Any]) -> None:
        step = int(event["checkpoint"])
        if rank == 0:
            self.checkpoint_seconds += event["seconds"]
        ranks = self._saved.setdefault(step, set())
        ranks.add(rank)
        if ranks == set(self.team.here):
            self.uploads.add(step)

    def _tell(self, event: dict[str, Any]) -> None:
        step, steps = event["step"], event["steps"]
        self.context.progress(step, steps, "steps", quiet=True)
        now = time.monotonic()
        if now - self._told >= _EVERY or step == steps:
            self._told = now
            log.info(line(event))


def line(event: dict[str, Any]) -> str:
    """Return one step as a person reads it."""
    words = [
        f"step {event['step']} of {event['steps']}",
        f"loss {event['loss']:.4f}",
        f"{event['tokens_per_second']:,.0f} tokens/s",
        f"{event['flops_utilisation']:.1%} of the machine's peak",
    ]
    if "gpu_memory_gb" in event:
        words.append(f"{event['gpu_memory_gb']:.1f} GB of GPU memory")
    minutes, seconds = divmod(round(event["seconds_left"]), 60)
    return ", ".join([*words, f"{minutes} min {seconds:02d} s left"])
