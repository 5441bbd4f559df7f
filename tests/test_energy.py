"""Energy is added up from what nvidia-smi tells; a machine whose GPUs tell nothing has no figure."""

import time
from pathlib import Path

import pytest

from tasks.energy import Meter


def tool(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put an nvidia-smi into the path that notes its arguments and runs `body`."""
    program = folder / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$@" > "{folder}/arguments"\n{body}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_power_over_time_is_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    told = (
        *("2026/11/22 10:00:00.000, 2, 100.0", "2026/11/22 10:00:00.000, 3, 300.0"),
        *("2026/11/22 10:00:01.500, 2, 200.0", "2026/11/22 10:00:01.500, 3, 300.0"),
        "2026/11/22 10:00:02.500, 2, 0.0",
    )
    tool(tmp_path, monkeypatch, "; ".join(f"echo '{line}'" for line in told) + "; exec sleep 60")
    with Meter(every=50) as meter:
        time.sleep(0.5)
    assert meter.joules == pytest.approx(1.5 * 150 + 1.5 * 300 + 1.0 * 100)
    said = (tmp_path / "arguments").read_text()
    assert "--id=2,3" in said and "--loop-ms=50" in said and "power.draw" in said


@pytest.mark.parametrize(
    "body",
    [
        "while true; do echo '2026/11/22 10:00:00.000, 0, [N/A]'; sleep 0.05; done",
        "echo 'NVIDIA-SMI has failed because it could not communicate with the driver.'; exit 9",
        "echo '2026/11/22 10:00:00.000, 0, 100.0'; exec sleep 60",  # once: over no time at all
    ],
)
def test_a_gpu_that_tells_no_power_has_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    tool(tmp_path, monkeypatch, body)
    with Meter() as meter:
        time.sleep(0.3)
    assert meter.joules is None


def test_without_the_tool_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with Meter() as meter:
        pass
    assert meter.joules is None and meter._tool is None


def test_the_tool_ends_with_what_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, monkeypatch, "trap '' TERM; exec sleep 60")
    meter = Meter()
    with pytest.raises(KeyError), meter:
        raise KeyError("work that fails")
    assert meter._tool is not None and meter._tool.returncode is not None
