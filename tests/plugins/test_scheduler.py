"""Plugins in a running Airflow: scheduler, API server and DAG processor of its own, around the fixture stage.

What only a live scheduler shows: skipped and mapped tasks, asset events in templates, a person's answer,
a triggered DAG, and what is left of a stage when its task is marked failed.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

pytestmark = [pytest.mark.airflow, pytest.mark.integration, pytest.mark.slow]
HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
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

    def states(self, dag: str, run: str) -> dict[str, str]:
        tasks = self.get(f"/dags/{dag}/dagRuns/{run}/taskInstances")["task_instances"]
        return {
            t["task_id"] + (f" {t['rendered_map_index']}" if t["map_index"] >= 0 else ""): t["state"] for t in tasks
        }

    def finish(self, dag: str, run: str) -> tuple[str, dict[str, str]]:
        """Return the state of a run that has ended, and those of its tasks."""
        until(lambda: self.get(f"/dags/{dag}/dagRuns/{run}")["state"] in ENDED)
        return self.get(f"/dags/{dag}/dagRuns/{run}")["state"], self.states(dag, run)

    def command(self, dag: str, run: str, task: str) -> str:
        """Return the command line that a stage was started with, from its log."""
        content = self.get(f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/logs/1?full_content=true")["content"]
        events = [event["event"] if isinstance(event, dict) else str(event) for event in content]
        return next(event for event in events if event.startswith("python -m fixture_stage"))

    def answer(self, run: str, option: str, reason: str | None) -> None:
        """Answer as a person does: seconds after the question, and again where it is asked again.

        An answer within the same second can overtake the scheduler's note that the asking process has ended;
        Airflow 3.3.2 then takes the resumed task for a killed one and its next try asks anew.
        """
        until(lambda: self.states("release", run).get("approve") == "awaiting_input")
        path = f"/dags/release/dagRuns/{run}/taskInstances/approve/-1/hitlDetails"
        body = {"chosen_options": [option], "params_input": {"reason": reason}}

        def answered() -> bool:
            if self.states("release", run)["approve"] == "awaiting_input":
                self.http.patch(path, json=body).raise_for_status()
            return self.states("release", run)["approve"] in ENDED

        time.sleep(3)
        until(answered)


def until(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.3)


def environment(folder: Path, stack: Any) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    folder.joinpath("passwords.json").write_text(json.dumps({"admin": "admin"}))
    ours = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    return ours | stack.env | {
        "AIRFLOW_HOME": str(folder), "AIRFLOW__CORE__DAGS_FOLDER": str(HERE / "live"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False", "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(folder / "passwords.json"),
        "AIRFLOW__API__HOST": "127.0.0.1", "AIRFLOW__API__PORT": str(port), "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API_AUTH__JWT_SECRET": "for this test only " * 4, "AIRFLOW__API__SECRET_KEY": "for this test only",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1", "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{HERE / 'stages'}",
    }  # fmt: skip


@pytest.fixture(scope="module")
def airflow(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    folder = tmp_path_factory.mktemp("airflow")
    values = environment(folder, stack)
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
        until(lambda: answers(client))
        client.log_in()
        until(lambda: client.get("/dags")["total_entries"] == 5)
        yield client
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            process.wait(60)


def answers(client: Airflow) -> bool:
    try:
        health = client.http.get("/monitor/health").json()
    except httpx.TransportError:
        return False
    return all(health[name]["status"] == "healthy" for name in ("scheduler", "dag_processor"))


def test_a_switch_makes_an_event_and_a_quiet_night_makes_none(airflow: Airflow) -> None:
    airflow.start("build", "quiet", end="noop", facts=json.dumps({"parts": []}))
    state, tasks = airflow.finish("build", "quiet")
    assert state == "success"
    assert (tasks["make"], tasks["check"], tasks["switch"]) == ("skipped", "success", "skipped")
    airflow.start("build", "busy")
    state, tasks = airflow.finish("build", "busy")
    assert state == "success"
    assert tasks["make 0000"] == tasks["make 0001"] == tasks["switch"] == "success"
    # The event starts a release, and its manifest is the option of the proposal.
    until(lambda: airflow.get("/dags/release/dagRuns")["total_entries"] > 0)
    run = airflow.get("/dags/release/dagRuns")["dag_runs"][0]["dag_run_id"]
    assert airflow.finish("release", run)[0] == "success"
    assert "--index=s3://millrace/runs/build/busy/switch/manifest.json" in airflow.command("release", run, "propose")
    assert "--candidate" not in airflow.command("release", run, "propose")
    assert airflow.command("release", run, "promote").endswith("--reason=needs no person (MILLRACE_APPROVAL)")
    assert airflow.get("/assets/events")["total_entries"] == 1


def test_a_gate_that_says_no_is_a_success_without_a_candidate(airflow: Airflow) -> None:
    events = airflow.get("/assets/events")["total_entries"]
    airflow.start("tune", "refused", end="refused")
    assert airflow.finish("tune", "refused") == ("success", {"gate": "skipped", "register": "skipped"})
    handed_on = airflow.get("/dags/tune/dagRuns/refused/taskInstances/gate/xcomEntries/return_value?deserialize=true")
    assert handed_on["value"]["reason"] == "too few rows"
    assert airflow.get("/assets/events")["total_entries"] == events


@pytest.mark.parametrize("option", ["Approve", "Reject"])
def test_a_person_decides(airflow: Airflow, option: str) -> None:
    facts = {"needs_approval": True, "subject": "Release it's 7?", "body": "| a |\n|---|\n| 1 |"}
    airflow.start("release", option, facts=json.dumps(facts))
    airflow.answer(option, option, "because $(SECRET)")
    state, tasks = airflow.finish("release", option)
    assert state == "success"
    assert tasks["promote"] == ("success" if option == "Approve" else "skipped")
    if option == "Approve":
        command = airflow.command("release", option, "promote")
        assert command.endswith("--approved-by=admin --reason=because $(SECRET)")


def test_a_decision_starts_its_dag_once(airflow: Airflow) -> None:
    facts = {"dag_id": "", "dag_run_id": "", "conf": {}, "reason": "calm"}
    airflow.start("decide", "calm", facts=json.dumps(facts))
    assert airflow.finish("decide", "calm") == ("success", {"decide": "success", "trigger": "skipped"})
    facts = {"dag_id": "tune", "dag_run_id": "drift__7", "conf": {"decision": "7 <it's>"}, "reason": "it moved"}
    airflow.start("decide", "moved", facts=json.dumps(facts))
    assert airflow.finish("decide", "moved")[1]["trigger"] == "success"
    started = airflow.get("/dags/tune/dagRuns/drift__7")
    assert started["conf"] == {"decision": "7 <it's>"}
    assert started["note"] == "Started by drift: it moved"
    airflow.start("decide", "again", facts=json.dumps(facts))
    assert airflow.finish("decide", "again")[1]["trigger"] == "skipped"


def test_a_task_marked_failed_leaves_no_process_and_a_saved_checkpoint(airflow: Airflow, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    airflow.start("hang", "marked", pids=str(pids))
    until(pids.exists)
    below = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    path = "/dags/hang/dagRuns/marked/taskInstances/train"
    airflow.http.patch(path, json={"new_state": "failed"}).raise_for_status()
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in below), 30)
    assert pids.with_suffix(".saved").exists()
