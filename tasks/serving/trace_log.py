"""A share of the requests becomes traces in MLflow (MILLRACE_TRACE_SHARE), and no answer waits for it.

Which ones is decided by the request's W3C trace id, as OpenTelemetry's ratio sampler does, so that services that sample alike
trace the same requests. A sampled request goes to a bounded queue and one thread, which writes it to the experiment
`millrace-assistant`. While MLflow is away its trace waits and is tried again after a growing pause; what finds the queue full
is dropped, what MLflow refuses is not tried again, and both are counted (`/metrics`) and logged. Nothing here fails or delays
a request. Reads and writes MLflow only, and only once a request was sampled.
"""

import logging
import queue
import threading
import time

from tasks.errors import DataError, ServiceUnavailable
from tasks.mlflow_http import MlflowFailed, MlflowHttp
from tasks.serving.request_log import RequestRow
from tasks.serving.spans import EXPERIMENT, SERVICE, Steps, trace_of
from tasks.settings import Settings

log = logging.getLogger(__name__)

CAPACITY = 500
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
MOST_FAILURES = 6  # of one trace, where MLflow answers that it failed
LAST_SECONDS = 5.0  # at the end, for what waits
RESULTS = ("written", "dropped", "refused")
_PERIOD = 60.0  # seconds between two log lines of the same kind


class TraceLog:
    """The queue and its thread; with a share of 0 there is neither."""

    def __init__(self, uri: str, share: float, *, capacity: int = CAPACITY) -> None:
        self._uri, self._share = uri, share
        self._queue: queue.Queue[tuple[RequestRow, Steps]] = queue.Queue(capacity)
        self._counts = dict.fromkeys(RESULTS, 0)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._said = -_PERIOD
        self._experiment: str | None = None
        self._thread: threading.Thread | None = None
        if share > 0:
            self._thread = threading.Thread(target=self._write_on, name="traces", daemon=True)
            self._thread.start()

    @classmethod
    def of(cls, settings: Settings) -> "TraceLog":
        """Return the one that the settings ask for."""
        return cls(settings.mlflow_tracking_uri, settings.trace_share)

    @classmethod
    def off(cls) -> "TraceLog":
        """Return one that takes nothing."""
        return cls("", 0.0)

    def put(self, row: RequestRow, steps: Steps) -> None:
        """Take a request that has ended, its texts as they may be kept, when it is sampled; never waits."""
        if self._thread is None or not sampled(row.trace_id or row.id.hex, self._share):
            return
        try:
            self._queue.put_nowait((row, steps))
        except queue.Full:
            self._count("dropped")
            self._say("traces=%d dropped so far: MLflow takes them slower than they come, or not at all", "dropped")

    def counts(self) -> dict[str, int]:
        """Return how many traces were written, dropped and refused so far."""
        with self._lock:
            return dict(self._counts)

    def close(self) -> None:
        """Write what waits, for a few seconds, and stop; what is left is counted as dropped."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * LAST_SECONDS)

    def _write_on(self) -> None:
        http = MlflowHttp(self._uri)
        pause = FIRST_PAUSE
        waiting: tuple[RequestRow, Steps] | None = None
        until, failed = float("inf"), 0
        while time.monotonic() < until:
            if self._stop.is_set() and until == float("inf"):
                until = time.monotonic() + LAST_SECONDS
            waiting = waiting or self._next()
            if waiting is None:
                if self._stop.is_set():
                    break
                continue
            try:
                self._write(http, *waiting)
                waiting, pause, failed = None, FIRST_PAUSE, 0
            except MlflowFailed as error:
                failed += 1
                if failed >= MOST_FAILURES and waiting is not None:  # those behind it are not kept waiting for ever
                    log.error("request=%s its trace was refused %d times: %s", waiting[0].id, failed, error)
                    self._count("refused")
                    waiting, failed = None, 0
                if self._stop.wait(pause):
                    break
                pause = min(LONGEST_PAUSE, 2 * pause)
            except ServiceUnavailable as error:
                log.warning("traces=%d wait, next try in %.0f s: %s", self._queue.qsize() + 1, pause, error)
                if self._stop.wait(pause):
                    break
                pause = min(LONGEST_PAUSE, 2 * pause)
        http.close()
        self._give_up(waiting)

    def _next(self) -> tuple[RequestRow, Steps] | None:
        try:
            return self._queue.get(timeout=0.5)
        except queue.Empty:
            return None

    def _write(self, http: MlflowHttp, row: RequestRow, steps: Steps) -> None:
        """Write one trace. Raises ServiceUnavailable."""
        try:
            self._experiment = self._experiment or http.experiment(EXPERIMENT)
            http.write_spans(self._experiment, trace_of(row, steps), SERVICE)
        except DataError as error:
            self._experiment = None  # it may be that one that is gone
            self._count("refused")
            log.error("request=%s its trace was refused: %s", row.id, error)
        except (KeyError, TypeError, ValueError):  # a request that spans cannot tell must not end the thread
            self._count("refused")
            log.exception("request=%s makes no trace", row.id)
        else:
            self._count("written")

    def _give_up(self, waiting: tuple[RequestRow, Steps] | None) -> None:
        left = self._queue.qsize() + (waiting is not None)
        if left:
            self._count("dropped", left)
            log.warning("traces=%d dropped: the assistant stopped before MLflow took them", left)

    def _count(self, result: str, number: int = 1) -> None:
        with self._lock:
            self._counts[result] += number

    def _say(self, text: str, result: str) -> None:
        now = time.monotonic()
        if now - self._said >= _PERIOD:
            self._said = now
            log.warning(text, self.counts()[result])


def sampled(trace_id: str, share: float) -> bool:
    """Return whether a trace belongs to the share: by the last 56 bits of its id, which W3C asks to be random."""
    return int(trace_id[-14:], 16) < share * 2**56
