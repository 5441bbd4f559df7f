"""Processes by pid and start time: who is alive, who belongs to whom, how much memory, how to end them.

A pid alone is no identity, since the system gives it out again; a pid with its start time is. Nothing here
looks a process up by its name.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, order=True)
class Identity:
    """A process that cannot be mistaken for a later one with the same pid."""

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> "Identity | None":
        """Return the identity of the living process `pid`, or None."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None


def process(identity: Identity) -> psutil.Process | None:
    """Return the process of `identity` if it still runs; a zombie does not run."""
    try:
        found = psutil.Process(identity.pid)
        # The clock may be corrected between two readings; two processes a second apart do not share a pid.
        same = abs(found.create_time() - identity.created) < 1.0
        return found if same and found.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def alive(identity: Identity) -> bool:
    """Say whether the process of `identity` still runs."""
    return process(identity) is not None


def families(roots: dict[str, Identity], known: dict[str, set[Identity]]) -> dict[str, set[Identity]]:
    """Return, for each root, itself, its descendants, its process group, and who was known before and still runs.

    The last counts: children of Postgres leave the group, and lose their parent when it is killed.
    """
    parents: dict[int, list[int]] = {}
    groups: dict[int, list[int]] = {}
    created: dict[int, float] = {}
    for item in psutil.process_iter(["ppid", "create_time"]):
        with contextlib.suppress(ProcessLookupError):
            groups.setdefault(os.getpgid(item.pid), []).append(item.pid)
        parents.setdefault(item.info["ppid"], []).append(item.pid)
        created[item.pid] = item.info["create_time"]
    result = {}
    for name, root in roots.items():
        pids = set()
        queue = [root.pid, *groups.get(root.pid, [])] if alive(root) else []
        while queue:
            pid = queue.pop()
            if pid not in pids and pid in created:
                pids.add(pid)
                queue += parents.get(pid, [])
        members = {Identity(pid, created[pid]) for pid in pids}
        result[name] = members | {one for one in known.get(name, set()) if one not in members and alive(one)}
    return result


def send(identity: Identity, number: int) -> None:
    """Signal the process group that `identity` leads, or the process alone when it leads none."""
    found = process(identity)
    if found is None:
        return
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        if os.getpgid(identity.pid) == identity.pid:
            os.killpg(identity.pid, number)
        else:
            found.send_signal(number)


def wait_gone(members: Iterable[Identity], seconds: float) -> list[Identity]:
    """Wait until all have ended, at most `seconds`; return those that have not."""
    deadline = time.monotonic() + seconds
    left = [one for one in members if alive(one)]
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [one for one in left if alive(one)]
    return left


def kill(members: Iterable[Identity]) -> int:
    """Kill every one that still runs; return how many."""
    left = [one for one in members if alive(one)]
    for one in left:
        send(one, signal.SIGKILL)
    wait_gone(left, 5.0)
    return len(left)


def memory(members: Iterable[Identity]) -> int:
    """Return the bytes the members hold together; shared pages are divided among those who share them."""
    total = 0
    for one in members:
        found = process(one)
        if found is None:
            continue
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            full = found.memory_full_info()
            total += getattr(full, "pss", full.uss)
    return total
