"""docker-compose.yml built and started as a user does, the loop through it, and every container restarted meanwhile."""

import json
import re
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import pytest

from local.airflow_api import AirflowClient, AirflowError
from local.loop import DAGS
from local.settings import REPOSITORY
from tests.compose.project import JOBS, NAME, SERVERS, Project

pytestmark = [pytest.mark.compose, pytest.mark.slow]

REQUESTS = 60  # of each file
QUESTION = "What does the pass statement do?"


@pytest.fixture(scope="module")
def airflow(project: Project) -> AirflowClient:
    client = AirflowClient(project.airflow, "admin", project.values["AIRFLOW_ADMIN_PASSWORD"])
    client.wait_for_dags(DAGS)
    return client


def finish(client: AirflowClient, dag: str, run: str, approve: bool = False) -> list[dict[str, Any]]:
    """Return the tasks of a DAG run that succeeded; the API may be away meanwhile."""
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        time.sleep(1)
        try:
            state = client.run(dag, run)["state"]
            tasks = client.tasks(dag, run)
            if approve and any(task["state"] == "awaiting_input" for task in tasks):
                time.sleep(2)
                client.answer_approval(dag, run, "approve", "Approve", "the Compose test approves its own candidate")
        except (httpx.TransportError, httpx.HTTPStatusError):
            continue
        except AirflowError as error:
            if ": 500 " not in str(error):
                raise
            continue  # its database is away
        if state in {"success", "failed"}:
            failed = [task for task in tasks if task["state"] == "failed"]
            assert state == "success", "\n".join(client.log(dag, run, task)[-3000:] for task in failed)
            return tasks
    raise AssertionError(f"{dag} {run} did not end: {client.tasks(dag, run)}")


@pytest.mark.parametrize("name", ["gpu", "dev"])
def test_the_further_files_fit_the_first(name: str, project: Project) -> None:
    files = ["--file", "docker-compose.yml", "--file", f"docker-compose.{name}.yml"]
    found = json.loads(project.compose(*files, "config", "--format", "json").stdout)["services"]["airflow-scheduler"]
    if name == "gpu":
        assert found["build"]["args"]["FLAVOR"] == "cuda" and found["environment"]["DS_ACCELERATOR"] == "cuda"
        assert found["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    else:
        mounts = {mount["target"]: mount for mount in found["volumes"] if mount["type"] == "bind"}
        assert set(mounts) == {
            f"/opt/millrace/{each}" for each in ("dags", "examples", "expectations", "plugins", "tasks")
        }
        assert all(mount["read_only"] for mount in mounts.values())
        assert found["environment"]["MILLRACE_CODE_REVISION"] == "working-tree"


def test_everything_is_healthy(project: Project) -> None:
    states = project.states()
    assert set(states) == {*SERVERS, *JOBS}
    assert {states[name]["Health"] for name in SERVERS} == {"healthy"}
    assert {(states[name]["State"], states[name]["ExitCode"]) for name in JOBS} == {("exited", 0)}


def test_ports_are_on_this_machine_only(project: Project) -> None:
    bound = [each for name in SERVERS for each in project.states()[name]["Publishers"] if each["PublishedPort"]]
    assert {each["URL"] for each in bound} == {"127.0.0.1"}
    assert {each["TargetPort"] for each in bound} == {5000, 8000, 8080, 9464}


@pytest.mark.parametrize("service", SERVERS)
def test_a_container_may_little(project: Project, service: str) -> None:
    found = project.inspect(service)
    host = found["HostConfig"]
    assert host["ReadonlyRootfs"] and not host["Privileged"]
    assert host["CapDrop"] == ["ALL"] and host["SecurityOpt"] == ["no-new-privileges:true"]
    if service not in {"postgres", "s3"}:  # public images that begin as root; the one becomes postgres
        assert found["Config"]["User"] in {"50000:0", "10001:10001"}
        assert not host["CapAdd"]


def test_no_secret_of_another_is_in_a_container(project: Project) -> None:
    holders: dict[str, set[str]] = {}
    for name, value in project.values.items():
        if re.search(r"PASSWORD|SECRET|KEY$", name):
            holders[name] = {service for service in SERVERS if value in str(project.inspect(service)["Config"]["Env"])}
    assert holders["POSTGRES_PASSWORD"] == {"postgres"}
    assert holders["MLFLOW_DB_PASSWORD"] == {"mlflow"}
    assert holders["AIRFLOW_ADMIN_PASSWORD"] == {"airflow-api"}
    assert holders["ASSISTANT_KEY"] == holders["MILLRACE_SIGNING_KEY"] == {"airflow-scheduler"}
    assert "assistant" not in holders["AIRFLOW_DB_PASSWORD"] | holders["AIRFLOW_FERNET_KEY"]


def test_the_airflow_image_holds_no_torch_and_the_images_hold_no_weights(project: Project) -> None:
    found = project.compose("exec", "-T", "airflow-dag-processor", "python", "-c", "import torch", check=False)
    assert found.returncode == 1 and "No module named 'torch'" in found.stderr
    search = "find / -xdev \\( -name '*.safetensors' -o -name '*.gguf' \\) -size +1M 2>/dev/null"
    for service in ("airflow-dag-processor", "airflow-scheduler", "assistant", "mlflow"):
        found = project.compose("exec", "-T", service, "sh", "-c", search, check=False)
        assert found.stdout == "", service


def test_the_doctor_finds_nothing_to_mend(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", NAME)
    monkeypatch.setenv("COMPOSE_ENV_FILES", str(project.env_file))
    command = [sys.executable, "-m", "tasks", "doctor", "--ground", "compose", "--format", "json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {each["check"]: each["status"] for each in json.loads(done.stdout)["findings"]}
    assert {f"container {name}" for name in (*SERVERS, *JOBS)} < set(found)
    assert {"in it: versions", "in it: database", "in it: registry", "in it: base model"} < set(found)
    assert set(found.values()) == {"ok"}


def test_documents_become_an_index(project: Project, airflow: AirflowClient) -> None:
    airflow.trigger("sync_knowledge", "compose", {})
    finish(airflow, "sync_knowledge", "compose")
    assert project.query("millrace", "SELECT documents FROM index_versions WHERE status = 'current'") == ["78"]


def test_a_training_outlives_the_restart_of_every_container(project: Project, airflow: AirflowClient) -> None:
    """One after the other, each healthy again before the next, and always while a DAG run is under way."""
    before = project.query("millrace", "SELECT count(*) FROM chunks_v1")
    ended: dict[str, list[dict[str, Any]]] = {}

    def begin(dag: str, run: str) -> threading.Thread:
        airflow.trigger(dag, run, {})
        follower = threading.Thread(target=lambda: ended.update({run: finish(airflow, dag, run)}))
        follower.start()
        return follower

    followers = [begin("fine_tune", "compose")]
    for service in SERVERS:
        if not followers[-1].is_alive():  # a quick machine: the rest of the restarts happen to a run of another DAG
            followers.append(begin("sync_knowledge", f"while-{service}"))
        project.restart(service)
    for follower in followers:
        follower.join(900)
    assert len(ended) == len(followers), f"of {len(followers)} DAG runs only {sorted(ended)} succeeded"
    states = {task["task_id"]: task["state"] for task in ended["compose"]}
    assert states["train"] == states["evaluate"] == states["gate"] == "success"
    assert project.query("millrace", "SELECT count(*) FROM chunks_v1") == before
    assert airflow.run("sync_knowledge", "compose")["state"] == "success"


def promotion(airflow: AirflowClient) -> str:
    """Return the run of promote_release that was started by the candidate."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        for run in airflow.runs("promote_release"):
            proposal = airflow.reference("promote_release", run["dag_run_id"], "propose")
            if proposal and proposal["facts"].get("candidate"):
                return str(run["dag_run_id"])
        time.sleep(1)
    raise AssertionError("the candidate started no promotion")


def test_the_candidate_is_released_and_answers(project: Project, airflow: AirflowClient) -> None:
    finish(airflow, "promote_release", promotion(airflow), approve=True)
    deadline = time.monotonic() + 120
    while httpx.get(f"{project.assistant}/readyz", timeout=10).status_code != 200:
        assert time.monotonic() < deadline, "the assistant did not load the release"
        time.sleep(1)
    body = {"model": "millrace", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16}
    asked = f"{project.assistant}/v1/chat/completions"
    assert httpx.post(asked, json=body, timeout=60).status_code == 401
    key = {"Authorization": f"Bearer {project.values['ASSISTANT_KEY']}"}
    answer = httpx.post(asked, json=body, headers=key, timeout=120).raise_for_status().json()
    assert answer["choices"][0]["message"]["content"].strip() and answer["documents"]


def test_a_shift_of_the_requests_starts_a_dag(project: Project, airflow: AirflowClient) -> None:
    replay = ["python", "-m", "tasks", "replay", "--kind", "search", "--limit", str(REQUESTS)]
    project.compose("exec", "-T", "airflow-scheduler", *replay[:4], "examples/requests_before.jsonl", *replay[4:])
    since = project.query("millrace", "SELECT now() AT TIME ZONE 'UTC'")[0].replace(" ", "T") + "+00:00"
    project.compose("exec", "-T", "airflow-scheduler", *replay[:4], "examples/requests_after.jsonl", *replay[4:])
    airflow.trigger("watch_drift", "compose", {"since": since, "agree": 1})
    finish(airflow, "watch_drift", "compose")
    facts = airflow.reference("watch_drift", "compose", "decide")["facts"]
    # No reviewer has written corrections here: the documents are looked through once more.
    assert (facts["action"], facts["cause"]) == ("refresh_knowledge", "knowledge")
    assert airflow.run(facts["dag_id"], facts["dag_run_id"])["state"] in {"queued", "running", "success"}


def test_what_happened_is_in_the_metrics(project: Project) -> None:
    told = httpx.get(project.metrics, timeout=20).raise_for_status().text
    assert "millrace_database_up 1.0" in told
    assert re.search(r'^millrace_stage_last_complete_timestamp_seconds\{stage="train"\} 1\.', told, re.MULTILINE)
    assert re.search(r"^millrace_release_live_info\{.*\} 1\.0", told, re.MULTILINE)


def test_a_backup_is_made_and_read_again(project: Project) -> None:
    done = project.compose("run", "--build", "--rm", "backup", timeout=1800)
    told = done.stdout + done.stderr
    assert project.query("millrace", "SELECT status, problems, verified_at IS NOT NULL FROM backups") == [
        "complete|0|t"
    ]
    done = project.compose("run", "--rm", "backup", *["python", "-m", "tasks", "backups", "--at", "/backups"])
    assert "complete" in done.stdout, told


def test_it_goes_down_and_comes_back_with_its_data(project: Project) -> None:
    project.compose("down", "--timeout", "60")
    project.compose("up", "--wait", "--wait-timeout", "300")
    deadline = time.monotonic() + 120
    while (answer := httpx.get(f"{project.assistant}/readyz", timeout=10)).status_code != 200:
        assert time.monotonic() < deadline, answer.text
        time.sleep(1)
    assert answer.json()["release"] == 1
    requests = project.query("millrace", "SELECT count(*) FROM requests")
    assert int(requests[0]) == 2 * REQUESTS + 1
