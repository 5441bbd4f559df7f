"""What stands against the newest release: that it did not load, or that it failed to generate; and when it is tried again.

Keeps counts in memory; reads and writes nothing. A generation counts against a release when the model failed at it: not when the
line was full, time ran out, the model's server was away, or the request was at fault, or whoever asks could choose what is held
against a release. FAULTS of them in a row, without an answer in between, are a doubt.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass

from tasks.errors import TryAgain
from tasks.serving.refusals import GenerationBroke, Refusal

FAULTS = 3
POLL_SECONDS = 2.0
LONGEST_PAUSE = 60.0  # between two tries to load
FIRST_REST, LONGEST_REST = 60.0, 1800.0  # of a release that loads and fails to generate
FORGOTTEN_AFTER = 3600.0  # seconds without a doubt after which rests are short again


@dataclass(frozen=True)
class Setback:
    """Why a release does not answer, and from when it is tried again (a time of the clock)."""

    release: int
    reason: str
    pause: float
    until: float


class Setbacks:
    """What stands against the newest release. Safe to use from many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self.current: Setback | None = None
        self._tries = (0, 0)  # release, failures to load
        self._rests = (0, 0, 0.0)  # release, rests, the end of the last one
        self._faults: dict[int, tuple[int, str]] = {}  # by release: in a row, the last one
        self._complaints: dict[int, str] = {}

    def due(self, release: int) -> bool:
        """Return whether a release may be loaded: nothing stands against it, or its pause is over."""
        against = self.current
        return against is None or against.release != release or self._clock() >= against.until

    def not_loaded(self, release: int, error: BaseException) -> Setback:
        """Note that a release did not load; the pause grows."""
        failures = 1 + (self._tries[1] if self._tries[0] == release else 0)
        self._tries = (release, failures)
        pause = min(LONGEST_PAUSE, POLL_SECONDS * 2**failures)
        return self._against(release, f"did not load ({type(error).__name__}: {error})", pause)

    def rest(self, release: int, reason: str) -> Setback:
        """Note that a release that is in doubt rests; the pause grows from one rest to the next."""
        known, rests, ended = self._rests
        again = known == release and self._clock() - ended < FORGOTTEN_AFTER
        rests = rests + 1 if again else 1
        pause = min(LONGEST_REST, FIRST_REST * 2 ** (rests - 1))
        self._rests = (release, rests, self._clock() + pause)
        return self._against(release, reason, pause)

    def _against(self, release: int, reason: str, pause: float) -> Setback:
        self.current = Setback(release, reason, pause, self._clock() + pause)
        return self.current

    def answers(self, release: int) -> None:
        """Note that the newest release is the one that answers: it begins without faults."""
        self.current, self._tries = None, (0, 0)
        with self._lock:
            self._faults.clear()
            self._complaints.clear()

    def ended(self, release: int, error: BaseException | None) -> None:
        """Note how a generation of a release ended."""
        with self._lock:
            if error is None:
                self._faults.pop(release, None)
                self._complaints.pop(release, None)
            elif blames_the_model(error):
                count, _last = self._faults.get(release, (0, ""))
                self._faults[release] = (count + 1, type(error).__name__)

    def doubt(self, release: int) -> str | None:
        """Return why a release should not go on answering, or None."""
        with self._lock:
            count, last = self._faults.get(release, (0, ""))
        return f"failed to generate {count} times in a row ({last})" if count >= FAULTS else None

    def stay(self, release: int, complaint: str) -> None:
        """Note that a release in doubt goes on for want of another; as many faults again make a new doubt."""
        with self._lock:
            self._faults.pop(release, None)
            self._complaints[release] = complaint

    def complaint(self, release: int) -> str | None:
        """Return what was noted by `stay`, until a generation succeeds."""
        with self._lock:
            return self._complaints.get(release)


def blames_the_model(error: BaseException) -> bool:
    """Return whether a generation that ended so counts against its release."""
    # A stream that broke off is a server that went away in the middle: it is found out at the next load, not held against the release.
    if isinstance(error.__cause__, OSError) or type(error.__cause__).__module__.startswith("httpx"):
        return False
    return isinstance(error, GenerationBroke) or not isinstance(error, TryAgain | Refusal | CancelledError)
