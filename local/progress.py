"""What `make demo` shows while it works: step, percentage, time gone, time left where it can be known.

Reads and writes `demo-times.json` in the stack's folder: the seconds each step took last time here.
Where there is no last time, the seconds measured by the authors are the guess, corrected by the pace so far.
"""

import json
import sys
import time
from pathlib import Path
from typing import TextIO

QUIET_SECONDS = 15.0  # without a terminal, a line at most this often within a step


class Progress:
    """A line of progress over named steps with expected seconds."""

    def __init__(self, expected: dict[str, float], memory: Path, stream: TextIO = sys.stdout) -> None:
        self._memory = memory
        if memory.exists():
            known = json.loads(memory.read_text(encoding="utf-8"))
            expected = {step: float(known.get(step, seconds)) for step, seconds in expected.items()}
        self._expected = expected
        self._stream = stream
        self._live = stream.isatty()
        self._begun = time.monotonic()
        self._step: str | None = None
        self._step_begun = self._begun
        self._taken: dict[str, float] = {}
        self._last_text = ""
        self._last_shown = 0.0

    @property
    def taken(self) -> dict[str, float]:
        """Seconds of each finished step."""
        return dict(self._taken)

    def begin(self, step: str) -> None:
        """Enter a step; the one before it has ended."""
        self._end_step()
        self._step, self._step_begun = step, time.monotonic()
        self._last_text = ""

    def show(self, text: str) -> None:
        """Show what is going on now."""
        now = time.monotonic()
        changed = text.split(":")[0] != self._last_text.split(":")[0]
        if not self._live and not changed and now - self._last_shown < QUIET_SECONDS:
            return
        self._last_text, self._last_shown = text, now
        share, left = self._estimate(now)
        head = f"[{share:4.0%} {_clock(now - self._begun)}, about {_clock(left)} left] {self._step}"
        line = f"{head} | {text}"
        self._stream.write(f"\r\033[K{line[:140]}" if self._live else line + "\n")
        self._stream.flush()

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._stream.write(("\r\033[K" if self._live else "") + text + "\n")
        self._stream.flush()

    def finish(self) -> float:
        """End the last step, remember the times for the next demo, and return the seconds of all."""
        self._end_step()
        self._memory.write_text(json.dumps(self._taken, indent=1) + "\n", encoding="utf-8")
        return time.monotonic() - self._begun

    def _end_step(self) -> None:
        if self._step is not None:
            self._taken[self._step] = round(time.monotonic() - self._step_begun, 1)
            self.note(f"{self._step}: {self._taken[self._step]:.0f} s")

    def _estimate(self, now: float) -> tuple[float, float]:
        """Return the share done and the seconds left, the rest's expectation scaled by the pace so far."""
        total = sum(self._expected.values())
        current = self._expected.get(self._step or "", 0.0)
        done_expected = sum(self._expected[step] for step in self._taken if step in self._expected)
        done_taken = sum(self._taken.values())
        pace = done_taken / done_expected if done_expected > 60 else 1.0
        inside = min(now - self._step_begun, current * 0.95)
        rest = max(0.0, total - done_expected - inside)
        return ((done_expected + inside) / total if total else 0.0), rest * pace


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
