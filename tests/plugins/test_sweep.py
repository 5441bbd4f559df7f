"""Pods whose task has ended: which are removed, and which never."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from tests.plugins.test_stage_job import connection
from tests.plugins.test_stage_kubernetes import context, kubernetes

pytestmark = [pytest.mark.airflow]
__all__ = ["connection", "kubernetes"]  # fixtures: the environment of the launcher, a cluster that is never asked
LOG = logging.getLogger("sweep")


def thing(name: str, task: str = "train", run: str = "r1", index: int = -1, **more: Any) -> Any:
    marks = {
        "millrace/dag-id": "fine_tune",
        "millrace/run-id": run,
        "millrace/task-id": task,
        "millrace/map-index": str(index),
    }
    values = {"name": name, "annotations": marks, "owner_references": None, "deletion_timestamp": None} | more
    return SimpleNamespace(metadata=SimpleNamespace(**values))


class Cluster:
    """Jobs and pods of the namespace, in place of the API."""

    def __init__(self, pods: list[Any], jobs: list[Any]) -> None:
        self.removed: list[str] = []
        self.log = LOG
        self.pods = SimpleNamespace(alive=lambda: pods, delete=self.removed.append)
        self.alive = lambda: jobs
        self.delete = self.removed.append


def swept(states: dict[str, Any], *pods: Any, jobs: tuple[Any, ...] = ()) -> list[str]:
    from millrace_sweep import sweep

    cluster: Any = Cluster(list(pods), list(jobs))
    assert sweep(cluster, lambda dag_id, run_ids: {r: s for r, s in states.items() if r in run_ids}) == cluster.removed
    return cluster.removed


@pytest.mark.parametrize("state", ["success", "failed", "skipped", "upstream_failed", "removed"])
def test_a_pod_whose_task_has_ended_is_removed(state: str) -> None:
    assert swept({"r1": {"train": state}}, thing("a")) == ["a"]


@pytest.mark.parametrize("state", ["running", "up_for_retry", "queued", "scheduled", "restarting", "deferred", None])
def test_a_pod_that_a_task_has_or_will_take_over_is_not(state: str | None) -> None:
    assert swept({"r1": {"train": state}}, thing("a")) == []


def test_each_pod_is_judged_by_its_own_task() -> None:
    states = {"r1": {"train": "running", "embed_0": "failed", "embed_1": "running"}, "r2": {"train": "failed"}}
    pods = [thing("a"), thing("b", run="r2"), thing("c", "embed", index=0), thing("d", "embed", index=1)]
    assert swept(states, *pods) == ["b", "c"]


def test_what_this_airflow_does_not_know_is_left_alone_and_told(caplog: pytest.LogCaptureFixture) -> None:
    assert swept({}, thing("a"), thing("b", annotations=None), thing("c", annotations={"other": "x"})) == []
    assert "pod a is of a DAG run unknown here (r1)" in caplog.text


def test_a_pod_of_a_job_goes_with_its_job() -> None:
    pod = thing("pod-of-job", owner_references=[SimpleNamespace(kind="Job")])
    assert swept({"r1": {"train": "failed"}}, pod, jobs=(thing("job"),)) == ["job"]


def test_every_pod_and_job_says_whose_it_is() -> None:
    from millrace_sweep import Owner, owner_of

    from tests.plugins.test_stage_job import build as build_job
    from tests.plugins.test_stage_kubernetes import build as build_pod

    owner = Owner("fine_tune", "manual__x", "train", -1)
    assert owner_of(build_pod("train", gpus=1)[1]) == owner
    _operator, job, _service = build_job()
    assert owner_of(job) == owner
    assert owner_of(job.spec.template) == owner


def test_a_cluster_that_does_not_answer_is_told_and_keeps_no_stage_from_starting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from kubernetes.client.exceptions import ApiException
    from millrace_sweep import sweep_before

    def away() -> Any:
        raise ApiException(status=503, reason="away")

    task: Any = SimpleNamespace(task_id="train")
    values: Any = context(task)
    values["ti"].get_task_states = None
    sweep_before(away, values, LOG)
    assert "could not be looked for" in caplog.text


def test_housekeeping_sweeps_only_where_stages_are_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk import DAG
    from millrace_stage import sweep

    with DAG("housekeeping", schedule=None) as dag:
        sweep()
    assert dag.task_ids == ["sweep_pods"]
    monkeypatch.setenv("MILLRACE_LAUNCHER", "process")
    with DAG("housekeeping", schedule=None) as dag:
        sweep()
    assert dag.task_ids == []
