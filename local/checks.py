"""What has to be true before the stack starts: free ports, free disk.

Reads the system; writes nothing. Fails with LocalError, whose text names the port, who holds it when that can
be known, and the variable that moves it.
"""

import errno
import shutil
import socket
import time
from pathlib import Path

import psutil

from local.errors import LocalError
from local.parts import Part
from local.settings import PORT_VARIABLES, S3_OFFSETS, LocalSettings

_LETS_GO = 3.0  # seconds that a killed process may need to let go of its port


def port_free(port: int) -> bool:
    """Say whether a server could listen on 127.0.0.1:port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            # A socket that is bound to all addresses is only noticed here.
            probe.listen(1)
        except OSError as error:
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
            raise
    return True


def holder(port: int) -> str | None:
    """Return who listens on `port`, or None where nobody is found who does."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
            if listens and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return "a process of another user"
    return None


def held_by(port: int) -> str | None:
    """Return who holds `port`, or None when it is free; a process that ends just now has a moment for it."""
    deadline = time.monotonic() + _LETS_GO
    while not port_free(port):
        if name := holder(port):
            return name
        if time.monotonic() > deadline:
            return "a process that cannot be named"
        time.sleep(0.05)
    return None


def variable_of(name: str) -> str:
    """Return the variable that moves the port called `name` in the table."""
    return PORT_VARIABLES["s3" if name in S3_OFFSETS else name]


def check_ports(parts: list[Part]) -> None:
    """Fail when a port of `parts` is held by somebody, or two parts want the same one."""
    problems = []
    owners: dict[int, str] = {}
    for part in parts:
        for name, port in part.ports.items():
            if port in owners:
                problems.append(f"port {port} is wanted by {owners[port]} and by {variable_of(name)}")
            elif by := held_by(port):
                problems.append(f"port {port} of {part.name} is held by {by}; {variable_of(name)} moves it")
            owners[port] = variable_of(name)
    if problems:
        raise LocalError(
            "expected free ports on 127.0.0.1, found:\n  "
            + "\n  ".join(problems)
            + "\nNext: end that process, or set the variable to another port "
            "(MILLRACE_LOCAL_PORT_BASE moves all at once), then `make up` again."
        )


def check_disk(settings: LocalSettings) -> None:
    """Fail when the disk of the stack's folder is nearly full."""
    place = next(one for one in (settings.folder, *settings.folder.parents) if one.exists())
    free = shutil.disk_usage(place).free / 1024**3
    if free < settings.min_free_gb:
        raise LocalError(
            f"expected {settings.min_free_gb:g} GB of free disk space for {settings.folder}, found {free:.1f} GB. "
            "Next: free some, put the data elsewhere (MILLRACE_LOCAL_DIR), or lower MILLRACE_LOCAL_MIN_FREE_GB."
        )


def free_port_base(near: int = 21000, step: int = 20, most: int = 32000) -> int:
    """Return a MILLRACE_LOCAL_PORT_BASE whose ports are all free now; below the system's own range."""
    offsets = [0, 1, 2, 3, *(4 + offset for offset in S3_OFFSETS.values())]
    for base in range(near, most, step):
        if all(port_free(base + offset) for offset in offsets):
            return base
    raise LocalError(f"expected a free block of ports between {near} and {most}, found none. Next: stop some stacks.")


def tail(path: Path, lines: int = 30) -> str:
    """Return the last lines of a log."""
    try:
        text = path.read_bytes()[-200_000:].decode("utf-8", "replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:])
