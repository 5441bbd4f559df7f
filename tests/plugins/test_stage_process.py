"""The process launcher against a real S3, with real processes: what each end of a stage means to Airflow."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.airflow]
STAGES = Path(__file__).parent / "stages"


class Accessor(dict[Any, Any]):
    """Outlet events, as a task sees them."""

    def __missing__(self, asset: Any) -> Any:
        self[asset] = SimpleNamespace(extra={})
        return self[asset]


class Told:
    """A task instance that remembers what it was told."""

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


@pytest.fixture
def context() -> dict[str, Any]:
    run = SimpleNamespace(dag_id="tests", run_id=f"manual__2026-11-20T01:02:03+00:00_{uuid.uuid4()}")
    return {"dag_run": run, "ti": Told(), "outlet_events": Accessor()}


@pytest.fixture
def environment(stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", f"{STAGES}")


def stage(end: str, **arguments: Any) -> Any:
    from millrace_process import ProcessStage

    class FixtureStage(ProcessStage):
        module = "fixture_stage"

    options = {"end": end, **arguments.pop("options", {})}
    return FixtureStage(task_id="tried", stage="tried", options=options, grace=5, **arguments)


def run(operator: Any, context: dict[str, Any]) -> Any:
    """Run as the task runner does, without its guard against calls from elsewhere."""
    return type(operator).execute.__wrapped__(operator, context)


@pytest.mark.integration
def test_a_complete_stage_hands_its_reference_on(environment: None, context: dict[str, Any]) -> None:
    from airflow.sdk import Asset

    asset = Asset(name="made", uri="x-millrace://made")
    reference = run(stage("complete", outlets=[asset]), context)
    folder = f"s3://millrace/runs/tests/{context['dag_run'].run_id.replace(':', '_').replace('+', '_')}"
    assert reference["manifest"] == f"{folder}/tried/manifest.json"
    assert reference["status"] == "complete"
    assert context["outlet_events"][asset].extra["manifest"] == reference["manifest"]
    assert context["outlet_events"][asset].extra["counts"] == {"rows": 1}


@pytest.mark.integration
def test_a_part_has_a_folder_of_its_own(environment: None, context: dict[str, Any]) -> None:
    reference = run(stage("complete", part="0001"), context)
    assert reference["manifest"].endswith("/tried/part-0001/manifest.json")


@pytest.mark.integration
@pytest.mark.parametrize("end", ["nothing", "tampered"])
def test_exit_code_0_alone_proves_nothing(environment: None, context: dict[str, Any], end: str) -> None:
    from airflow.sdk.exceptions import AirflowException, AirflowFailException

    with pytest.raises(AirflowException, match="no manifest|did not leave what it claims") as caught:
        run(stage(end), context)
    assert not isinstance(caught.value, AirflowFailException)  # it is tried again


@pytest.mark.integration
def test_exit_code_3_needs_the_refusal_in_writing(environment: None, context: dict[str, Any]) -> None:
    from airflow.sdk.exceptions import AirflowException, AirflowSkipException

    with pytest.raises(AirflowException, match="status refused .* found no manifest") as caught:
        run(stage("code-3", on_refusal="skip"), context)
    assert not isinstance(caught.value, AirflowSkipException)


@pytest.mark.integration
@pytest.mark.parametrize(("on_refusal", "error"), [("skip", "AirflowSkipException"), ("fail", "AirflowFailException")])
def test_a_refusal_skips_or_fails_and_stays_readable(
    environment: None, context: dict[str, Any], on_refusal: str, error: str
) -> None:
    from airflow.sdk import exceptions

    with pytest.raises(getattr(exceptions, error), match="too few rows"):
        run(stage("refused", on_refusal=on_refusal), context)
    assert context["ti"].pushed["return_value"]["reason"] == "too few rows"


@pytest.mark.integration
def test_a_fact_can_skip_without_an_asset_event(environment: None, context: dict[str, Any]) -> None:
    from airflow.sdk import Asset
    from airflow.sdk.exceptions import AirflowSkipException

    operator = stage("noop", skip_when="noop", outlets=[Asset(name="made", uri="x-millrace://made")])
    with pytest.raises(AirflowSkipException, match="noop"):
        run(operator, context)
    assert context["ti"].pushed["return_value"]["status"] == "complete"
    assert not context["outlet_events"]


@pytest.mark.parametrize(("code", "retried"), [(2, False), (75, True), (1, True)])
def test_other_exit_codes(monkeypatch: pytest.MonkeyPatch, context: dict[str, Any], code: int, retried: bool) -> None:
    from airflow.sdk.exceptions import AirflowException, AirflowFailException

    monkeypatch.setenv("PYTHONPATH", f"{STAGES}")
    with pytest.raises(AirflowException, match=f"expected better, found code-{code}") as caught:
        run(stage(f"code-{code}"), context)
    assert isinstance(caught.value, AirflowFailException) is not retried


@pytest.mark.integration
def test_the_stage_does_not_see_what_belongs_to_airflow(
    environment: None, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "secret")
    lines = logged(stage("environment"), context, monkeypatch)
    assert "[]" in [text for _level, text in lines]
    assert (30, "2026-11-20 10:00:00,000 WARNING fixture a line of its log") in lines


def logged(operator: Any, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Run an operator; return level and text of each line of its log."""
    lines: list[tuple[int, str]] = []
    log = SimpleNamespace(log=lambda level, _form, text: lines.append((level, text)), info=lambda *_: None)
    monkeypatch.setattr(type(operator), "log", log)
    run(operator, context)
    return lines


# ---- stopping: a worker in a process of its own, so that it can be killed ----

WORKER = """
import signal, sys
sys.path[:0] = {path!r}
from types import SimpleNamespace
from millrace_process import ProcessStage
class FixtureStage(ProcessStage):
    module = "fixture_stage"
operator = FixtureStage(task_id="t", stage="t", grace={grace}, options={options!r})
signal.signal(signal.SIGTERM, lambda *_: operator.on_kill())
run = SimpleNamespace(dag_id="tests", run_id={run!r})
FixtureStage.execute.__wrapped__(operator, {{"dag_run": run}})
"""


class Worker:
    """A process that runs one lingering stage, with the ids of everybody below it."""

    def __init__(self, folder: Path, run: str, grace: int = 5, **options: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.pids_file = folder / "pids"
        values = {"end": "linger", "pids": str(self.pids_file), **options}
        code = WORKER.format(path=sys.path, grace=grace, options=values, run=run)
        environment = os.environ | {"PYTHONPATH": f"{STAGES}"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip

    def below(self) -> list[psutil.Process]:
        """Return the warden, the stage and its children, once they run."""
        wait_for(self.pids_file.exists)
        stage_pids = [int(line) for line in self.pids_file.read_text().split()]
        return [psutil.Process(pid) for pid in (*stage_pids, psutil.Process(stage_pids[0]).ppid())]

    @property
    def saved(self) -> bool:
        return self.pids_file.with_suffix(".saved").exists()


def wait_for(condition: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    workers: list[Worker] = []

    def begin(name: str = "one", run: str | None = None, **options: Any) -> Worker:
        workers.append(Worker(tmp_path / name, run or str(uuid.uuid4()), **options))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.process.kill()
        worker.process.wait()


def test_sigterm_stops_the_whole_tree_after_it_saved(start: Any) -> None:
    worker = start()
    below = worker.below()
    worker.process.send_signal(signal.SIGTERM)
    output, _ = worker.process.communicate(timeout=30)
    assert "asks to be tried again (exit code 75)" in output
    assert worker.saved
    assert gone(below)  # also the child that moved to a session of its own


def test_a_deaf_stage_is_killed_after_the_grace_period(start: Any) -> None:
    worker = start(grace=1, deaf="yes")
    below = worker.below()
    worker.process.send_signal(signal.SIGTERM)
    output, _ = worker.process.communicate(timeout=30)
    assert "exit code 137" in output
    assert gone(below)


def test_a_killed_worker_leaves_nobody_behind_and_the_checkpoint_is_saved(start: Any) -> None:
    worker = start()
    below = worker.below()
    os.killpg(worker.process.pid, signal.SIGKILL)  # as Airflow does five seconds after SIGTERM
    worker.process.wait()
    wait_for(lambda: gone(below))
    assert worker.saved


def test_a_killed_warden_leaves_no_stage_behind(start: Any) -> None:
    worker = start()
    stage_process, _child, _elsewhere, warden = worker.below()
    warden.kill()
    wait_for(lambda: gone([stage_process]))
    for process in (_child, _elsewhere):
        process.kill()  # nobody is left who could; a container's end would


def test_a_new_attempt_waits_for_the_one_before(start: Any) -> None:
    run = str(uuid.uuid4())
    first = start("first", run)
    below = first.below()
    second = start("second", run)
    assert any("waiting for the attempt before to end" in line for line in second.process.stdout)
    assert not second.pids_file.exists()
    os.killpg(first.process.pid, signal.SIGKILL)
    second.below()
    assert gone(below)
