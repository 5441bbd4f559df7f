"""The daemon of a stack: starts the parts in order, restarts what dies, stops them in reverse order.

One thread a part; the main thread keeps the families of processes and writes `state.json`. Output of each
part goes straight to `logs/PART.log`, so parts outlive the daemon: a later daemon adopts those that would be
started just the same, and ends the others. Signals: SIGTERM and SIGINT stop the stack, SIGUSR1 ends the daemon
alone (a new one takes over).
"""

import logging
import os
import signal
import subprocess
import threading
import time
from collections import deque
from pathlib import Path
from typing import BinaryIO

from local.environment import inherited
from local.parts import Part
from local.processes import Identity, alive, families, kill, send, wait_gone
from local.settings import REPOSITORY
from local.state import PartState, StackState, load, save

log = logging.getLogger("millrace.local")

FIRST_TRIES = 3  # a part that never got healthy is not tried for ever
DEATHS_ALLOWED, DEATHS_WITHIN = 6, 120.0
LOG_LIMIT = 20 * 1024**2


class Runner(threading.Thread):
    """Keeps one part running."""

    def __init__(self, part: Part, stack: "Supervisor", adopted: Identity | None) -> None:
        super().__init__(name=part.name, daemon=True)
        self.part, self.stack, self.adopted = part, stack, adopted
        self.state = stack.state.parts[part.name]
        self.popen: subprocess.Popen[bytes] | None = None
        self.deaths: deque[float] = deque()
        self.was_healthy = False

    def run(self) -> None:
        """Start, watch, start again, until the stack stops or the part is given up."""
        try:
            while not self.stack.stopping.is_set() and self._needs_met():
                if self._once():
                    return
        except (OSError, ValueError) as error:
            self._give_up(f"could not be started: {error}")

    def _needs_met(self) -> bool:
        """Wait for the parts this one needs; False when the stack stops first."""
        while not self.stack.stopping.is_set():
            missing = [name for name in self.part.needs if not self.stack.ready(name)]
            given_up = [name for name in missing if self.stack.state.parts[name].state == "failed"]
            if self.adopted or not missing:
                return True
            self.state.message = f"waits for {', '.join(missing)}" + (" (failed)" if given_up else "")
            self.stack.stopping.wait(0.05)
        return False

    def _once(self) -> bool:
        """Run the process once; True when there is nothing more to do."""
        self._start()
        missing = self._wait_healthy()
        if missing is None and self.part.kind == "job":
            self.state.state, self.state.message = "done", ""
            return True
        if missing is None:
            self._watch()
            missing = f"ended{self._code()} after {time.time() - self.state.started:.0f} s"
        if self.stack.stopping.is_set():
            return True
        left = self.stack.end_family(self.part.name)
        log.warning("%s %s; %d processes left over were killed", self.part.name, missing, left)
        return self._count_death(missing)

    def _start(self) -> None:
        part, state = self.part, self.state
        if self.adopted is not None:
            log.info("%s adopted, pid %d", part.name, self.adopted.pid)
            state.identity, self.adopted = self.adopted, None
        else:
            if part.before is not None:
                part.before()
            with self.stack.open_log(part.name) as output:
                self.popen = subprocess.Popen(
                    part.command,
                    env={**inherited(os.environ), **part.env},
                    cwd=part.cwd or REPOSITORY,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            state.started = time.time()
            state.identity = Identity.of(self.popen.pid)
            log.info("%s started, pid %d", part.name, self.popen.pid)
        state.fingerprint = part.fingerprint()
        state.state = "restarting" if self.was_healthy else "starting"
        self.stack.changed.set()

    def _alive(self) -> bool:
        if self.popen is not None:
            return self.popen.poll() is None
        return self.state.identity is not None and alive(self.state.identity)

    def _code(self) -> str:
        return f" with exit code {self.popen.poll()}" if self.popen is not None else ""

    def _wait_healthy(self) -> str | None:
        """Return None when healthy (a job: ended well), else what is wrong."""
        began, missing = time.monotonic(), None
        while not self.stack.stopping.is_set():
            running = self._alive()
            if not running and self.part.health is None and self.popen is not None and self.popen.returncode == 0:
                self._healthy(began)
                return None
            if not running:
                return f"ended{self._code()} before it was healthy" if self.part.health else f"ended{self._code()}"
            missing = self.part.health(self.state.started) if self.part.health else "still runs"
            if missing is None:
                self._healthy(began)
                return None
            if time.monotonic() - began > self.stack.start_timeout:
                return f"not healthy after {self.stack.start_timeout:.0f} s: {missing}"
            self.state.message = missing
            self.stack.stopping.wait(0.1)
        return "stopped"

    def _healthy(self, began: float) -> None:
        self.state.seconds = time.monotonic() - began
        self.state.message, self.was_healthy = "", True
        if self.part.health:
            self.state.state = "healthy"
            log.info("%s healthy after %.1f s", self.part.name, self.state.seconds)
        self.stack.changed.set()

    def _watch(self) -> None:
        while not self.stack.stopping.is_set() and self._alive():
            self.stack.stopping.wait(0.3)

    def _count_death(self, message: str) -> bool:
        """Wait before the next start; True when the part is given up."""
        now = time.monotonic()
        self.deaths.append(now)
        while now - self.deaths[0] > DEATHS_WITHIN:
            self.deaths.popleft()
        if len(self.deaths) >= (DEATHS_ALLOWED if self.was_healthy else FIRST_TRIES):
            self._give_up(f"{message}; {len(self.deaths)} tries in {DEATHS_WITHIN:.0f} s")
            return True
        self.state.restarts += 1
        self.state.state, self.state.message = "restarting", message
        self.popen = None
        self.stack.changed.set()
        self.stack.stopping.wait(0.5 * 2 ** (len(self.deaths) - 1))
        return False

    def _give_up(self, message: str) -> None:
        log.error("%s given up: %s", self.part.name, message)
        self.state.state, self.state.message = "failed", message
        self.stack.changed.set()


class Supervisor:
    """All parts of one stack."""

    def __init__(self, folder: Path, parts: list[Part], config: str, start_timeout: float, owner: Identity | None):
        self.folder, self.parts, self.start_timeout, self.owner = folder, parts, start_timeout, owner
        self.stopping, self.changed = threading.Event(), threading.Event()
        self.handover = False
        self.lock = threading.Lock()
        self.state = StackState(daemon=Identity.of(os.getpid()), config=config)
        for part in parts:
            self.state.parts[part.name] = PartState(kind=part.kind)

    def ready(self, name: str) -> bool:
        """Say whether what needs this part may start."""
        return name not in self.state.parts or self.state.parts[name].state in {"healthy", "done"}

    def open_log(self, name: str) -> BinaryIO:
        """Open a part's log for appending; a large one is put aside first."""
        path = self.folder / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > LOG_LIMIT:
            path.replace(path.with_suffix(".log.1"))
        return path.open("ab")

    def end_family(self, name: str) -> int:
        """Kill what is left of a part's processes; return how many there were."""
        self.refresh()
        with self.lock:
            return kill(self.state.parts[name].family)

    def refresh(self) -> None:
        """Look again which processes belong to which part."""
        with self.lock:
            items = self.state.parts.items()
            roots = {name: part.identity for name, part in items if part.identity is not None}
            known = {name: set(part.family) for name, part in items}
            for name, members in families(roots, known).items():
                self.state.parts[name].family = sorted(members)

    def _take_over(self) -> dict[str, Identity]:
        """Adopt what an earlier daemon left running and would be started the same; end the rest."""
        before = load(self.folder / "state.json")
        wanted = {part.name: part for part in self.parts}
        adopted = {}
        for name, old in before.parts.items():
            part = wanted.get(name)
            runs = old.identity is not None and alive(old.identity)
            same = part is not None and part.kind == "server" and part.fingerprint() == old.fingerprint
            if runs and same and old.identity is not None:
                adopted[name] = old.identity
                self.state.parts[name].started, self.state.parts[name].family = old.started, old.family
            elif killed := kill(old.family or ([old.identity] if old.identity else [])):
                log.warning("%s: %d processes of an earlier daemon were ended", name, killed)
        return adopted

    def run(self) -> None:
        """Run until a signal says stop."""
        signal.signal(signal.SIGTERM, lambda *_: self.stopping.set())
        signal.signal(signal.SIGINT, lambda *_: self.stopping.set())
        signal.signal(signal.SIGUSR1, self._hand_over)
        adopted = self._take_over()
        runners = [Runner(part, self, adopted.get(part.name)) for part in self.parts]
        for runner in runners:
            runner.start()
        looked = 0.0
        while not self.stopping.is_set():
            if time.monotonic() - looked > 2.0 or self.changed.is_set():
                looked = time.monotonic()
                self.refresh()
            self.changed.clear()
            save(self.folder / "state.json", self.state)
            if self.owner is not None and not alive(self.owner):
                log.warning("the process that owns this stack has gone")
                self.stopping.set()
            self.changed.wait(0.5)
        for runner in runners:
            runner.join(self.start_timeout)
        if self.handover:
            self.refresh()
            save(self.folder / "state.json", self.state)
        else:
            self.stop()

    def _hand_over(self, *_: object) -> None:
        self.handover = True
        self.stopping.set()

    def stop(self) -> None:
        """Stop all parts, those that need others first."""
        self.refresh()
        left = {part.name: part for part in self.parts}
        while left:
            needed = {need for part in left.values() for need in part.needs}
            group = [part for part in left.values() if part.name not in needed]
            for part in group:
                identity = self.state.parts[part.name].identity
                if identity is not None:
                    send(identity, part.stop_signal)
            deadline = time.monotonic() + max(part.stop_seconds for part in group)
            for part in group:
                self._await_end(part, deadline)
                del left[part.name]
        self.state.daemon = None
        save(self.folder / "state.json", self.state)

    def _await_end(self, part: Part, deadline: float) -> None:
        state = self.state.parts[part.name]
        members = set(state.family) | ({state.identity} if state.identity else set())
        remaining = wait_gone(members, max(0.0, deadline - time.monotonic()))
        state.message = f"{len(remaining)} processes had to be killed" if remaining else ""
        kill(remaining)
        state.state, state.identity, state.family = "stopped", None, []
        log.info("%s stopped. %s", part.name, state.message)
        save(self.folder / "state.json", self.state)
