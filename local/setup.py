"""`make setup`: make `.venv` from the lock files. Standard library only, and it runs on any Python 3.

Reads `requirements/*.txt`; writes `.venv` and, last, the marker `.venv/.millrace-lock` with the digest of the
locks. While the marker agrees, setup does nothing. An installation that was broken off (killed, no network)
is noticed by `.venv/.millrace-installing` and thrown away by the next try: pip leaves packages behind that look
whole and are not. Ends with 2, and one message, on a wrong Python, a full disk, an index that does not answer.
"""

from __future__ import annotations  # this file has to start on old Pythons, to refuse them

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIREMENTS = REPOSITORY / "requirements"
LOCKS = ("local.txt", "development.txt", "models-no-deps.txt")
PYTHON = (3, 11)
FREE_GB = 6.0
NETWORK_SIGNS = (
    "NewConnectionError",
    "Max retries exceeded",
    "Temporary failure in name resolution",
    "ConnectTimeoutError",
    "Read timed out",
    "ProxyError",
    "SSLError",
    "Connection refused",
    "(from versions: none)",  # pip says no more than this when it does not try again
)


class SetupError(Exception):
    """Bad input; the text is the one message."""


def check_python(version: Sequence[int]) -> None:
    """Fail unless `version` is the one the locks are made for."""
    if tuple(version[:2]) != PYTHON:
        raise SetupError(
            f"expected Python {PYTHON[0]}.{PYTHON[1]}, found {version[0]}.{version[1]} ({sys.executable}).\n"
            "Next: install Python 3.11 and run `make setup PYTHON=/path/to/python3.11`."
        )


def check_disk(folder: Path, least: float) -> None:
    """Fail when the disk of `folder` has less than `least` GB free."""
    free = shutil.disk_usage(str(folder)).free / 1024**3
    if free < least:
        raise SetupError(
            f"expected {least:g} GB of free disk space in {folder}, found {free:.1f} GB.\n"
            "Next: free some, or lower MILLRACE_LOCAL_MIN_FREE_GB if you know better."
        )


def least_free(environment: Mapping[str, str]) -> float:
    """Return the GB asked for: MILLRACE_LOCAL_MIN_FREE_GB, or what an installation takes."""
    text = environment.get("MILLRACE_LOCAL_MIN_FREE_GB", "")
    try:
        return float(text) if text else FREE_GB
    except ValueError:
        raise SetupError(f"MILLRACE_LOCAL_MIN_FREE_GB: expected a number, found {text!r}.") from None


def digest(requirements: Path) -> str:
    """Return the digest of the locks and of the Python they are installed for."""
    found = hashlib.sha256(repr(PYTHON).encode())
    for name in LOCKS:
        found.update((requirements / name).read_bytes())
    return found.hexdigest()


def up_to_date(venv: Path, wanted: str) -> bool:
    """Say whether `venv` holds what the locks say."""
    marker = venv / ".millrace-lock"
    whole = marker.exists() and not (venv / ".millrace-installing").exists()
    return whole and marker.read_text().strip() == wanted and (venv / "bin" / "python").exists()


def usable(venv: Path) -> bool:
    """Say whether `venv` can be installed into as it is."""
    python = venv / "bin" / "python"
    if not python.exists() or (venv / ".millrace-installing").exists():
        return False
    code = f"import sys, pip; sys.exit(sys.version_info[:2] != {PYTHON!r})"
    return subprocess.run([str(python), "-c", code], check=False, stderr=subprocess.DEVNULL).returncode == 0


def pip(venv: Path, log: Path, *arguments: str) -> None:
    """Run pip; its output goes to `log`, and one line a package to the screen's last line."""
    command = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    command += ["--no-compile", "--progress-bar", "off"]
    # A virtual environment of the caller's must not be looked at.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    began = time.time()
    with log.open("a") as output:
        process = subprocess.Popen(
            command + list(arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            env=environment,
            cwd=str(REPOSITORY),
        )
        collected = 0
        for line in process.stdout or ():
            output.write(line)
            collected += line.startswith("Collecting ")
            if line.startswith("Installing collected packages"):
                print(f"{time.time() - began:4.0f} s: {collected} packages found, installing", flush=True)
            elif line.startswith("Collecting ") and collected % 50 == 0:
                print(f"{time.time() - began:4.0f} s: {collected} packages found", flush=True)
    if process.wait():
        raise SetupError(explain(log))


def explain(log: Path) -> str:
    """Return the message for a pip that failed."""
    lines = log.read_text(errors="replace").splitlines()
    text = "\n".join(lines[-200:])
    if any(sign in text for sign in NETWORK_SIGNS):
        reason = "a package index that does not answer, or lacks a package"
        step = "check the network, the proxy, and pip's index (`pip config list`), then `make setup` again"
    elif "No space left" in text:
        reason, step = "a full disk", "free some space, then `make setup` again"
    else:
        reason, step = "pip ended with an error", "read the log, then `make setup` again"
    errors = [line for line in lines if line.startswith("ERROR")][-3:] or lines[-3:]
    found = "\n  ".join(errors)
    return (
        f"expected all packages of requirements/ to install, found {reason}:\n  {found}\n"
        f"Next: {step}. The whole log: {log}"
    )


def install(venv: Path, requirements: Path, wanted: str) -> None:
    """Make `venv` hold what the locks say."""
    marker, installing = venv / ".millrace-lock", venv / ".millrace-installing"
    if not usable(venv):
        print(f"making {venv.name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    installing.write_text(wanted)
    if marker.exists():
        marker.unlink()
    log = venv / "setup.log"
    log.write_text("")
    print(f"installing the packages of requirements/ (log: {log})", flush=True)
    pip(venv, log, *[word for name in LOCKS[:2] for word in ("-r", str(requirements / name))])
    # Its own requirements are left out on purpose; see requirements/README.md.
    pip(venv, log, "--no-deps", "-r", str(requirements / LOCKS[2]))
    marker.write_text(wanted)
    installing.unlink()


def main() -> int:
    """Bring `.venv` up to date."""
    try:
        check_python(sys.version_info[:2])
        venv = REPOSITORY / ".venv"
        wanted = digest(REQUIREMENTS)
        if up_to_date(venv, wanted):
            return 0
        check_disk(REPOSITORY, least_free(os.environ))
        began = time.time()
        install(venv, REQUIREMENTS, wanted)
        print(f"{venv.name} is ready after {time.time() - began:.0f} s", flush=True)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
