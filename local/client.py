"""`up`, `down` and `status` as seen from outside the daemon.

Reads `state.json`; writes `stack.json` (what the daemon is to run) and the environment files; starts and
signals the daemon. `up` is safe to repeat: parts that run and would be started just the same are left alone.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from local.checks import check_disk, check_ports, tail
from local.environment import stage_environment, write_environment
from local.errors import LocalError, PartFailed
from local.parts import Part, select, table
from local.processes import Identity, alive, kill, memory, send, wait_gone
from local.settings import REPOSITORY, LocalSettings
from local.state import PartState, StackState, load, save, write_private

Say = Callable[[str], None]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one `up` or `down` work on a stack at a time; the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)  # the files are private each; Postgres' user has to pass
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_config(settings: LocalSettings, only: tuple[str, ...], owner: Identity | None) -> str:
    """Write `stack.json`; return a digest of all the daemon is started from."""
    config = json.dumps(
        {
            "settings": {**asdict(settings), "folder": str(settings.folder)},
            "only": only,
            "owner": asdict(owner) if owner else None,
        },
        indent=1,
    )
    write_private(settings.folder / "stack.json", config)
    digest = hashlib.sha256(config.encode())
    for name in ("env", "airflow.env"):
        digest.update((settings.folder / name).read_bytes())
    return digest.hexdigest()


def check_stage_settings(values: Mapping[str, str]) -> None:
    """Fail when a variable the user set is no setting of the stages, or is malformed."""
    from tasks.errors import SettingsError
    from tasks.settings import load_settings

    try:
        load_settings(values)
    except SettingsError as error:
        raise LocalError(str(error)) from error


def up(
    settings: LocalSettings,
    environment: Mapping[str, str],
    dotenv: Mapping[str, str],
    say: Say,
    only: tuple[str, ...] = (),
    owner: Identity | None = None,
) -> None:
    """Bring the stack to health; PartFailed names the part, its log's end and the log."""
    check_disk(settings)
    with locked(settings.folder):
        values, origins = stage_environment(settings, environment, dotenv)
        taken = {name: where for name, where in origins.items() if where != "generated"}
        for name, where in taken.items():
            say(f"{name} is taken from {where}")
        if taken:
            check_stage_settings(values)
        write_environment(settings, values)
        config = write_config(settings, only, owner)
        parts = select(table(settings), only, settings.without)
        state = load(settings.folder / "state.json")
        failed = any(part.state == "failed" for part in state.parts.values())
        if state.daemon_alive() and (state.config != config or failed) and state.daemon:
            say("the running stack was started with other settings, or a part failed: taking over")
            os.kill(state.daemon.pid, signal.SIGUSR1)
            if wait_gone([state.daemon], 30):
                kill([state.daemon])
            state = load(settings.folder / "state.json")
        if not state.daemon_alive():
            running = _still_running(parts, state, say)
            check_ports([part for part in parts if part.name not in running])
            state = _start_daemon(settings, config)
        follow(settings, parts, say)


def _still_running(parts: list[Part], state: StackState, say: Say) -> set[str]:
    """Return the parts the next daemon will adopt; end all other processes of the one that is gone."""
    fingerprints = {part.name: part.fingerprint() for part in parts}
    adopted = set()
    for name, old in state.parts.items():
        if old.identity and alive(old.identity) and old.fingerprint == fingerprints.get(name) and old.kind == "server":
            adopted.add(name)
        elif ended := kill(old.family):
            say(f"{name}: ended {ended} processes that an earlier stack left")
    return adopted


def _start_daemon(settings: LocalSettings, config: str) -> StackState:
    logs = settings.folder / "logs"
    logs.mkdir(exist_ok=True)
    with (logs / "supervisor.log").open("ab") as output:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "local", "run", "--folder", str(settings.folder), "--config", config],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and daemon.poll() is None:
        state = load(settings.folder / "state.json")
        if state.daemon is not None and state.daemon.pid == daemon.pid and state.daemon_alive():
            return state
        time.sleep(0.05)
    log = logs / "supervisor.log"
    raise PartFailed(f"the supervisor did not start. The end of {log}:\n{tail(log)}")


def follow(settings: LocalSettings, parts: list[Part], say: Say) -> None:
    """Print each part when it gets healthy; return when all are, PartFailed when one is given up."""
    reported: set[str] = set()
    began = last = time.monotonic()
    names = [part.name for part in parts]
    while True:
        state = load(settings.folder / "state.json")
        for name in names:
            found = state.parts.get(name, PartState())
            if name in reported:
                continue
            if found.state == "failed":
                log = settings.folder / "logs" / f"{name}.log"
                raise PartFailed(
                    f"{name} failed: {found.message}\nThe end of {log}:\n{tail(log)}\n"
                    f"The whole log: {log}\nThe other parts go on. Next: mend it, then `make up`; or `make down`."
                )
            if found.state in {"healthy", "done"}:
                reported.add(name)
                last = time.monotonic()
                if found.kind == "server":
                    address = next(part.address for part in parts if part.name == name)
                    say(f"{name:<22} healthy {found.seconds:6.1f} s  {address}")
        if len(reported) == len(names):
            return
        if not state.daemon_alive():
            log = settings.folder / "logs" / "supervisor.log"
            raise PartFailed(f"the supervisor ended. The end of {log}:\n{tail(log)}")
        if time.monotonic() - last > 15:
            last = time.monotonic()
            missing = [name for name in names if name not in reported]
            say(f"{last - began:4.0f} s: waiting for {', '.join(missing)}")
        time.sleep(0.1)


def down(folder: Path, say: Say) -> bool:
    """Stop the stack; False when nothing ran."""
    if not (folder / "state.json").exists():
        return False
    with locked(folder):
        state = load(folder / "state.json")
        daemon = state.daemon
        ran = state.daemon_alive()
        reported: set[str] = set()
        if ran and daemon is not None:
            send(daemon, signal.SIGTERM)
            deadline = time.monotonic() + 120
            while alive(daemon) and time.monotonic() < deadline:
                _report_stopped(load(folder / "state.json"), reported, say)
                time.sleep(0.1)
            kill([daemon])
            _report_stopped(load(folder / "state.json"), reported, say)
        state = load(folder / "state.json")
        for name, part in reversed(state.parts.items()):
            # Only when the daemon was killed before: nobody is left to stop these in order.
            if part.identity is not None and alive(part.identity):
                ran = True
                send(part.identity, signal.SIGINT if name == "postgres" else signal.SIGTERM)
                wait_gone(part.family, 10)
            if ended := kill(part.family):
                say(f"{name:<22} {ended} processes had to be killed")
            part.state, part.identity, part.family = "stopped", None, []
        state.daemon = None
        save(folder / "state.json", state)
    return ran


def _report_stopped(state: StackState, reported: set[str], say: Say) -> None:
    for name, part in state.parts.items():
        if part.state == "stopped" and part.kind == "server" and name not in reported:
            reported.add(name)
            say(f"{name:<22} stopped. {part.message}".rstrip(" ."))


def status(settings: LocalSettings, say: Say) -> bool:
    """Print the table; True when the daemon and every part are healthy now."""
    state = load(settings.folder / "state.json")
    if not state.parts:
        say("The stack has not been started. Next: make up")
        return False
    parts = {part.name: part for part in table(settings)} if (settings.folder / "secrets.json").exists() else {}
    good, total = state.daemon_alive(), 0
    say(f"{'part':<22} {'state':<11} {'pid':>7} {'memory':>9} {'uptime':>9}  address")
    for name, part in state.parts.items():
        if part.kind == "job" and part.state in {"done", "stopped"}:
            continue
        shown, address = part.state, parts[name].address if name in parts else ""
        runs = part.identity is not None and alive(part.identity)
        if part.kind == "server" and not runs and part.state in {"healthy", "starting"}:
            shown = "died"
        elif shown == "healthy" and name in parts and (wrong := (parts[name].health or str)(part.started)):
            shown, address = "no answer", wrong
        good = good and shown == "healthy"
        held = memory(part.family)
        total += held
        uptime = f"{time.time() - part.started:.0f} s" if runs else "-"
        pid = str(part.identity.pid) if part.identity and runs else "-"
        say(f"{name:<22} {shown:<11} {pid:>7} {held / 1024**2:>6.0f} MB {uptime:>9}  {address or part.message}")
    if state.daemon is not None and state.daemon_alive():
        held = memory([state.daemon])
        total += held
        say(f"{'(supervisor)':<22} {'healthy':<11} {state.daemon.pid:>7} {held / 1024**2:>6.0f} MB")
    else:
        say(f"{'(supervisor)':<22} {'not running':<11}         Next: make up")
    say(f"{'all':<22} {'':<11} {'':>7} {total / 1024**2:>6.0f} MB")
    return good
