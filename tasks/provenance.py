"""Where work came from and what it cost: the code's revision, this environment's packages, and the resources of this process."""

import re
import resource
import subprocess
from functools import cache
from importlib import metadata

from tasks.settings import REPOSITORY, Settings


@cache
def code_revision(settings: Settings) -> str:
    """Return the commit this code is: from the setting (images), else from git, with `+changes` for a dirty tree."""
    if settings.code_revision:
        return settings.code_revision
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--", "tasks", "expectations") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # an unpacked archive without git: said as it is


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout.strip()


def resources(wall: float, gpus: int) -> dict[str, float]:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return {"wall": round(wall, 3), "cpu": round(cpu, 3), "gpu": round(wall * gpus, 3)}


def packages() -> list[dict[str, str]]:
    """Return the Python packages of this environment by name, sorted: what a bill of materials lists."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        # The first one found is the one that is imported.
        if name and distribution.version:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return [{"name": name, "version": version} for name, version in sorted(found.items())]
