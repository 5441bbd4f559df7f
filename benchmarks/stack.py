"""A stack and a demo of their own for a benchmark: temporary folder, free ports, memory watched."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from local.checks import free_port_base

REPOSITORY = Path(__file__).resolve().parent.parent


def fresh_clone(folder: Path) -> Path:
    """Clone the committed state of this repository into an empty folder."""
    target = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(target)], check=True)
    return target


@dataclass(frozen=True)
class DemoResult:
    """Seconds and peak memory of one `make demo`, and what it kept."""

    seconds: float
    peak_gigabytes: float
    kept: dict[str, Any]


class Demo:
    """One `make demo` in a repository folder, with its data deleted before and its stack stopped after."""

    def __init__(self, repository: Path, pip_cache: Path | None, data: Path | None = None) -> None:
        self.repository = repository
        self.data = data or repository / ".millrace"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("MILLRACE_")},
            "MILLRACE_LOCAL_DIR": str(self.data),
            "MILLRACE_LOCAL_PORT_BASE": str(free_port_base()),
            **({"PIP_CACHE_DIR": str(pip_cache)} if pip_cache else {}),
        }

    def run(self) -> DemoResult:
        """Run it; raise CalledProcessError when it fails."""
        shutil.rmtree(self.data, ignore_errors=True)
        watch = _Memory()
        begun = time.monotonic()
        try:
            subprocess.run(["make", "demo"], cwd=self.repository, env=self.environment, check=True)
            seconds = time.monotonic() - begun
            kept = json.loads((self.data / "demo.json").read_text(encoding="utf-8"))
        finally:
            peak = watch.stop()
            subprocess.run(["make", "down"], cwd=self.repository, env=self.environment, check=True)
        return DemoResult(seconds, peak, {**kept, "findings_seconds": kept["seconds_by_step"]})


class _Memory(threading.Thread):
    """Samples the PSS of everything that was started after it: PSS counts shared pages once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._before = set(psutil.pids())
        self._peak = 0
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        """Sample every two seconds."""
        while not self._ended.wait(2):
            total = 0
            for process in psutil.process_iter():
                if process.pid in self._before:
                    continue
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue  # it ended between being listed and being measured
            self._peak = max(self._peak, total)

    def stop(self) -> float:
        """Return the peak in GB (10^9 bytes)."""
        self._ended.set()
        self.join()
        return self._peak / 1e9


class RunningStack:
    """A stack that is up, with DAG runs by name."""

    def __init__(self, airflow: Any, loop: Any) -> None:
        self._airflow, self._loop, self._count = airflow, loop, 0

    def run(self, dag_id: str, conf: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Run a DAG to its end and return its references by task."""
        self._count += 1
        step = f"{dag_id} {self._count}"
        self._loop.stamp = f"{self._loop.stamp.split('-')[0]}-{self._count}"
        self._loop._dag(step, dag_id, conf)
        return dict(self._loop.findings.references[step])


@contextmanager
def running_stack(data: Path) -> Iterator[RunningStack]:
    """Bring a stack up in `data`; stop it at the end of the block."""
    from local.airflow_api import AirflowClient
    from local.loop import DAGS, Loop, password
    from local.progress import Progress
    from local.settings import read_environment_file

    base = free_port_base()
    environment = {**os.environ, "MILLRACE_LOCAL_DIR": str(data), "MILLRACE_LOCAL_PORT_BASE": str(base)}
    command = [sys.executable, "-m", "local"]
    subprocess.run([*command, "up"], cwd=REPOSITORY, env=environment, check=True)
    try:
        found = {**environment, **read_environment_file(data / "env")}
        airflow = AirflowClient(f"http://127.0.0.1:{base + 1}", "admin", password(data))
        airflow.wait_for_dags(DAGS)
        yield RunningStack(airflow, Loop(airflow, found, Progress({}, data / "times.json")))
    finally:
        subprocess.run([*command, "down"], cwd=REPOSITORY, env=environment, check=True)
