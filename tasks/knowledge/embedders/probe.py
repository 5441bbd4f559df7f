"""What this machine runs an embedder with: backend and precision, where the settings leave it open.

Reads the CPU's flags, the GPU's device files and which packages are installed; writes nothing. Nothing is timed: on a busy
machine a timing would change the identity of an embedder. Fails with `SettingsError` for settings that exclude each other.
"""

import importlib.util
from pathlib import Path
from typing import Literal

from tasks.errors import SettingsError
from tasks.settings import Settings

Precision = Literal["fp32", "bf16", "int8"]
Backend = Literal["torch", "openvino"]


def precision_of(settings: Settings) -> Precision:
    """Return the configured precision; for `auto`, bf16 where this machine is faster at it, else fp32."""
    if settings.embedder_precision != "auto":
        return settings.embedder_precision
    if settings.embedder_backend != "openvino" and has_gpu():
        return "bf16"
    return "bf16" if fast_bf16(cpu_words()) else "fp32"


def backend_of(settings: Settings, precision: Precision) -> Backend:
    """Return what runs an embedder of that precision here. Raises SettingsError."""
    if settings.embedder_backend != "auto":
        if settings.embedder_backend == "torch" and precision == "int8":
            raise SettingsError(
                "expected MILLRACE_EMBEDDER_BACKEND=openvino or auto for an embedder in int8, found torch. Next: set auto."
            )
        return settings.embedder_backend
    if precision == "int8" or (has_openvino() and not has_gpu()):
        return "openvino"
    return "torch"


def may_run(settings: Settings, backend: Backend) -> bool:
    """Tell whether the settings leave this backend open and it is installed."""
    return settings.embedder_backend in ("auto", backend) and (backend == "torch" or has_openvino())


def device() -> str:
    """Return where torch runs a model."""
    return "cuda" if has_gpu() else "cpu"


def has_gpu() -> bool:
    """Tell whether torch can use a GPU. Without a device file torch is not even imported: that costs seconds."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return False
    import torch

    return bool(torch.cuda.is_available())


def has_openvino() -> bool:
    """Tell whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def cpu_words() -> frozenset[str]:
    """Return the words of /proc/cpuinfo: vendor and flags among them; none where there is no such file."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:  # not Linux: no flags to read
        return frozenset()


def fast_bf16(words: frozenset[str]) -> bool:
    """Tell whether a CPU of these flags is faster in bf16 than in fp32.

    Measured: avx512_bf16 is on AMD; on Intel without AMX it is slower than fp32.
    """
    return "amx_bf16" in words or {"AuthenticAMD", "avx512_bf16"} <= words
