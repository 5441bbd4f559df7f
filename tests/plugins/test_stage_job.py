"""The launcher of several nodes without a cluster: the Job it would create, and what the ends of its pods mean."""

import json
import os
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from tests.plugins.test_stage_kubernetes import context, kubernetes

pytestmark = [pytest.mark.airflow]
__all__ = ["kubernetes"]  # a fixture: the environment of the launcher


@pytest.fixture(autouse=True)
def connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that is never asked anything."""
    cluster = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}],
    }  # fmt: skip
    extra = {"conn_type": "kubernetes", "extra": {"kube_config": json.dumps(cluster)}}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(extra))


def build(nodes: int | str = 2, **arguments: Any) -> tuple[Any, Any, Any]:
    """Return the operator, the Job and its service, rendered as Airflow renders them."""
    from airflow.sdk import DAG
    from millrace_stage import stage

    with DAG("fine_tune", schedule=None, params={"gpus": 8, "nodes": 2}) as dag:
        operator = stage("train", gpus="{{ params.gpus }}", nodes=nodes, recipe="lora", **arguments)
    values = context(operator) | {"dag": dag, "params": {"gpus": 8, "nodes": 2}}
    operator.render_template_fields(values)
    operator.arguments = operator.pod_arguments(values)
    operator.name = operator._set_name(operator.name)
    return operator, *operator.render(values)


def test_each_node_is_a_pod_of_an_indexed_job_that_is_never_tried_again_by_kubernetes() -> None:
    _operator, job, _service = build("{{ params.nodes }}")
    assert job.spec.completion_mode == "Indexed"
    assert job.spec.parallelism == job.spec.completions == 2
    assert job.spec.backoff_limit == 0
    assert job.spec.template.spec.restart_policy == "Never"
    assert job.spec.ttl_seconds_after_finished > 0
    container = job.spec.template.spec.containers[0]
    assert container.resources.limits["nvidia.com/gpu"] == "8"
    assert container.args == ["train", "--run", "s3://bucket/runs/fine_tune/manual__x", "--recipe=lora"]


def test_a_node_knows_its_rank_and_the_name_of_node_0() -> None:
    _operator, job, service = build()
    environment = {env.name: env for env in job.spec.template.spec.containers[0].env}
    rank = environment["MILLRACE_NODE_RANK"].value_from.field_ref.field_path
    assert rank == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    name = job.metadata.name
    assert environment["MILLRACE_MASTER_ADDRESS"].value == f"{name}-0.{name}.loop.svc"
    assert job.spec.template.spec.subdomain == service.metadata.name == name
    assert len(name) <= 61  # with the index of a pod it is a host name, of at most 63 characters
    assert service.spec.cluster_ip == "None"
    assert service.spec.selector == {"job-name": name}
    assert service.spec.publish_not_ready_addresses is True


@pytest.mark.parametrize(("rank", "part"), [("0", []), ("1", ["--part", "node-1"])])
def test_only_node_0_writes_the_manifest_of_the_stage(rank: str, part: list[str]) -> None:
    container = build()[1].spec.template.spec.containers[0]
    assert "exec python -m tasks" in container.command[2]
    shown = container.command[2].replace("exec python -m tasks", "printf '%s\\n'")
    command = [*container.command[:2], shown, *container.command[3:], *container.args]
    ran = subprocess.run(command, env=os.environ | {"MILLRACE_NODE_RANK": rank}, capture_output=True, text=True)
    assert ran.stdout.splitlines() == [*container.args, *part]


def test_the_job_is_found_by_the_task_instance_it_belongs_to() -> None:
    operator, job, service = build()
    selector = operator._build_find_pod_label_selector(context(operator))
    wanted = dict(item.split("=") for item in selector.split(",") if "=" in item and "!=" not in item)
    assert wanted.items() <= job.metadata.labels.items()
    assert wanted.items() <= job.spec.template.metadata.labels.items()
    assert wanted.items() <= service.metadata.labels.items()


def test_the_api_server_would_take_job_and_service_as_they_are() -> None:
    from kubernetes.client import ApiClient, V1Job, V1Service

    client = ApiClient()
    for made, kind in zip(build()[1:], (V1Job, V1Service), strict=True):
        plain = client.sanitize_for_serialization(made)
        # Back through the client's models, which refuse a missing field, nothing is lost and nothing is unknown.
        again = client.deserialize(SimpleNamespace(data=json.dumps(plain)), kind.__name__)
        assert client.sanitize_for_serialization(again) == plain


def test_one_node_is_a_plain_pod() -> None:
    from airflow.sdk import DAG
    from millrace_stage import stage

    with DAG("fine_tune", schedule=None):
        assert type(stage("train", gpus=8, nodes=1)).__name__ == "PodStage"


def test_the_cause_is_told_and_not_its_echo() -> None:
    from millrace_jobs import cause
    from millrace_status import Ending

    lost, memory = Ending(None, "NodeLost"), Ending(137, "OOMKilled")
    echo, refused = Ending(75, "Error"), Ending(2, "Error")
    assert cause([echo, lost]) == lost
    assert cause([echo, memory]) == memory
    assert cause([memory, refused]) == refused
    assert cause([echo]) == echo


class Deletions:
    """The API of a cluster with two pods of one Job, of which one never ran; it keeps what is deleted, and how."""

    def __init__(self) -> None:
        from kubernetes.client import models as k8s

        state = k8s.V1ContainerState(running=k8s.V1ContainerStateRunning())
        runs = k8s.V1ContainerStatus(name="base", image="i", image_id="i", ready=True, restart_count=0, state=state)
        self.status = {"runs": k8s.V1PodStatus(container_statuses=[runs]), "waits": k8s.V1PodStatus()}
        self.deleted: list[tuple[str, Any]] = []

    def list_namespaced_pod(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(items=[SimpleNamespace(metadata=SimpleNamespace(name=name)) for name in self.status])

    def read_namespaced_pod(self, name: str, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(status=self.status[name])

    def delete_namespaced_job(self, name: str, *_: Any, **options: Any) -> None:
        self.deleted.append((name, options["propagation_policy"]))

    def delete_namespaced_pod(self, name: str, *_: Any, **options: Any) -> None:
        self.deleted.append((name, options.get("grace_period_seconds")))


@pytest.mark.parametrize(("at_once", "grace"), [(False, None), (True, 0)])
def test_a_deleted_job_gives_time_to_save_only_to_pods_that_can_use_it(at_once: bool, grace: int | None) -> None:
    from millrace_jobs import Jobs
    from millrace_pods import Pods
    from millrace_watch import Limits

    api = Deletions()
    pods = Pods(lambda: api, "loop", "", None, Limits())
    Jobs(pods, lambda: api).delete("job", at_once=at_once)
    assert api.deleted == [("job", "Background"), ("runs", grace), ("waits", 0)]
