"""What a benchmark ends with, and where it is kept."""

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Result:
    """A figure as a person reads it, its bound, and whether it holds."""

    figure: str
    bound: str
    holds: bool
    details: list[str] = field(default_factory=list)


class NotMeasured(Exception):
    """This machine lacks what the benchmark measures: there is no figure, and nothing is kept."""


def machine() -> str:
    """Describe this machine: processor, cores, memory, system."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    found = [
        line.split(":", 1)[1].strip() for card in cards for line in card.read_text().splitlines() if "Model" in line
    ]
    gpus = f", {len(found)} x {found[0]}" if found else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB{gpus}, {platform.system()} {platform.release()}"


def keep(name: str, result: Result) -> None:
    """Append the result to `results/NAME.jsonl`."""
    RESULTS.mkdir(exist_ok=True)
    row = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), **asdict(result)}
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, sort_keys=True) + "\n")
