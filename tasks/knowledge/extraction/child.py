"""The child process in which documents are taken apart: `python -m tasks.knowledge.extraction.child MEMORY_GB PARENT`.

Reads frames (URI, then bytes) from standard input, and writes a frame with the answer for each. It has no secrets (its
environment is bare), at most MEMORY_GB of address space, and dies with its parent, or when the pipe closes. Whatever it
does not expect ends it: the parent refuses the document and starts another.
"""

import ctypes
import logging
import os
import resource
import signal
import sys
from typing import BinaryIO

from tasks.knowledge.extraction.formats import extract
from tasks.knowledge.extraction.model import DocumentRefused
from tasks.knowledge.extraction.wire import OUT_OF_MEMORY, READY, frames, packed, read_frame

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answer until the pipe closes."""
    memory_gb, parent = float(sys.argv[1]), int(sys.argv[2])
    _limit(memory_gb)
    _die_with(parent)
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.disable(logging.WARNING)
    _say(answers, READY)
    while (uri := read_frame(sys.stdin.buffer)) is not None:
        body = read_frame(sys.stdin.buffer)
        if body is None:
            return
        _say(answers, _answer(uri.decode(), body))


def _say(answers: BinaryIO, content: bytes) -> None:
    for part in frames(content):
        answers.write(part)
    answers.flush()


def _answer(uri: str, body: bytes) -> bytes:
    try:
        return packed(extract(uri, body))
    except DocumentRefused as refused:
        return packed(refused)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # nothing here can be relied on any more


def _limit(memory_gb: float) -> None:
    limit = int(memory_gb * (1 << 30))
    _soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _die_with(parent: int) -> None:
    """Leave signals that stop a stage to the stage, and be killed when it is gone, however it went."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before this was asked for
        sys.exit(0)


if __name__ == "__main__":
    main()
