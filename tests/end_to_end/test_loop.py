"""The loop through a real Airflow scheduler: the whole embedded stack, real documents, a real model, a short recipe."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.airflow_api import AirflowClient
from local.checks import free_port_base
from local.loop import DAGS, EXPECTED, Findings, Loop, password
from local.progress import Progress
from local.settings import read_environment_file
from local.summary import render
from tasks.settings import REPOSITORY
from tests.hurry import hurry
from tests.short_loop import ShortLoop

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]

REQUESTS = 120  # of each file: enough for a window that is judged


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The whole stack on free ports in a temporary folder; yields its environment."""
    folder = tmp_path_factory.mktemp("millrace")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")},
        "MILLRACE_LOCAL_DIR": str(folder),
        "MILLRACE_LOCAL_PORT_BASE": str(free_port_base()),
        "MILLRACE_RECIPE": "smoke_cpu",
    }
    command = [sys.executable, "-m", "local"]
    up = subprocess.run([*command, "up"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        found = read_environment_file(folder / "env")
        hurry(found["MILLRACE_DATABASE_URL"])
        yield {**environment, **found}
    finally:
        subprocess.run([*command, "down"], cwd=REPOSITORY, env=environment, check=True)


@pytest.fixture(scope="module")
def airflow(stack: dict[str, str]) -> AirflowClient:
    port = int(stack["MILLRACE_LOCAL_PORT_BASE"]) + 1
    return AirflowClient(f"http://127.0.0.1:{port}", "admin", password(Path(stack["MILLRACE_LOCAL_DIR"])))


@pytest.fixture(scope="module")
def findings(stack: dict[str, str], airflow: AirflowClient) -> Findings:
    """What one pass through the loop found."""
    airflow.wait_for_dags(DAGS)
    return ShortLoop(airflow, stack, Progress(EXPECTED, Path(stack["MILLRACE_LOCAL_DIR"]) / "times.json")).run(REQUESTS)


def test_documents_became_a_checked_index(findings: Findings) -> None:
    stages = findings.references["knowledge"]
    assert stages["list_documents"]["counts"]["documents"] == 79
    assert stages["check_index"]["metrics"]["recall_at_5"] >= 0.6
    assert stages["switch_index"]["facts"]["version"] >= 1


def test_a_model_was_trained_and_judged(findings: Findings) -> None:
    stages = findings.references["fine-tuning"]
    assert stages["train"]["counts"]["steps"] > 0
    assert stages["train"]["metrics"]["loss_end"] < stages["train"]["metrics"]["loss_start"]
    assert stages["evaluate"]["facts"]["output_changed"] is True
    assert stages["evaluate"]["metrics"]["difference_high"] < 0
    assert stages["evaluate"]["facts"]["left_out"] == {}
    assert stages["evaluate"]["facts"]["sets"]["golden"]["rows"] == 4
    assert (
        stages["evaluate"]["facts"]["index_version"]
        == findings.references["knowledge"]["switch_index"]["facts"]["version"]
    )
    assert 0 < stages["evaluate"]["metrics"]["candidate_token_f1"] <= 1
    assert stages["gate"]["facts"]["verdict"] == "promote"


def test_the_release_answers_with_its_documents(findings: Findings) -> None:
    assert len(findings.answers) == 3
    for answer in findings.answers:
        assert answer["choices"][0]["message"]["content"].strip()
        assert answer["documents"]


def test_the_shift_was_found_and_started_a_dag(findings: Findings) -> None:
    assert findings.replays["before"]["answered"] == REQUESTS
    assert findings.replays["after"]["answered"] == REQUESTS
    decision = findings.references["drift"]["decide"]["facts"]
    assert decision["action"] == "train_again"
    assert findings.started is not None
    assert findings.started["dag_run_id"] == decision["dag_run_id"]
    assert findings.feedback == 16
    learned = findings.references["retraining"]["build_dataset"]["counts"]["feedback_train"]
    assert learned == 12, "half of 24 rows, as the mix of the recipe says"


def test_the_summary_fits_a_screen(findings: Findings) -> None:
    text = render(findings, {"Airflow": "http://127.0.0.1"}, 60.0)
    assert len(text.splitlines()) <= 50
    assert "not measured" not in text


def test_a_second_sync_embeds_nothing(findings: Findings, airflow: AirflowClient, stack: dict[str, str]) -> None:
    loop = Loop(airflow, stack, Progress({}, Path(stack["MILLRACE_LOCAL_DIR"]) / "times.json"))
    loop._dag("again", "sync_knowledge", {})
    stages = loop.findings.references["again"]
    assert stages["check_index"]["facts"]["noop"] is True
    assert not any(name.startswith("index_documents") for name in stages)
    assert (
        stages["switch_index"]["facts"]["version"]
        == findings.references["knowledge"]["switch_index"]["facts"]["version"]
    )
