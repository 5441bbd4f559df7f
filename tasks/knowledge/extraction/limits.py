"""Documents are taken apart in one child process with a limit on memory, and a deadline for each document.

Starts `tasks.knowledge.extraction.child` when the first document needs it; short plain text does not (nothing but our own
patterns of linear time look at it). A child that dies, hangs or runs out of memory is killed and replaced, and the document
is refused (`DocumentRefused`): `extraction_ends`, `extraction_survives`, `extraction_fits_memory`. Fails with
`MillraceError` when no child can be started. Writes nothing.
"""

import logging
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from tasks.errors import MillraceError
from tasks.knowledge.extraction.formats import extract, is_plain
from tasks.knowledge.extraction.model import DocumentRefused, Extract
from tasks.knowledge.extraction.wire import LENGTH, MAX_ANSWER, OUT_OF_MEMORY, READY, frames, unpacked
from tasks.settings import REPOSITORY

log = logging.getLogger(__name__)

IN_PROCESS = 1_000_000  # bytes of plain text that need no child
_START_SECONDS = 60.0  # for the child to start, on a busy machine
_LAST_WORDS_SECONDS = 5.0  # for a child that closed its pipe to be gone
_NEAR = 0.5  # of the limit: a child that died with this much memory ran out of it
_LOOK_SECONDS = 0.05  # between looks at the memory of a child that is busy
_BLOCK = 1 << 20
# A hostile document finds no secret in the environment of what takes it apart.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "TMPDIR", "TZ")


class _Ended(Exception):
    """The child closed its pipe, having taken so much address space when it was last looked at."""

    def __init__(self, how: str, peak: int = 0) -> None:
        super().__init__(how, peak)
        self.peak = peak


class Extractor:
    """Takes documents apart within limits; a context manager, because it may have a child process to end."""

    def __init__(self, seconds: float = 60.0, memory_gb: float = 2.0) -> None:
        self._seconds = seconds
        self._memory_gb = memory_gb
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the child."""
        self.close()

    @property
    def child_pid(self) -> int | None:
        """The process id of the child; None where none runs."""
        return self._child.pid if self._child else None

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._end()

    def extract(self, uri: str, body: bytes) -> Extract:
        """Return what a document says. Raises DocumentRefused, and MillraceError when no child can be started."""
        if len(body) <= IN_PROCESS and is_plain(uri, body):
            return extract(uri, body)
        child = self._living() or self._start()
        try:
            answer = _exchange(child, [*frames(uri.encode("utf-8", "replace")), *frames(body)], self._seconds)
        except TimeoutError:
            self._end()
            raise DocumentRefused(
                "extraction_ends",
                f"expected the document to be taken apart within {self._seconds:g} seconds, found it was not. "
                "Next: simplify it, or raise MILLRACE_EXTRACTION_SECONDS.",
            ) from None
        except _Ended as error:
            self._refuse_dead(error)
        except BaseException:
            self._end()  # the stage was interrupted: half an answer may be in the pipe
            raise
        try:
            return unpacked(answer)
        except ValueError as error:
            self._refuse_dead(error)

    def _living(self) -> "subprocess.Popen[bytes] | None":
        """Return the child if it still runs: one that died with nothing to do is no document's fault."""
        if self._child and os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            self._end()
        return self._child

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tasks.knowledge.extraction.child", str(self._memory_gb), str(os.getpid())]
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY, env=environment, bufsize=0
        )
        for stream in (self._child.stdin, self._child.stdout):
            os.set_blocking(stream.fileno(), False)  # type: ignore[union-attr]
        try:
            ready = _exchange(self._child, [], _START_SECONDS)
        except (TimeoutError, _Ended) as error:
            self._end()
            raise MillraceError(
                f"expected the process that extracts documents to start, found {type(error).__name__}. "
                "Next: see the log above; MILLRACE_EXTRACTION_MEMORY_GB may be too little."
            ) from error
        if ready != READY:
            raise MillraceError(f"expected {READY!r} of the process that extracts documents, found {ready[:40]!r}")
        return self._child

    def _end(self, patience: float = 0.0) -> int:
        """Take leave of the child, and kill it if it does not end by itself within `patience` seconds.

        Return how it ended, as Popen says it; 0 when it was killed here.
        """
        child, self._child = self._child, None
        if child is None:
            return 0
        deadline = time.monotonic() + patience
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        while not pid and time.monotonic() < deadline:
            time.sleep(0.005)
            pid, status = os.waitpid(child.pid, os.WNOHANG)
        if not pid:
            os.kill(child.pid, signal.SIGKILL)
            _pid, status = os.waitpid(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for it too
        for stream in (child.stdin, child.stdout):
            if stream:
                stream.close()
        return child.returncode if pid else 0

    def _refuse_dead(self, error: Exception) -> NoReturn:
        """Refuse a document over which the child died. Raises DocumentRefused."""
        code, peak = self._end(_LAST_WORDS_SECONDS), error.peak if isinstance(error, _Ended) else 0
        log.warning("extraction child ended code=%d memory=%d: %s", code, peak, error)
        near = code < 0 and peak >= _NEAR * self._memory_gb * (1 << 30)
        if near or code in {OUT_OF_MEMORY, -signal.SIGKILL}:  # the kernel kills what takes a container's last memory
            raise DocumentRefused(
                "extraction_fits_memory",
                f"expected the document to be taken apart within {self._memory_gb:g} GiB, found it needs more. "
                "Next: simplify it, or raise MILLRACE_EXTRACTION_MEMORY_GB.",
            ) from error
        raise DocumentRefused(
            "extraction_survives",
            f"expected the document to be taken apart, found that it broke the parser ({_how(code)}). "
            "Next: see the log; replace the file.",
        ) from error


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _exchange(child: "subprocess.Popen[bytes]", parts: list[bytes], seconds: float) -> bytes:
    """Send bytes and return the child's next one. Raises TimeoutError, and _Ended when the child is gone."""
    deadline = time.monotonic() + seconds
    stdin, stdout = child.stdin, child.stdout
    assert stdin is not None and stdout is not None
    waiting = [memoryview(content) for content in parts]
    answer = bytearray()
    length: int | None = None
    peak = 0
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        if waiting:
            selector.register(stdin, selectors.EVENT_WRITE)
        while length is None or len(answer) < LENGTH.size + length:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            events = selector.select(min(left, _LOOK_SECONDS))
            if not events:  # it works, or takes memory
                peak = max(peak, _address_space(child.pid))
            for key, _events in events:
                if key.fileobj is stdout:
                    block = os.read(stdout.fileno(), _BLOCK)
                    if not block:
                        raise _Ended("it closed its pipe", peak)
                    answer += block
                elif not _send(stdin.fileno(), waiting):
                    selector.unregister(stdin)
            if length is None and len(answer) >= LENGTH.size:
                (length,) = LENGTH.unpack(answer[: LENGTH.size])
                if length > MAX_ANSWER:
                    raise _Ended(f"it announced {length:,} bytes", peak)
    return bytes(memoryview(answer)[LENGTH.size :])


def _address_space(pid: int) -> int:
    """Return the most address space that a process has had, in bytes; 0 where nobody can say.

    The rusage of a dead child would not do: its memory counts from that of the process it was forked from.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    match = re.search(r"^VmPeak:\s+(\d+) kB", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _send(descriptor: int, waiting: list[memoryview]) -> bool:
    """Write what the pipe takes; return whether there is more. Raises _Ended when nobody reads."""
    try:
        written = os.write(descriptor, waiting[0][:_BLOCK])
    except BrokenPipeError as error:
        raise _Ended("it reads no more") from error
    waiting[0] = waiting[0][written:]
    if not waiting[0]:
        waiting.pop(0)
    return bool(waiting)
