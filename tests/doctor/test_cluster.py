"""The cluster's checks without a cluster: the pod is the launcher's, the verbs are the role's, texts are read right."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tasks.doctor import cluster, pod, podspec
from tasks.doctor.report import as_json, ok
from tasks.errors import BadInput, MillraceError, ServiceUnavailable
from tasks.settings import REPOSITORY, Settings
from tests.airflow_home import prepare

from .conftest import one, settings

IMAGE = "registry.example/stage@sha256:" + "a" * 64
VALUES = {
    "stage_image": IMAGE, "gpu_pool_label": "pool=trainers", "kubernetes_secret": "stage-environment",
    "gpu_pod_cpus": "3.5", "gpu_pod_memory_gb": "10", "gpu_pod_scratch_gb": "7", "pod_cpus": "0.5",
    "pod_priority_class": "millrace-stages",
}  # fmt: skip


@pytest.mark.airflow
@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_the_pod_is_the_one_the_launcher_makes(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare()
    for name, value in VALUES.items():
        monkeypatch.setenv(f"MILLRACE_{name.upper()}", value)
    from kubernetes.client import ApiClient
    from millrace_podspec import confinement, environment, machine

    def plain(value: Any) -> Any:
        return ApiClient().sanitize_for_serialization(value)

    ours = podspec.pod(settings(**VALUES), "name", ["true"], gpus)["spec"]
    container = ours["containers"][0]
    asked, may, given = machine(gpus), confinement(), environment("train")
    assert container["resources"] == plain(asked["container_resources"])
    assert ours["volumes"] == plain(asked["volumes"])
    assert container["volumeMounts"] == plain(asked["volume_mounts"])
    assert ours.get("nodeSelector", {}) == asked["node_selector"]
    assert ours.get("tolerations", []) == plain(asked["tolerations"])
    assert ours["priorityClassName"] == asked["priority_class_name"]
    assert ours["securityContext"] == plain(may["security_context"])
    assert container["securityContext"] == plain(may["container_security_context"])
    assert ours["automountServiceAccountToken"] is may["automount_service_account_token"] is False
    assert container["envFrom"] == plain(given["env_from"])
    assert {each["name"]: each["value"] for each in container["env"]} == given["env_vars"]
    assert ours["enableServiceLinks"] is given["pod_template_dict"]["spec"]["enableServiceLinks"]


def test_the_verbs_asked_for_are_those_of_the_role() -> None:
    text = (REPOSITORY / "infra" / "kubernetes" / "base" / "launcher.yaml").read_text(encoding="utf-8")
    role = next(each for each in yaml.safe_load_all(text) if each["kind"] == "Role")
    granted = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert {(group, resource, verb) for group, resource, verbs in cluster.VERBS for verb in verbs.split()} == granted


QUOTA = (
    'pods "x" is forbidden: exceeded quota: millrace-gpus, requested: requests.nvidia.com/gpu={}, '
    "used: requests.nvidia.com/gpu={}, limited: requests.nvidia.com/gpu=8"
)


def test_a_quota_that_is_used_up_is_waited_for_and_one_that_is_too_small_is_mended() -> None:
    assert "used up now" in cluster._quota(QUOTA.format(4, 6), 4)
    with pytest.raises(BadInput, match="expected a quota of 9 GPUs or more"):
        cluster._quota(QUOTA.format(9, 0), 9)


def node(
    taints: list[tuple[str, str]] | None = None, cordoned: bool = False, name: str = "gpu-0", **offered: str
) -> Any:
    made = [SimpleNamespace(key=key, effect=effect) for key, effect in taints or []]
    allocatable = {"cpu": "8", "memory": "32Gi", podspec.GPU: "1"} | offered
    return SimpleNamespace(
        metadata=SimpleNamespace(name=name),
        spec=SimpleNamespace(taints=made, unschedulable=cordoned),
        status=SimpleNamespace(allocatable=allocatable),
    )


OURS = [(podspec.GPU, "NoSchedule")]


@pytest.mark.parametrize(
    ("given", "gpus", "reason"),
    [
        (node(OURS), 1, ""),
        (node(), 1, ""),
        (node([*OURS, ("spot", "PreferNoSchedule")]), 1, ""),
        (node([*OURS, ("team", "NoSchedule")]), 1, "the taint team:NoSchedule"),
        (node([(podspec.GPU, "NoExecute")]), 1, f"the taint {podspec.GPU}:NoExecute"),
        (node(OURS, cordoned=True), 1, "it is cordoned"),
        (node(OURS), 2, f"a pod asks for {podspec.GPU} 2, the node has 1"),
        (node(OURS, cpu="3920m"), 1, "a pod asks for cpu 6000m, the node has 3920m"),
        (node(OURS, memory="16Gi"), 1, "a pod asks for memory 28672Mi"),
    ],
)
def test_why_a_node_cannot_take_the_pod(given: Any, gpus: int, reason: str) -> None:
    big = (
        settings(gpu_pod_cpus="6", gpu_pod_memory_gb="28")
        if gpus == 1
        else settings(gpu_pod_cpus="1", gpu_pod_memory_gb="1")
    )
    found = podspec.why_not(given, big, gpus)
    assert found.startswith(reason) and bool(found) is bool(reason)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sets what the API server answers to a question about nodes."""
    from kubernetes.client import CoreV1Api

    def answer(items: list[Any] | None = None, error: Exception | None = None) -> None:
        def list_node(*_: Any, **__: Any) -> Any:
            if error:
                raise error
            return SimpleNamespace(items=items)

        monkeypatch.setattr(cluster, "connect", lambda: None)
        monkeypatch.setattr(CoreV1Api, "list_node", list_node)

    return answer


def refusal(status: int, message: str) -> Exception:
    from kubernetes.client.exceptions import ApiException

    error = ApiException(status=status, reason="refused")
    error.body = json.dumps({"message": message})
    return error


def test_no_node_is_not_ok_but_not_checked(nodes: Any) -> None:
    nodes([])
    found = one(cluster.gpu_nodes)
    assert found.status == "skip" and "a pool that starts from nothing" in found.found
    nodes(error=refusal(403, "nodes is forbidden"))
    assert "ask once as an administrator" in one(cluster.gpu_nodes).found


def test_nodes_that_fit_are_counted_and_an_open_one_is_named(nodes: Any) -> None:
    nodes([node(OURS, name="gpu-1"), node(OURS, cpu="1")])
    found = one(cluster.gpu_nodes)
    assert found.status == "ok" and found.found.startswith("1 of 2 nodes") and "without the taint" not in found.found
    nodes([node()])
    assert "without the taint nvidia.com/gpu, so that other pods may fill them: gpu-0" in one(cluster.gpu_nodes).found
    nodes([node(OURS, cpu="1")])
    found = one(cluster.gpu_nodes)
    assert found.code == 2 and "found none of 1 (gpu-0: a pod asks for cpu" in found.found


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (401, "Unauthorized", 2),
        (403, "pods is forbidden", 2),
        (404, 'namespaces "x" not found', 2),
        (429, "too many requests", 75),
        (500, "etcd is away", 75),
    ],
)
def test_what_the_api_server_says_decides(status: int, message: str, code: int) -> None:
    with pytest.raises(MillraceError, match=message) as caught, cluster.answering("do it"):
        raise refusal(status, message)
    assert caught.value.exit_code == code


def test_an_api_server_that_is_away_is_an_outage() -> None:
    from urllib3.exceptions import MaxRetryError

    with pytest.raises(ServiceUnavailable, match="expected the API server to do it"), cluster.answering("do it"):
        raise MaxRetryError(None, "/", OSError("refused"))


def waiting(reason: str, message: str = "why") -> Any:
    return SimpleNamespace(waiting=SimpleNamespace(reason=reason, message=message))


def test_a_pod_that_cannot_start_is_given_up_at_once() -> None:
    quiet = SimpleNamespace(status=SimpleNamespace(conditions=None, phase="Pending"))
    with pytest.raises(BadInput, match="expected the image to be pulled, found ErrImagePull: not found"):
        pod._give_up(quiet, waiting("ErrImagePull", "not found"), "s", 1)
    with pytest.raises(BadInput, match="make the secret millrace-stage"):
        pod._give_up(quiet, waiting("CreateContainerConfigError"), "millrace-stage", 1)
    pod._give_up(quiet, waiting("ContainerCreating"), "s", 1)
    pod._give_up(quiet, None, "s", 1)
    condition = SimpleNamespace(status="False", message="0/2 nodes are available: 2 Insufficient cpu.")
    full = SimpleNamespace(status=SimpleNamespace(conditions=[condition], phase="Pending"))
    with pytest.raises(ServiceUnavailable, match="Insufficient cpu"):
        pod._give_up(full, None, "s", pod.SECONDS)


def test_what_the_pod_found_is_told_under_its_name() -> None:
    log = "a warning\n" + as_json([ok("database", "Postgres 18")], code_revision="0123456789abcdef")
    found = pod._told(log, IMAGE, "node-0", 12.3)
    assert [(each.check, each.status) for each in found] == [("image", "ok"), ("pod: database", "ok")]
    assert "(code 0123456789ab) ran on node-0, 12 s after" in found[0].found


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("OptionError: expected a stage or tool (migrate, serve), found 'doctor'", "an image older than this code"),
        ("Killed", "other last words: Killed"),
        ("", "other last words: no word"),
    ],
)
def test_a_pod_without_findings_is_not_ok(log: str, told: str) -> None:
    image, inside = pod._told(log, IMAGE, "node-0", 1)
    assert image.status == "ok" and inside.code == 2 and told in inside.found


def test_without_an_image_there_is_nothing_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert one(pod.image).found == "expected MILLRACE_STAGE_IMAGE to name the stages' image, found nothing."


def test_settings_used_here_are_real() -> None:
    assert isinstance(settings(**VALUES), Settings)
