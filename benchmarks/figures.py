"""The benchmarks of the loop as a whole. Each runs in its own temporary stack on free ports."""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.result import Result
from benchmarks.stack import REPOSITORY, Demo, fresh_clone

WARM_MINUTES, FRESH_MINUTES, GIGABYTES = 8.0, 16.0, 6.0
IMPORT_SECONDS = 1.0
ORCHESTRATION_SHARE = 0.15

_IMPORT = """
import json, sys, time, pathlib, importlib.util
sys.path[:0] = ["plugins"]
import airflow, airflow.sdk
from airflow.sdk import dag
begun = time.perf_counter()
for path in sorted(pathlib.Path("dags").glob("*.py")):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
seconds = time.perf_counter() - begun
heavy = {"torch", "transformers", "deepspeed", "mlflow", "great_expectations", "evidently", "pandas"} & set(sys.modules)
print(json.dumps({"seconds": seconds, "heavy": sorted(heavy)}))
"""


def demo_time() -> Result:
    """`make demo`: minutes with the environment made and from a fresh clone, and memory of all processes."""
    with tempfile.TemporaryDirectory() as folder:
        clone = fresh_clone(Path(folder))
        fresh = Demo(clone, Path(folder) / "pip").run()
        warm = Demo(clone, Path(folder) / "pip").run()
    worst = max(fresh.peak_gigabytes, warm.peak_gigabytes)
    minutes = warm.seconds / 60, fresh.seconds / 60
    return Result(
        figure=f"{minutes[0]:.1f} min warm, {minutes[1]:.1f} min fresh, {worst:.1f} GB",
        bound=f"{WARM_MINUTES:g} min, {FRESH_MINUTES:g} min, {GIGABYTES:g} GB",
        holds=minutes[0] <= WARM_MINUTES and minutes[1] <= FRESH_MINUTES and worst <= GIGABYTES,
        details=[f"warm, seconds a step: {json.dumps(warm.kept['findings_seconds'])}"],
    )


def dag_import() -> Result:
    """Importing all DAGs, after Airflow itself is imported: seconds (best of 5), and no heavy package."""
    found = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        found.append(json.loads(done.stdout.strip().splitlines()[-1]))
    best, median = min(f["seconds"] for f in found), statistics.median(f["seconds"] for f in found)
    heavy = found[0]["heavy"]
    return Result(
        figure=f"{best:.3f} s, heavy packages: {', '.join(heavy) or 'none'}",
        bound=f"{IMPORT_SECONDS:g} s, none",
        holds=best < IMPORT_SECONDS and not heavy,
        details=[f"median of 5: {median:.3f} s"],
    )


def orchestration() -> Result:
    """What Airflow adds to the stages' own time in the demo, as a share of the stages' time."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Demo(REPOSITORY, None, data=Path(folder) / "data").run().kept
    wall = own = 0.0
    details = []
    for step, run in kept["runs"].items():
        seconds = _seconds(run["start_date"], run["end_date"])
        stages = _union([(r["command_started_at"], r["command_ended_at"]) for r in kept["references"][step].values()])
        wall, own = wall + seconds, own + stages
        details.append(f"{step}: run {seconds:.1f} s, its stages {stages:.1f} s")
    share = (wall - own) / own
    return Result(
        f"{share:.1%} of the stages' time", f"{ORCHESTRATION_SHARE:.0%}", share <= ORCHESTRATION_SHARE, details
    )


def noop_rerun() -> Result:
    """A second sync embeds 0 chunks; a second fine-tuning with the same inputs trains 0 steps."""
    from benchmarks.stack import running_stack

    with tempfile.TemporaryDirectory() as folder, running_stack(Path(folder) / "data") as stack:
        runs = {dag: [stack.run(dag, conf) for _ in range(2)] for dag, conf in _TWICE.items()}
    embedded = [_total(refs, "index_documents", "embedded") for refs in runs["sync_knowledge"]]
    steps = [_total(refs, "train", "steps") for refs in runs["fine_tune"]]
    return Result(
        figure=f"{embedded[1]} chunks embedded, {steps[1]} steps trained the second time",
        bound="0 and 0, after more than 0 and more than 0",
        holds=embedded[1] == 0 and steps[1] == 0 and embedded[0] > 0 and steps[0] > 0,
        details=[f"the first time: {embedded[0]} chunks, {steps[0]} steps"],
    )


_TWICE: dict[str, dict[str, Any]] = {"sync_knowledge": {}, "fine_tune": {"recipe": "smoke_cpu"}}


def _total(references: dict[str, dict[str, Any]], task: str, count: str) -> int:
    return sum(r["counts"].get(count, 0) for name, r in references.items() if name.split("[")[0] == task)


def _seconds(start: str, end: str) -> float:
    from datetime import datetime

    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _union(intervals: list[tuple[str, str]]) -> float:
    """Return the seconds covered by at least one interval: stages that run side by side count once."""
    total, reached = 0.0, ""
    for start, end in sorted(intervals):
        if end > reached:
            total += _seconds(max(start, reached) if reached else start, end)
            reached = end
    return total
