"""Where work came from and what it cost: the code's revision, and the resources of this process."""

import resource
import subprocess
from functools import cache

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
