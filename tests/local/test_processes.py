"""Identity, families and the end of processes, with real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from local.processes import Identity, alive, families, kill, memory, process, send, wait_gone

PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    """A process whose child leaves its session, as the children of Postgres do."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as started:
        yield started
        started.kill()


def child_of(parent: subprocess.Popen[str]) -> int:
    assert parent.stdout is not None
    return int(parent.stdout.readline())


def identity(pid: int) -> Identity:
    found = Identity.of(pid)
    assert found is not None
    return found


def test_a_pid_with_another_start_time_is_another_process() -> None:
    me = identity(os.getpid())
    assert alive(me)
    assert not alive(Identity(me.pid, me.created - 100))
    assert process(Identity(me.pid, me.created - 100)) is None


def test_a_zombie_does_not_run() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    root = Identity.of(ended.pid)
    assert root is not None
    deadline = time.monotonic() + 10
    while alive(root) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(root)
    ended.wait()


def test_a_family_keeps_the_child_that_left_even_after_the_parent_was_killed(parent: subprocess.Popen[str]) -> None:
    child = identity(child_of(parent))
    root = identity(parent.pid)
    family = families({"part": root}, {})["part"]
    assert family == {root, child}
    os.kill(root.pid, signal.SIGKILL)
    parent.wait()
    left = families({"part": root}, {"part": family})["part"]
    assert left == {child}
    assert kill(left) == 1
    assert not alive(child)


def test_send_and_wait(parent: subprocess.Popen[str]) -> None:
    child_pid = child_of(parent)
    root = identity(parent.pid)
    child = identity(child_pid)
    assert memory([root]) > 1024**2
    assert wait_gone([root], 0.1) == [root]
    send(root, signal.SIGTERM)
    parent.wait()
    assert wait_gone([root], 5) == []
    assert kill([child]) == 1
