"""Checks of the machine the stages run on: the packages, the disk, a container engine.

Reads `requirements/*.txt`, the installed packages and the file system. Writes nothing.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from tasks.doctor.examine import NotChecked, Place
from tasks.errors import BadInput, ServiceUnavailable, SettingsError
from tasks.settings import REPOSITORY

PYTHON = (3, 11)
LOCKS = REPOSITORY / "requirements"
_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==([^\s;]+)", re.MULTILINE)
NAMED = 4  # packages that a line names; the rest is counted


def versions(place: Place) -> str:
    """Compare Python and the installed packages with the lock that this environment was made from."""
    python = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] != PYTHON:
        raise SettingsError(f"expected Python 3.11, found {python}. Next: make the environment with python3.11.")
    lock = lock_file()
    if lock is None or not lock.is_file():
        raise NotChecked(f"Python {python} is right, but there is no lock file below {LOCKS} to compare packages with")
    pins = _PIN.findall(lock.read_text(encoding="utf-8"))
    different = differences(pins)
    if different:
        more = f" and {len(different) - NAMED} more" if len(different) > NAMED else ""
        raise SettingsError(
            f"expected the packages of {lock.name}, found {', '.join(different[:NAMED])}{more}. "
            "Next: `make setup`; in an image, build it again."
        )
    return f"Python {python}, {len(pins)} packages as in {lock.name}"


def lock_file() -> Path | None:
    """Return the lock of this environment: by whether it has Airflow, torch, or both."""
    kind = {(True, True): "local", (True, False): "airflow", (False, True): "stage"}.get(
        (_installed("apache-airflow") is not None, _installed("torch") is not None)
    )
    return LOCKS / f"{kind}.txt" if kind else None


def differences(pins: list[tuple[str, str]]) -> list[str]:
    """Return what is missing or has another version; `2.13.0+cpu` is a build of 2.13.0."""
    found = []
    for name, wanted in pins:
        installed = _installed(name)
        if installed is None:
            found.append(f"no {name} (lock: {wanted})")
        elif installed not in {wanted, installed.partition("+")[0] and f"{wanted}+{installed.partition('+')[2]}"}:
            found.append(f"{name} {installed} (lock: {wanted})")
    return found


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def disk(place: Place) -> str:
    """Ask for free space where models are cached and where stages work, and for leave to write there."""
    least, told = place.wanted.free_gb, []
    for name, wanted in (("MILLRACE_CACHE_DIR", place.settings.cache_dir), ("TMPDIR", Path(tempfile.gettempdir()))):
        folder = next(one for one in (wanted.absolute(), *wanted.absolute().parents) if one.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise SettingsError(f"expected to write in {folder}, found no leave to. Next: point {name} elsewhere.")
        free = shutil.disk_usage(folder).free / 1024**3
        if free < least:
            raise SettingsError(
                f"expected {least:g} GB of free disk space in {folder} ({name}), found {free:.1f} GB. "
                f"Next: free some, or point {name} at a larger disk."
            )
        told.append(f"{free:.1f} GB free in {folder}")
    return ", ".join(dict.fromkeys(told))


def engine(place: Place) -> str:
    """Ask the container engine and its Compose for their versions."""
    if shutil.which("docker") is None:
        raise BadInput("expected `docker` on the PATH, found none. Next: install Docker and its Compose plugin.")
    server = _docker("version", "--format", "{{.Server.Version}}")
    return f"Docker {server}, Compose {_docker('compose', 'version', '--short')}"


def _docker(*arguments: str) -> str:
    command = ["docker", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=15)
    except subprocess.TimeoutExpired as error:
        raise ServiceUnavailable(
            f"expected `{' '.join(command[:3])}` to answer, found none in 15 s. Next: see the Docker daemon."
        ) from error
    if done.returncode:
        words = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        kind = ServiceUnavailable if "daemon" in words.lower() else BadInput
        raise kind(
            f"expected `{' '.join(command[:3])}` to answer, found: {words}. Next: start Docker; install its Compose plugin."
        )
    return done.stdout.strip()
