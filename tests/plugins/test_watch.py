"""What is read from a pod's status: how it ended, what it waits for, whether its node is lost, whether it ever fits."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = [pytest.mark.airflow]


def pod(state: dict[str, Any] | None = None, node: str = "gpu-0", ready: bool = True, **status: Any) -> Any:
    from kubernetes.client import models as k8s

    kinds = {
        "running": k8s.V1ContainerStateRunning,
        "waiting": k8s.V1ContainerStateWaiting,
        "terminated": k8s.V1ContainerStateTerminated,
    }
    states = {kind: kinds[kind](**values) for kind, values in (state or {}).items()}
    base = k8s.V1ContainerStatus(
        name="base", image="i", image_id="i", ready=ready, restart_count=0, state=k8s.V1ContainerState(**states)
    )
    conditions = [k8s.V1PodCondition(type=t, **values) for t, values in status.pop("conditions", {}).items()]
    return k8s.V1Pod(
        metadata=k8s.V1ObjectMeta(name="p", deletion_timestamp=status.pop("deleted", None)),
        spec=k8s.V1PodSpec(containers=[], node_name=node),
        status=k8s.V1PodStatus(container_statuses=[base] if state else None, conditions=conditions, **status),
    )


@pytest.mark.parametrize(
    ("state", "status", "said"),
    [
        ({"exit_code": 0, "reason": "Completed"}, {"phase": "Succeeded"}, "Completed (exit code 0)"),
        ({"exit_code": 137, "reason": "OOMKilled"}, {"phase": "Failed"}, "OOMKilled (exit code 137)"),
        (
            {"exit_code": 137, "reason": "Error"},
            {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."},
            "Evicted (exit code 137): The node was low on resource: memory.",
        ),
        (None, {"phase": "Failed", "reason": "OutOfnvidia.com/gpu"}, "OutOfnvidia.com/gpu"),
    ],
)
def test_the_end_of_a_pod_has_a_name(state: dict[str, Any] | None, status: dict[str, Any], said: str) -> None:
    from millrace_status import ending

    assert str(ending(pod({"terminated": state} if state else None, **status), "base")) == said


def test_a_pod_that_runs_or_waits_has_no_end() -> None:
    from millrace_status import ending, ever_ran, waiting

    running = pod({"running": {}}, phase="Running")
    assert ever_ran(running)
    assert ending(running, "base") is None
    assert waiting(running, "base") is None
    pulling = pod({"waiting": {"reason": "ErrImagePull", "message": "not found"}}, phase="Pending")
    assert ending(pulling, "base") is None
    assert not ever_ran(pulling)
    assert waiting(pulling, "base") == ("ErrImagePull", "not found")
    reason = {"status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available"}
    queued = pod(None, node="", phase="Pending", conditions={"PodScheduled": reason})
    assert waiting(queued, "base") == ("Unschedulable", "0/2 nodes are available")


def test_a_lost_node_is_seen_by_what_the_control_plane_says_against_its_last_word() -> None:
    from millrace_status import node_is_lost

    not_ready = {"Ready": {"status": "False"}}
    assert node_is_lost(pod({"running": {}}, phase="Running", conditions=not_ready), "base")
    assert not node_is_lost(pod({"running": {}}, phase="Running", conditions={"Ready": {"status": "True"}}), "base")
    # A container that is itself not ready makes the pod not ready too.
    assert not node_is_lost(pod({"running": {}}, ready=False, phase="Running", conditions=not_ready), "base")


class Server:
    """An API server that answers with pods and logs in turn; the last one stays."""

    def __init__(self, pods: list[Any], logs: list[str]) -> None:
        self.pods, self.logs = pods, logs

    def read_namespaced_pod(self, *_: Any, **__: Any) -> Any:
        found = self.pods.pop(0) if len(self.pods) > 1 else self.pods[0]
        if isinstance(found, Exception):
            raise found
        return found

    def list_namespaced_event(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(items=[SimpleNamespace(type="Warning", reason="FailedMount", message="no secret")])

    def read_namespaced_pod_log(self, *_: Any, **__: Any) -> Any:
        text = self.logs.pop(0) if len(self.logs) > 1 else self.logs[0]
        return SimpleNamespace(data=text.encode())


class Log:
    """A logger that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []

    def log(self, level: int, form: str, *values: Any) -> None:
        self.lines.append((level, form % values))

    def info(self, form: str, *values: Any) -> None:
        self.log(20, form, *values)

    def warning(self, form: str, *values: Any) -> None:
        self.log(30, form, *values)


def follow(pods: list[Any], logs: list[str], **limits: Any) -> tuple[Any, Log]:
    from millrace_watch import Limits, PodWatch

    server, log = Server(pods, logs), Log()
    watch = PodWatch(
        client=lambda: server, refresh=lambda: None, name="p", namespace="n", container="base", log=log,
        limits=Limits(poll=0.001, **limits), stopped=lambda: False,
    )  # fmt: skip
    return watch.follow(), log


RUNNING: dict[str, Any] = {"running": {}}
DONE: dict[str, Any] = {"terminated": {"exit_code": 0, "reason": "Completed"}}


def test_every_line_of_the_log_is_told_once_at_its_level() -> None:
    first = "2026-11-20T10:00:01.000000001Z a\n2026-11-20T10:00:01.000000002Z 2026-11-20 10:00:01,000 WARNING m b\n"
    more = first + "2026-11-20T10:00:02.000000000Z 0%\r50%\rc\r\n2026-11-20T10:00:02.000000000Z d\n"
    gone = "failed to try resolving symlinks in path\n"  # a node says so, with status 200, when the log is gone
    end, log = follow([pod(RUNNING), pod(RUNNING), pod(RUNNING), pod(DONE)], [first, more, gone])
    assert end.exit_code == 0
    assert [line for line in log.lines if not line[1].startswith("Kubernetes:")] == [
        (20, "a"), (30, "2026-11-20 10:00:01,000 WARNING m b"), (20, "c"), (20, "d"),
        (30, f"the log of the pod cannot be read now: {gone.strip()}"),
    ]  # fmt: skip
    assert (30, "Kubernetes: FailedMount: no secret") in log.lines


def test_a_line_behind_one_of_a_later_moment_is_told() -> None:
    """A container's two outputs come through pipes of their own: the log is not in the order of its moments."""
    out = "2026-11-20T10:00:02.000000000Z second 0\n"
    error = "2026-11-20T10:00:01.000000000Z an error of before\n"
    _, log = follow([pod(RUNNING), pod(RUNNING), pod(DONE)], [out, out + error, out + error])
    assert [text for _, text in log.lines if not text.startswith("Kubernetes:")] == ["second 0", "an error of before"]


def test_an_api_server_that_is_away_for_a_while_is_borne() -> None:
    from kubernetes.client.exceptions import ApiException

    end, log = follow([pod(RUNNING), ApiException(status=503, reason="Service Unavailable"), pod(DONE)], [""])
    assert end.exit_code == 0
    assert (30, "the API server does not answer: Service Unavailable") in log.lines


@pytest.mark.parametrize(
    ("message", "error"),
    [("rpc error: manifest unknown", "AirflowFailException"), ("dial tcp: i/o timeout", "AirflowException")],
)
def test_a_missing_image_fails_and_a_registry_that_is_away_is_tried_again(message: str, error: str) -> None:
    from airflow.sdk.exceptions import AirflowException

    states = [{"reason": "ErrImagePull", "message": message}, {"reason": "ImagePullBackOff", "message": "Back-off"}]
    pods = [pod({"waiting": state}, phase="Pending") for state in states]
    with pytest.raises(AirflowException, match=f"ImagePullBackOff: {message}") as caught:
        follow(pods, [""], bad_start=0.05)
    assert type(caught.value).__name__ == error


def test_a_node_that_stays_away_ends_the_try() -> None:
    lost = pod(RUNNING, phase="Running", conditions={"Ready": {"status": "False"}})
    end, log = follow([lost], [""], lost_node=0.05)
    assert (end.exit_code, end.reason) == (None, "NodeLost")
    assert (30, "NodeNotReady: the node gpu-0 does not report") in log.lines
    deleted = pod(RUNNING, phase="Running", deleted=datetime.now(UTC) - timedelta(minutes=1))
    assert follow([deleted], [""], lost_node=1)[0].reason == "NodeLost"


QUOTA = 'pods "p" is forbidden: exceeded quota: gpus, requested: {}, used: {}, limited: {}'


@pytest.mark.parametrize(
    ("requested", "limited", "never"),
    [
        ("requests.nvidia.com/gpu=1", "requests.nvidia.com/gpu=1", False),
        ("requests.nvidia.com/gpu=2", "requests.nvidia.com/gpu=1", True),
        ("limits.memory=56Gi,requests.nvidia.com/gpu=1", "limits.memory=60000Mi,requests.nvidia.com/gpu=8", False),
        ("limits.memory=64Gi", "limits.memory=60000Mi", True),
    ],
)
def test_what_is_larger_than_the_quota_never_fits(requested: str, limited: str, never: bool) -> None:
    from millrace_pods import never_fits

    assert never_fits(QUOTA.format(requested, requested, limited)) is never
