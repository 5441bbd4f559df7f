"""What a training is made with besides its inputs: the code, the packages, the hardware.

Reads the metadata of the installed packages (none is imported), the processor's name or those of the GPUs; writes nothing.
`train` keeps it beside what it trained, so that `python -m tasks reproduce` can say what is another.
"""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from tasks.provenance import code_revision
from tasks.settings import Settings
from tasks.training.recipes import Recipe
from tasks.training.team import gpus_here

# Those whose versions can change what the same inputs train.
PACKAGES = ("torch", "transformers", "deepspeed", "peft", "accelerate")
_CPU_INFO = Path("/proc/cpuinfo")


def made_with(settings: Settings, recipe: Recipe) -> dict[str, Any]:
    """Return code revision, package versions, and the hardware that the recipe asks for, as they are here."""
    return {"code_revision": code_revision(settings), "packages": packages(), "hardware": hardware(recipe)}


def packages() -> dict[str, str]:
    """Return the versions of Python and of PACKAGES; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a machine that only prepares may have no torch: it is told as another version
    return found


def hardware(recipe: Recipe) -> str:
    """Return the kind of processor, or of GPU, that a training with this recipe uses here; without GPUs `no GPU`."""
    if recipe.distribution.accelerator == "cuda":
        return ", ".join(sorted(set(gpus_here()))) or "no GPU"
    return f"{platform.machine()} {_processor()}".strip()


def _processor() -> str:
    if not _CPU_INFO.is_file():
        return platform.processor()
    lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line.partition(":") for line in lines]
    found = {name.strip(): value.strip() for name, _colon, value in reversed(told)}
    return " ".join(found[name] for name in ("model name", "CPU part") if name in found)
