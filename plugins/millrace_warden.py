"""The parent of one stage process: it outlives nobody, and lets nobody outlive it.

    python millrace_warden.py PARENT_PID GRACE_SECONDS LOCK_FILE COMMAND...

Runs COMMAND in a session of its own and ends with its exit code (128 + the signal, where one ended it).
On SIGTERM, and when the parent dies however hard (the kernel sends SIGTERM then), it sends SIGTERM to
the whole group, waits GRACE_SECONDS (a trainer saves a checkpoint), then kills what is left. Processes
that COMMAND leaves behind are killed too: one that moved to another session cannot escape, because
orphans come back to the warden (subreaper). LOCK_FILE is held meanwhile, so that a new attempt waits
until the one before has ended: two trainers never write one checkpoint.

Airflow gives a task five seconds to stop, too few for a checkpoint; that is why this is a process of its own.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
TRY_AGAIN = 75


def prctl(option: int, value: int) -> None:
    """Set a process attribute; on systems other than Linux there is none, and the group signal must do."""
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


class Warden:
    """Starts the command, stops it when told to, and cleans up after it."""

    def __init__(self, grace: int) -> None:
        self.grace = grace
        self.child: int | None = None
        self.stopping = False

    def watch(self, parent: int) -> None:
        """Take the signals; be told of the parent's death."""
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGALRM, self.kill)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        if os.getppid() != parent:  # it died before the kernel was asked to tell
            sys.exit(TRY_AGAIN)

    def lock(self, path: Path) -> None:
        """Hold the lock until this process ends; wait for an earlier attempt that is still stopping."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)  # closed by the end of the process only
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for the attempt before to end (it may be saving a checkpoint)")
            fcntl.flock(handle, fcntl.LOCK_EX)

    def run(self, command: list[str]) -> int:
        """Run the command to its end; return the exit code."""
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # The stage must not survive a SIGKILL of the warden either. No thread is running yet.
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        self.child = process.pid
        pump = threading.Thread(target=forward, args=(process.stdout,))
        pump.start()
        while True:
            pid, status = os.waitpid(-1, 0)  # reaps adopted orphans as well
            if pid == self.child:
                break
        self.kill(signal.SIGALRM, None)
        pump.join()  # everybody who could write is dead, so the pipe ends
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def stop(self, _number: int, _frame: object) -> None:
        """Ask the group to stop, and set the alarm that kills it."""
        if self.child is None:
            sys.exit(TRY_AGAIN)
        if self.stopping:
            return
        self.stopping = True
        say(f"stopping: SIGTERM sent, {self.grace} s until SIGKILL")
        signal.alarm(max(1, self.grace))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child, signal.SIGTERM)

    def kill(self, _number: int, _frame: object) -> None:
        """Kill every descendant."""
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def forward(source: IO[bytes]) -> None:
    """Copy the command's output to ours. When our reader is gone, go on reading: a trainer that saves its
    checkpoint must not die of a broken pipe."""
    while block := os.read(source.fileno(), 65536):
        write(block)


def say(text: str) -> None:
    """Write a line of our own."""
    write(f"{text}\n".encode())


def write(block: bytes) -> None:
    """Write to stdout, or to nowhere once nobody reads it."""
    try:
        while block:
            block = block[os.write(1, block) :]
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def main(arguments: list[str]) -> int:
    """Run a command under the warden."""
    parent, grace, lock, *command = arguments
    warden = Warden(int(grace))
    warden.watch(int(parent))
    warden.lock(Path(lock))
    return warden.run(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
