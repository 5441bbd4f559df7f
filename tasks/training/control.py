"""What a rank does after each step besides training: report, save, stop. All ranks decide alike.

`Control` is the Transformers callback of a worker; importing it needs torch. It writes `events.rankN.jsonl` in
the job's folder: a line a step (loss, speed, utilisation, memory, end), a line an evaluation, a line a
checkpoint. It asks for a checkpoint so often that at most `checkpoints.max_lost_minutes` of work can be lost, and
not more often than costs a twentieth of the time; it stops all ranks after the same step when the file `stop`
appears on any machine (a checkpoint is saved first), when the validation loss no longer improves, and when the
loss is not finite or stays high. Reads its own state, `control.json`, from a checkpoint that is resumed.

The worker that uses it
- gives the trainer `save_strategy="no"`, `eval_strategy="no"`, `logging_steps=1`, `logging_nan_inf_filter=False`;
- hands over `facts`: `step_tokens` (useful tokens of every step, over all ranks), `flops_per_token`, `peak_flops`
  (of one rank, per second);
- after `trainer.train()` looks at `outcome`: `complete` and `early_stop` are ends of a training (then `best`, if it is
  not None, is the folder that `save_best` filled with the best weights), `preempted` and `diverged` are not; `reason`
  says why. All go into `done.rankN.json`, as `outcome` and `reason`.
"""

import json
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tasks.training.limits import RECENT, LossWatch, Patience, SaveClock
from tasks.training.recipes import Recipe

STATE = "control.json"
_WAITING = 2  # checkpoints on the local disk, not yet uploaded, at which no other is made


class Control(TrainerCallback):  # type: ignore[misc]
    """The callback of one rank. `save_best` is called on all ranks when the validation loss is the best so far."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        rank: int,
        world: int,
        facts: dict[str, Any],
        save_best: Callable[[Path], None] | None = None,
    ) -> None:
        now = time.monotonic()
        self.folder, self.recipe, self.rank, self.world = folder, recipe, rank, world
        self.facts, self.save_best = facts, save_best
        self.outcome = "complete"
        self.reason: str | None = None
        self.best: Path | None = None
        self._path = folder / f"events.rank{rank}.jsonl"
        self._clock = SaveClock(recipe.checkpoints, now)
        self._loss, self._patience = LossWatch(recipe.stopping), Patience(recipe.stopping)
        self._times: deque[float] = deque(maxlen=RECENT)
        self._step_began = self._save_began = now

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Go on where the resumed checkpoint was made."""
        if state.global_step:
            self._resume(self.folder / f"checkpoint-{state.global_step}")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock of the step."""
        self._step_began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Decide with the other ranks whether to save and whether to stop."""
        now = time.monotonic()
        self._times.append(now - self._step_began)
        stop, save = self._agree(args.device, state.global_step, now)
        every = self.recipe.stopping.evaluate_every_steps
        if stop:
            self.outcome = "preempted"
            control.should_save = control.should_training_stop = True
            return
        control.should_save = save and state.global_step < state.max_steps
        if every and self.save_best and state.global_step % every == 0:
            control.should_evaluate = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Write the step's event; stop when the loss has gone wrong. The loss is the same on all ranks."""
        self._save_began = time.monotonic()
        if not logs or "loss" not in logs:
            return
        self._write(self._row(state, logs))
        self.reason = self._loss.wrong(float(logs["loss"]))
        if self.reason:
            self.outcome = "diverged"
            control.should_training_stop = True
            control.should_save = control.should_evaluate = False  # what went wrong is not worth going on from

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Keep the best weights; stop when the patience is at its end."""
        loss, step = float(metrics["eval_loss"]), state.global_step
        if self._patience.improved(loss, step) and self.save_best is not None:
            self.best = self.folder / "best"
            self.save_best(self.best)
        self._write({"step": step, "steps": state.max_steps, "at": time.time(), "validation_loss": loss})
        if self._patience.exhausted and self.outcome == "complete" and step < state.max_steps:
            self.outcome = "early_stop"
            self.reason = f"no better validation loss than {self._patience.best} after step {self._patience.best_step}"
            control.should_training_stop = True
            control.should_save = False
        self._save_began = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Add our own state to the checkpoint, and say that this rank has written its part."""
        if self.rank == 0:
            self._keep(self.folder / f"checkpoint-{state.global_step}")
        now = time.monotonic()
        seconds = now - self._save_began
        self._clock.saved(seconds, now)
        self._write({"checkpoint": state.global_step, "seconds": round(seconds, 3)})

    def _agree(self, device: Any, step: int, now: float) -> tuple[bool, bool]:
        """Return whether to stop (some rank was asked to) and whether to save (rank 0's clock says so)."""
        waiting = sum(1 for _ in self.folder.glob("checkpoint-*"))
        due = self.rank == 0 and waiting < _WAITING and self._clock.due(step, statistics.mean(self._times), now)
        flags = torch.tensor([float((self.folder / "stop").exists()), float(due)], device=device)
        torch.distributed.all_reduce(flags)
        stop, save = flags.tolist()
        return stop > 0, save > 0

    def _row(self, state: Any, logs: dict[str, float]) -> dict[str, Any]:
        seconds, left = max(self._times[-1], 1e-6), state.max_steps - state.global_step
        speed = self.facts["step_tokens"][state.global_step - 1] / seconds
        peak = self.facts["peak_flops"] * self.world
        row: dict[str, Any] = {"step": state.global_step, "steps": state.max_steps, "at": time.time()}
        row |= {name: float(logs[name]) for name in ("loss", "learning_rate", "grad_norm") if name in logs}
        row |= {"step_seconds": round(seconds, 4), "tokens_per_second": round(speed, 1)}
        row["flops_utilisation"] = round(speed * self.facts["flops_per_token"] / peak, 4)
        if self.recipe.distribution.accelerator == "cuda":
            row["gpu_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        row["seconds_left"] = round(left * statistics.mean(self._times), 1)
        return row

    def _keep(self, place: Path) -> None:
        kept = self._loss.state() | self._patience.state() | {"world": self.world}
        (place / STATE).write_text(json.dumps(kept), encoding="utf-8")
        if self.best is not None:
            shutil.copytree(self.best, place / "best", dirs_exist_ok=True)

    def _resume(self, place: Path) -> None:
        kept = json.loads((place / STATE).read_text(encoding="utf-8"))
        self._loss.restore(kept)
        self._patience.restore(kept)
        if (place / "best").is_dir():
            self.best = self.folder / "best"
            if self.rank == 0:
                shutil.copytree(place / "best", self.best, dirs_exist_ok=True)

    def _write(self, event: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
