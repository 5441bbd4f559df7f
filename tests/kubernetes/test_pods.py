"""How pods end on a real cluster, and what the task makes of it: a small stage in the real image, on the GPU node.

Every test ends with no pod of its run left behind.
"""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.kubernetes.cluster import GPU_NODE, wait_for
from tests.live_airflow import Airflow

pytestmark = [pytest.mark.kubernetes, pytest.mark.airflow, pytest.mark.slow]
TASK = "tried"


class Run:
    """One DAG run with one task, and its pods."""

    def __init__(self, airflow: Airflow, cluster: Any, dag: str, name: str, **conf: Any) -> None:
        self.airflow, self.cluster, self.dag, self.name = airflow, cluster, dag, name
        airflow.start(dag, name, **conf)

    def pod(self) -> Any:
        return self.cluster.running(self.name)

    def task(self) -> dict[str, Any]:
        found: dict[str, Any] = self.airflow.get(f"/dags/{self.dag}/dagRuns/{self.name}/taskInstances/{TASK}")
        return found

    def log(self, attempt: int = 1) -> str:
        return "\n".join(self.airflow.log(self.dag, self.name, TASK, attempt))

    def says(self, text: str, seconds: float = 60, attempt: int = 1) -> None:
        """Wait until the task log says so, while it runs."""
        wait_for(lambda: self.task()["try_number"] >= attempt and text in self.log(attempt), seconds)

    def finish(self, seconds: float = 180) -> str:
        """Return how the run ended; nothing is left of it."""
        state = self.airflow.finish(self.dag, self.name, seconds)[0]
        wait_for(lambda: not self.cluster.pods(self.name), 30)
        return state

    def kill_worker(self) -> None:
        """Kill the task and the worker that watches it, as the kernel does with what needs too much memory."""
        process = psutil.Process(self.task()["pid"])
        worker = process.parent()
        for each in (worker, process):
            os.kill(each.pid, signal.SIGKILL)


@pytest.fixture
def run(airflow: Airflow, cluster: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    def start(dag: str, name: str = "", **conf: Any) -> Run:
        # A run id that is a label of its pods as it stands: short, and letters at both ends.
        return Run(airflow, cluster, dag, f"{request.node.name[-36:].strip('_')}-{int(time.time())}{name}", **conf)

    return start


def test_a_pod_on_the_gpu_node_hands_on_what_it_made(run: Any) -> None:
    tried = run("once", gpus=2, seconds=8)
    pod = tried.pod()
    assert pod.spec.node_name == GPU_NODE
    assert pod.spec.containers[0].resources.limits["nvidia.com/gpu"] == "2"
    tried.says("second 1 of 8")  # while it runs
    assert tried.finish() == "success"
    log = tried.log()
    assert "second 7 of 8" in log
    assert log.count("second 3 of 8") == 1
    assert "a line of its log" in log
    path = f"/dags/once/dagRuns/{tried.name}/taskInstances/{TASK}/xcomEntries/return_value?deserialize=true"
    assert tried.airflow.get(path)["value"]["status"] == "complete"


def test_exit_code_0_without_a_manifest_is_a_failure(run: Any) -> None:
    tried = run("once", end="nothing")
    assert tried.finish() == "failed"
    assert "found no manifest" in tried.log()


def test_out_of_memory_is_tried_again_and_named(run: Any) -> None:
    tried = run("again", end="memory", gpus=0)
    assert tried.finish() == "success"
    assert tried.task()["try_number"] == 2
    assert "OOMKilled (exit code 137)" in tried.log()


def test_an_image_that_does_not_exist_is_told_within_a_minute(run: Any) -> None:
    tried = run("once", image="localhost:1/nobody/nothing:none")
    tried.says("ErrImagePull", seconds=60)
    assert tried.finish(90) == "failed"
    assert "the pod did not start: " in tried.log()


def test_an_image_name_that_cannot_exist_fails_at_once(run: Any) -> None:
    tried = run("once", image="No/Image:at:all")
    assert tried.finish(60) == "failed"
    assert "InvalidImageName" in tried.log()


def test_more_gpus_than_are_free_are_waited_for_by_name(run: Any) -> None:
    tried = run("once", gpus=9)
    tried.says("Insufficient nvidia.com/gpu", seconds=60)
    assert tried.finish(120) == "failed"
    assert "the pod did not schedule within" in tried.log()


def test_more_gpus_than_a_node_can_have_fail_before_a_pod_is_made(run: Any) -> None:
    tried = run("once", gpus=13)
    assert tried.finish(60) == "failed"
    assert "expected 0 to 12 GPUs in one pod" in tried.log()
    assert "pod millrace-" not in tried.log()


def test_a_deleted_pod_is_tried_again(run: Any) -> None:
    tried = run("again", seconds=15)
    tried.says("second 1 of")
    tried.cluster.delete_pod(tried.pod())
    assert tried.finish() == "success"
    assert tried.task()["try_number"] == 2
    assert "(exit code 75)" in tried.log()


def test_a_killed_worker_leaves_the_pod_to_the_next_try(run: Any) -> None:
    tried = run("again", seconds=70)
    pod = tried.pod()
    tried.says("second 1 of")
    tried.kill_worker()
    assert tried.finish(240) == "success"
    assert tried.task()["try_number"] == 2
    assert f"pod {pod.metadata.name} of an earlier try, whose worker is gone" in tried.log(2)
    assert "second 69 of 70" in tried.log(2)


def test_a_killed_worker_without_a_try_left_leaves_no_pod(run: Any) -> None:
    tried = run("once", seconds=300)
    tried.pod()
    tried.says("second 1 of")
    tried.kill_worker()
    assert tried.finish(120) == "failed"


def test_a_pod_that_nobody_watches_goes_when_the_next_stage_starts(run: Any) -> None:
    """Marked failed after the worker died, and before Airflow noticed: no callback is called for it."""
    left = run("once", "left", seconds=300)
    pod = left.pod()
    left.says("second 1 of")
    left.kill_worker()
    left.airflow.http.patch(f"/dags/once/dagRuns/{left.name}", json={"state": "failed"}).raise_for_status()
    after = run("once", "after")
    assert after.finish() == "success"
    assert f"pod {pod.metadata.name}: its task {TASK} of {left.name} has ended: removed" in after.log()
    assert left.finish(60) == "failed"


def test_a_cleared_task_starts_anew_after_the_end_of_its_pod(run: Any) -> None:
    tried = run("again", seconds=30)
    pod = tried.pod()
    tried.says("second 1 of")
    tried.airflow.clear(tried.dag, tried.name, TASK)
    new: set[str] = set()

    def begun() -> bool:
        found = [each.metadata.name for each in tried.cluster.pods(tried.name)]
        assert len(found) <= 1, "two trainers must never write one checkpoint"
        new.update(name for name in found if name != pod.metadata.name)
        return bool(new)

    wait_for(begun, 120)
    assert tried.finish(240) == "success"
    log = tried.log(tried.task()["try_number"])
    assert "this try goes on with it" not in log
    assert "second 29 of 30" in log


def test_a_run_marked_failed_leaves_no_pod(run: Any) -> None:
    tried = run("again", seconds=300)
    tried.pod()
    tried.airflow.http.patch(f"/dags/{tried.dag}/dagRuns/{tried.name}", json={"state": "failed"}).raise_for_status()
    assert tried.finish(60) == "failed"


def test_a_time_out_leaves_no_pod(run: Any) -> None:
    tried = run("short", seconds=300)
    tried.pod()
    assert tried.finish(120) == "failed"
    assert "AirflowTaskTimeout" in tried.log()


def test_the_second_waits_for_the_quota_and_says_so(run: Any, cluster: Any) -> None:
    cluster.set_quota(1)
    try:
        first = run("once", "first", gpus=1, seconds=25)
        first.pod()
        second = run("once", "second", gpus=1)
        second.says("the pod waits to be accepted: ", seconds=60)
        assert "exceeded quota: millrace-gpus, requested: requests.nvidia.com/gpu=1" in second.log()
        assert first.finish() == second.finish() == "success"
        third = run("once", "third", gpus=2)
        assert third.finish(60) == "failed"
        assert "the quota is smaller than this pod" in third.log()
    finally:
        cluster.set_quota(16)


def test_a_job_of_two_nodes_needs_the_manifest_of_each(run: Any, cluster: Any) -> None:
    tried = run("several", seconds=8)
    wait_for(lambda: len(cluster.pods(tried.name)) == 2, 60)
    assert len(cluster.services(tried.name)) == 1
    tried.says("[node ")
    assert tried.finish() == "failed"
    log = tried.log()
    assert log.count("second 7 of 8") == 2
    assert "the job ended: Completed (exit code 0)" in log
    # Both pods were node 0 here: the proof of node 1 is missing, and so nothing is believed.
    assert "part-node-1/manifest.json, found no manifest" in log
    wait_for(lambda: not cluster.jobs(tried.name) and not cluster.services(tried.name), 30)


def test_a_job_marked_failed_leaves_nothing(run: Any, cluster: Any) -> None:
    tried = run("several", seconds=300)
    tried.says("second 1 of")
    tried.airflow.http.patch(f"/dags/several/dagRuns/{tried.name}", json={"state": "failed"}).raise_for_status()
    assert tried.finish(60) == "failed"
    wait_for(lambda: not cluster.jobs(tried.name) and not cluster.services(tried.name), 30)


def test_a_job_marked_failed_while_it_waits_for_its_image_leaves_nothing(run: Any, cluster: Any) -> None:
    tried = run("several", image="localhost:1/nobody/nothing:none")
    tried.says("ErrImagePull")
    tried.airflow.http.patch(f"/dags/several/dagRuns/{tried.name}", json={"state": "failed"}).raise_for_status()
    assert tried.finish(60) == "failed"
    wait_for(lambda: not cluster.jobs(tried.name) and not cluster.services(tried.name), 30)


def test_a_lost_node_is_given_up_and_the_next_try_waits_for_another(run: Any, cluster: Any) -> None:
    if not os.environ.get("TEST_NODE_COMMAND"):
        pytest.skip("needs TEST_NODE_COMMAND, a command that takes `stop-node NAME` and `start-node NAME`")
    tried = run("again", seconds=400)
    tried.says("second 1 of")
    cluster.node("stop")
    try:
        tried.says("the pod ended: NodeLost: ", seconds=120)
        tried.says("the pod waits for", seconds=60, attempt=2)
        assert "Unschedulable" in tried.log(2)
    finally:
        cluster.node("start")
        wait_for(cluster.node_ready, 120)
    tried.says("second 1 of", seconds=120, attempt=2)
    tried.airflow.http.patch(f"/dags/again/dagRuns/{tried.name}", json={"state": "failed"}).raise_for_status()
    assert tried.finish(60) == "failed"
