"""Plugins in a running Airflow: scheduler, API server and DAG processor of its own, around the fixture stage.

What only a live scheduler shows: skipped and mapped tasks, asset events in templates, a person's answer,
a triggered DAG, and what is left of a stage when its task is marked failed.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.airflow_home import REPOSITORY
from tests.live_airflow import ENDED, Airflow, environment, running, until
from tests.observability.airflow_names import NAMES
from tests.observability.receiver import Receiver, receiving

pytestmark = [pytest.mark.airflow, pytest.mark.integration, pytest.mark.slow]
HERE = Path(__file__).parent


OTEL = REPOSITORY / "infra" / "monitoring" / "airflow-otel.env"


class Loop(Airflow):
    """The client, with what the DAGs of this folder need."""

    receiver: Receiver

    def command(self, dag: str, run: str, task: str) -> str:
        """Return the command line that a stage was started with, from its log."""
        return next(event for event in self.log(dag, run, task) if event.startswith("python -m fixture_stage"))

    def answer(self, run: str, option: str, dag: str = "release", task: str = "approve", **form: str | None) -> None:
        """Answer as a person does: seconds after the question, and again where it is asked again.

        An answer within the same second can overtake the scheduler's note that the asking process has ended;
        Airflow 3.3.2 then takes the resumed task for a killed one and its next try asks anew.
        """
        until(lambda: self.states(dag, run).get(task) == "awaiting_input")
        path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/-1/hitlDetails"
        body = {"chosen_options": [option], "params_input": form}

        def answered() -> bool:
            if self.states(dag, run)[task] == "awaiting_input":
                self.http.patch(path, json=body).raise_for_status()
            return self.states(dag, run)[task] in ENDED

        time.sleep(3)
        until(answered)


@pytest.fixture(scope="module")
def airflow(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    folder = tmp_path_factory.mktemp("airflow")
    path = {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{HERE / 'stages'}"}
    with receiving() as receiver:
        values = environment(folder, HERE / "live", stack.env | path | otel(receiver.address))
        with running(folder, values, dags=6) as client:
            loop = Loop(client.url)
            loop.log_in()
            loop.receiver = receiver
            yield loop
            # A run that an event started last would hold the scheduler's end up: its tasks try for a minute to tell the
            # API server, which ends at once, that they have ended.
            until(lambda: loop.get("/dags/~/dagRuns?state=queued&state=running")["total_entries"] == 0)


def otel(address: str) -> dict[str, str]:
    """Return the settings of infra/monitoring/airflow-otel.env, towards another receiver, and more often."""
    lines = [line for line in OTEL.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    often = {"OTEL_METRIC_EXPORT_INTERVAL": "1000", "AIRFLOW__SCHEDULER__TI_METRICS_INTERVAL": "1"}
    given = dict(line.split("=", 1) for line in lines)
    assert set(often) - set(given) == {"AIRFLOW__SCHEDULER__TI_METRICS_INTERVAL"}
    return given | often | {"OTEL_EXPORTER_OTLP_ENDPOINT": address}


def test_a_switch_makes_an_event_and_a_quiet_night_makes_none(airflow: Loop) -> None:
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
    assert "--reason=needs no person (MILLRACE_APPROVAL) --proposal-sha256=" in airflow.command(
        "release", run, "promote"
    )
    assert airflow.get("/assets/events")["total_entries"] == 1


def test_a_gate_that_says_no_is_a_success_without_a_candidate(airflow: Loop) -> None:
    events = airflow.get("/assets/events")["total_entries"]
    airflow.start("tune", "refused", end="refused")
    assert airflow.finish("tune", "refused") == ("success", {"gate": "skipped", "register": "skipped"})
    handed_on = airflow.get("/dags/tune/dagRuns/refused/taskInstances/gate/xcomEntries/return_value?deserialize=true")
    assert handed_on["value"]["reason"] == "too few rows"
    assert airflow.get("/assets/events")["total_entries"] == events


@pytest.mark.parametrize("option", ["Approve", "Reject"])
def test_a_person_decides(airflow: Loop, option: str) -> None:
    facts = {
        "needs_approval": True, "subject": "Release it's 7?", "body": "| a |\n|---|\n| 1 |",
        "approvers": [{"id": "admin", "name": "admin"}], "approval_hours": 1,
    }  # fmt: skip
    airflow.start("release", option, facts=json.dumps(facts))
    airflow.answer(option, option, reason="because $(SECRET)")
    state, tasks = airflow.finish("release", option)
    assert state == "success"
    assert tasks["promote"] == ("success" if option == "Approve" else "skipped")
    if option == "Approve":
        command = airflow.command("release", option, "promote")
        assert "--approved-by=admin --reason=because $(SECRET) --proposal-sha256=" in command
        digest = airflow.get(
            "/dags/release/dagRuns/Approve/taskInstances/propose/xcomEntries/return_value?deserialize=true"
        )
        assert command.endswith(f"={digest['value']['sha256']}")


def test_an_earlier_release_is_chosen_from_a_list(airflow: Loop) -> None:
    """The list is made in the run; Airflow keeps it with the question, and checks the answer against it."""
    facts = {"choose": True, "body": "| release |", "choices": {"2": "2: yesterday", "1": "1: before"}}
    airflow.start("back", "form", facts=json.dumps(facts))
    until(lambda: airflow.states("back", "form").get("choose") == "awaiting_input")
    asked = airflow.get("/dags/back/dagRuns/form/taskInstances/choose/-1/hitlDetails")
    assert asked["params"]["release"]["schema"]["values_display"]["1"] == "1: before"
    airflow.answer("form", "Restore", "back", "choose", release="1", reason="worse")
    assert airflow.finish("back", "form")[0] == "success"
    assert airflow.command("back", "form", "roll_back").endswith("--release=1 --reason=worse --approved-by=admin")


def test_a_decision_starts_its_dag_once(airflow: Loop) -> None:
    facts = {"dag_id": "", "dag_run_id": "", "conf": {}, "reason": "calm"}
    airflow.start("decide", "calm", facts=json.dumps(facts))
    assert airflow.finish("decide", "calm") == ("success", {"decide": "success", "trigger": "skipped"})
    facts = {
        "dag_id": "tune",
        "dag_run_id": "drift__7",
        "conf": {"decision": "7 <it's>"},
        "reason": "it moved\n" + "a question\n" * 200,
    }
    airflow.start("decide", "moved", facts=json.dumps(facts))
    assert airflow.finish("decide", "moved")[1]["trigger"] == "success"
    started = airflow.get("/dags/tune/dagRuns/drift__7")
    assert started["conf"] == {"decision": "7 <it's>"}
    assert started["note"] == "Started by drift, in [decide moved](/dags/decide/runs/moved): it moved"
    airflow.start("decide", "again", facts=json.dumps(facts))
    assert airflow.finish("decide", "again")[1]["trigger"] == "skipped"


def test_a_paused_dag_is_an_error_until_a_person_unpauses_it(airflow: Loop) -> None:
    facts = {"dag_id": "tune", "dag_run_id": "drift__8", "conf": {"decision": "8"}, "reason": "it moved"}
    airflow.http.patch("/dags/tune", json={"is_paused": True}).raise_for_status()
    airflow.start("decide", "paused", facts=json.dumps(facts))
    assert airflow.finish("decide", "paused") == ("failed", {"decide": "success", "trigger": "failed"})
    assert any(
        "Next: unpause tune, then clear this task." in line for line in airflow.log("decide", "paused", "trigger")
    )
    assert airflow.http.get("/dags/tune/dagRuns/drift__8").status_code == 404, "a run that would wait unseen"
    airflow.http.patch("/dags/tune", json={"is_paused": False}).raise_for_status()
    airflow.clear("decide", "paused", "trigger")
    assert airflow.finish("decide", "paused") == ("success", {"decide": "success", "trigger": "success"})
    assert airflow.finish("tune", "drift__8")[0] == "success"


def test_a_task_marked_failed_leaves_no_process_and_a_saved_checkpoint(airflow: Loop, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    airflow.start("hang", "marked", pids=str(pids))
    until(pids.exists)
    below = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    path = "/dags/hang/dagRuns/marked/taskInstances/train"
    airflow.http.patch(path, json={"new_state": "failed"}).raise_for_status()
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in below), 30)
    assert pids.with_suffix(".saved").exists()


def test_all_stages_of_a_run_are_in_the_trace_of_airflow(airflow: Loop) -> None:
    """The id that Airflow gave the DAG run arrives in each stage, is in its log, and is that of the exported spans."""
    found = {
        re.search(r"trace=00-([0-9a-f]{32})-", "\n".join(airflow.log("build", "busy", task))).group(1)  # type: ignore[union-attr]
        for task in ("plan", "check", "switch")
    }
    assert len(found) == 1

    def spans() -> set[str]:
        return {span.name for span in airflow.receiver.spans if span.trace_id.hex() in found}

    until(lambda: {"dag_run.build", "worker.plan", "worker.check", "worker.switch"} <= spans(), 30)


def test_the_metrics_that_rules_and_dashboard_name_arrive(airflow: Loop) -> None:
    metrics = airflow.receiver.metrics
    until(lambda: set(NAMES) <= set(metrics), 30)
    for name, labels in NAMES.items():
        assert metrics[name] == labels, name
    assert not [name for name in metrics if not name.startswith("airflow_")]
    assert not {label for labels in metrics.values() for label in labels} & {"run_id", "job_id", "hostname"}
