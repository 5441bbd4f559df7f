"""A running Airflow for tests: scheduler with LocalExecutor, API server and DAG processor, and a client of its API."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.airflow_home import REPOSITORY

COMPONENTS = ("api-server --workers 1", "scheduler --skip-serve-logs", "dag-processor")
ENDED = {"success", "failed"}


class Airflow:
    """A client of the API of the running Airflow."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=f"{url}/api/v2", timeout=30)

    def log_in(self) -> None:
        token = httpx.post(f"{self.url}/auth/token", json={"username": "admin", "password": "admin"}).json()
        self.http.headers["Authorization"] = f"Bearer {token['access_token']}"

    def get(self, path: str) -> Any:
        return self.http.get(path).raise_for_status().json()

    def start(self, dag: str, run: str, **conf: Any) -> None:
        body = {"dag_run_id": run, "logical_date": None, "conf": conf}
        self.http.post(f"/dags/{dag}/dagRuns", json=body).raise_for_status()

    def clear(self, dag: str, run: str, task: str) -> None:
        body = {"dry_run": False, "dag_run_id": run, "task_ids": [task], "only_failed": False}
        self.http.post(f"/dags/{dag}/clearTaskInstances", json=body).raise_for_status()

    def states(self, dag: str, run: str) -> dict[str, str]:
        tasks = self.get(f"/dags/{dag}/dagRuns/{run}/taskInstances")["task_instances"]
        return {
            t["task_id"] + (f" {t['rendered_map_index']}" if t["map_index"] >= 0 else ""): t["state"] for t in tasks
        }

    def finish(self, dag: str, run: str, seconds: float = 120) -> tuple[str, dict[str, str]]:
        """Return the state of a run that has ended, and those of its tasks."""
        until(lambda: self.get(f"/dags/{dag}/dagRuns/{run}")["state"] in ENDED, seconds)
        return self.get(f"/dags/{dag}/dagRuns/{run}")["state"], self.states(dag, run)

    def log(self, dag: str, run: str, task: str, attempt: int = 1) -> list[str]:
        """Return the lines of the log of one try, with the texts of its exceptions."""
        path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/logs/{attempt}?full_content=true"
        content = self.get(path)["content"]
        lines = []
        for event in content:
            if isinstance(event, str):
                lines.append(event)
                continue
            lines.append(event["event"])
            lines += [f"{error['exc_type']}: {error['exc_value']}" for error in event.get("error_detail") or ()]
        return lines

    def healthy(self) -> bool:
        try:
            health = self.http.get("/monitor/health").json()
        except httpx.TransportError:
            return False
        return all(health[name]["status"] == "healthy" for name in ("scheduler", "dag_processor"))


def until(condition: Any, seconds: float = 120) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.3)


def environment(folder: Path, dags: Path, values: Mapping[str, str]) -> dict[str, str]:
    """Return what the parts of an Airflow run with, its data in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    folder.joinpath("passwords.json").write_text(json.dumps({"admin": "admin"}))
    ours = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return ours | {
        "AIRFLOW_HOME": str(folder), "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False", "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(folder / "passwords.json"),
        "AIRFLOW__API__HOST": "127.0.0.1", "AIRFLOW__API__PORT": str(port), "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API_AUTH__JWT_SECRET": "for this test only " * 4, "AIRFLOW__API__SECRET_KEY": "for this test only",
        # The files do not change while a test runs: to parse them every half minute only takes its processors.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1", "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
        "PYTHONPATH": str(REPOSITORY),
    } | dict(values)  # fmt: skip


def _ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for a component that was told to stop.

    The scheduler raises SystemExit in its signal handler; where the signal comes during a garbage collection, Python
    prints that as ignored, and the scheduler goes on. So it is told again.
    """
    for _ in range(3):
        try:
            process.wait(25)
            return
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
    process.wait(10)


@contextmanager
def running(folder: Path, values: dict[str, str], dags: int) -> Iterator[Airflow]:
    """Run an Airflow until the end of the block; it begins when so many DAGs are there."""
    command = [sys.executable, "-m", "airflow"]
    subprocess.run([*command, "db", "migrate"], env=values, check=True, capture_output=True)
    processes = [
        subprocess.Popen(
            [*command, *component.split()], env=values, cwd=folder, start_new_session=True,
            stdout=(folder / f"{component.split()[0]}.log").open("w"), stderr=subprocess.STDOUT,
        )
        for component in COMPONENTS
    ]  # fmt: skip
    client = Airflow(values["AIRFLOW__API__BASE_URL"])
    try:
        until(client.healthy)
        client.log_in()
        until(lambda: client.get("/dags")["total_entries"] == dags)
        yield client
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            _ended(process)
