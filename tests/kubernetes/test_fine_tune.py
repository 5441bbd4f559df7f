"""`fine_tune` on a real cluster: started through the REST API, trained by two ranks in a pod on the GPU node.

The real stages in the real image, the product's own DAG, its service account, and nothing else. The GPUs exist for
the scheduler only: the ranks use the CPU.
"""

import os
import time
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from tests.kubernetes.cluster import GPU_NODE, LAUNCHER, Watch, wait_for
from tests.live_airflow import Airflow

pytestmark = [pytest.mark.kubernetes, pytest.mark.airflow, pytest.mark.slow]


class Seen(Watch):
    """Everything that was seen of the pods of a run, by stage, while it ran."""

    def __init__(self, cluster: Any, run: str) -> None:
        super().__init__()
        self.cluster, self.run, self.pods = cluster, run, dict[str, Any]()

    def look(self) -> None:
        for pod in self.cluster.pods(self.run):
            if pod.spec.node_name:
                self.pods[pod.metadata.labels["millrace/stage"]] = pod


def reference(airflow: Airflow, dag: str, run: str, task: str) -> dict[str, Any]:
    path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/xcomEntries/return_value?deserialize=true"
    found: dict[str, Any] = airflow.get(path)["value"]
    return found


def test_a_candidate_is_trained_by_two_ranks_on_the_gpu_node(airflow: Airflow, cluster: Any) -> None:
    run = f"tuned_{int(time.time())}"
    with Seen(cluster, run) as seen:
        airflow.start("fine_tune", run, recipe="smoke_cpu", gpus=2)
        state, tasks = airflow.finish("fine_tune", run, seconds=900)
    assert state == "success"
    assert tasks["register"] == "success", tasks
    train = seen.pods["train"]
    assert train.spec.node_name == GPU_NODE
    assert train.spec.containers[0].resources.limits["nvidia.com/gpu"] == "2"
    assert train.spec.containers[0].image == os.environ["TEST_STAGE_IMAGE"]
    assert seen.pods["build_dataset"].spec.node_name != GPU_NODE
    assert reference(airflow, "fine_tune", run, "train")["facts"]["ranks"] == 2
    assert reference(airflow, "fine_tune", run, "register")["facts"]["model_version"]
    assert any(event["source_dag_id"] == "fine_tune" for event in airflow.get("/assets/events")["asset_events"])
    assert not cluster.pods(run)


def test_a_training_survives_a_deleted_pod_and_a_lost_node(airflow: Airflow, cluster: Any) -> None:
    if not os.environ.get("TEST_NODE_COMMAND"):
        pytest.skip("needs TEST_NODE_COMMAND, a command that takes `stop-node NAME` and `start-node NAME`")
    run = f"disturbed_{int(time.time())}"
    airflow.start("survive", run)
    attempt = Attempt(airflow, run)
    attempt.says(1, "checkpoint step=", seconds=420)
    cluster.delete_pod(cluster.running(run))
    attempt.says(2, "going on from step ", seconds=240)
    attempt.says(2, "checkpoint step=", seconds=240)
    cluster.node("stop")
    try:
        attempt.says(2, "NodeNotReady", seconds=90)
    finally:
        cluster.node("start")
        wait_for(cluster.node_ready, 120)
    attempt.says(3, "going on from step ", seconds=300)
    assert airflow.finish("survive", run, seconds=600)[0] == "success"
    assert "(exit code 75)" in attempt.log(1)
    assert reference(airflow, "survive", run, "train")["status"] == "complete"
    wait_for(lambda: not cluster.pods(run), 30)


class Attempt:
    """The tries of the training of a run."""

    def __init__(self, airflow: Airflow, run: str) -> None:
        self.airflow, self.run = airflow, run

    def number(self) -> int:
        task = self.airflow.get(f"/dags/survive/dagRuns/{self.run}/taskInstances/train")
        return int(task["try_number"])

    def log(self, number: int) -> str:
        return "\n".join(self.airflow.log("survive", self.run, "train", number))

    def says(self, number: int, text: str, seconds: float) -> None:
        """Wait until the log of a try says so, while it runs."""
        wait_for(lambda: self.number() >= number and text in self.log(number), seconds)


def test_the_launcher_may_do_nothing_else(cluster: Any, tmp_path: Any) -> None:
    from kubernetes import client, config

    api = config.new_client_from_config(str(cluster.kubeconfig_of(LAUNCHER, tmp_path / "kubeconfig")))
    core = client.CoreV1Api(api)
    assert core.list_namespaced_pod(cluster.namespace).items == []
    for forbidden in (
        lambda: core.list_namespaced_secret(cluster.namespace),
        lambda: core.list_namespaced_pod("default"),
        lambda: core.list_node(),
        lambda: core.patch_namespaced_pod("any", cluster.namespace, {}),
        lambda: core.connect_get_namespaced_pod_exec("any", cluster.namespace, command="true"),
    ):
        with pytest.raises(ApiException) as caught:
            forbidden()
        assert caught.value.status == 403
