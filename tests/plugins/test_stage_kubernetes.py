"""The Kubernetes launcher without a cluster: the pod it would create, and how it reads a pod's end."""

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = [pytest.mark.airflow]
DIGEST = "sha256:" + "a" * 64
SECRETS = {"MILLRACE_DATABASE_URL": "postgresql://u:hidden@db/millrace", "AWS_SECRET_ACCESS_KEY": "hidden-too"}


@pytest.fixture(autouse=True)
def kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "MILLRACE_LAUNCHER": "kubernetes", "MILLRACE_STAGE_IMAGE": f"registry.example/stage@{DIGEST}",
        "MILLRACE_GPU_POOL_LABEL": "pool=trainers", "MILLRACE_KUBERNETES_NAMESPACE": "loop",
        "MILLRACE_KUBERNETES_SECRET": "stage-environment", "MILLRACE_S3_BUCKET": "bucket", **SECRETS,
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def context(task: Any) -> dict[str, Any]:
    ti = SimpleNamespace(dag_id="fine_tune", task_id=task.task_id, map_index=-1, try_number=1)
    run = SimpleNamespace(dag_id="fine_tune", run_id="manual__x")
    params = {"gpus": 2, "recipe": "lora", "reason": "$(MILLRACE_DATABASE_URL)"}
    return {"run_id": "manual__x", "dag_run": run, "params": params, "dag": None, "ti": ti, "task": task}


def build(name: str, **arguments: Any) -> tuple[Any, Any]:
    """Return the operator and the pod, rendered as Airflow renders it."""
    from airflow.sdk import DAG
    from millrace_stage import stage

    with DAG("fine_tune", schedule=None, params={"gpus": 2, "recipe": "lora", "reason": ""}) as dag:
        operator = stage(name, **arguments)
    values = context(operator) | {"dag": dag}
    operator.render_template_fields(values)
    operator.arguments = operator.pod_arguments(values)
    operator.name = operator._set_name(operator.name)
    return operator, operator.build_pod_request_obj(values, dry_run=True)


@pytest.fixture
def trainer() -> Iterator[tuple[Any, Any]]:
    yield build("train", gpus="{{ params.gpus }}", recipe="{{ params.recipe }}", timeout=timedelta(hours=48))


def test_the_trainer_gets_its_gpus_and_shared_memory(trainer: Any) -> None:
    pod = trainer[1]
    container = pod.spec.containers[0]
    assert container.resources.limits["nvidia.com/gpu"] == container.resources.requests["nvidia.com/gpu"] == "2"
    assert container.resources.limits["memory"] == container.resources.requests["memory"]
    mounts = {mount.mount_path: mount.name for mount in container.volume_mounts}
    volumes = {volume.name: volume.empty_dir for volume in pod.spec.volumes}
    assert volumes[mounts["/dev/shm"]].medium == "Memory"
    assert pod.spec.node_selector == {"pool": "trainers"}
    assert [(t.key, t.operator, t.effect) for t in pod.spec.tolerations] == [("nvidia.com/gpu", "Exists", "NoSchedule")]
    assert pod.spec.termination_grace_period_seconds == 300
    assert pod.spec.active_deadline_seconds >= 48 * 3600


def test_the_pod_gets_the_trace_of_its_run_once(trainer: Any) -> None:
    from millrace_trace import derived

    operator, pod = trainer
    for made in (pod, operator.build_pod_request_obj(context(operator), dry_run=True)):
        given = [
            (each.name, each.value) for each in made.spec.containers[0].env if each.name in {"TRACEPARENT", "BAGGAGE"}
        ]
        assert given == [("TRACEPARENT", derived("fine_tune", "manual__x")), ("BAGGAGE", "task_id=train,try_number=1")]


def test_the_command_is_the_one_every_launcher_runs(trainer: Any) -> None:
    container = trainer[1].spec.containers[0]
    assert container.command == ["python", "-m", "tasks"]
    assert container.args == ["train", "--run", "s3://bucket/runs/fine_tune/manual__x", "--recipe=lora"]


def test_processors_and_memory_grow_with_the_gpus(trainer: Any) -> None:
    resources = trainer[1].spec.containers[0].resources
    assert resources.requests["cpu"] == "12000m"
    assert resources.limits["memory"] == f"{56 * 1024}Mi"
    assert "cpu" not in resources.limits


@pytest.mark.parametrize("gpus", ["9", "many", "-1"])
def test_gpus_that_no_node_has_fail_before_a_pod_is_made(gpus: str) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    with pytest.raises(AirflowFailException, match="expected 0 to 8 GPUs in one pod"):
        build("train", gpus=gpus)


def test_sizes_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    from millrace_podspec import SIZES

    from tasks.settings import Settings

    defaults = {f"MILLRACE_{name.upper()}": field.default for name, field in Settings.model_fields.items()}
    assert {name: defaults[name] for name in SIZES} == SIZES
    monkeypatch.setenv("MILLRACE_POD_CPUS", "0.25")
    assert build("list_documents")[1].spec.containers[0].resources.requests["cpu"] == "250m"
    monkeypatch.setenv("MILLRACE_POD_CPUS", "few")
    with pytest.raises(ValueError, match="expected MILLRACE_POD_CPUS to be a number"):
        build("list_documents")


def test_a_node_is_waited_for_and_the_worker_stays(trainer: Any) -> None:
    operator, pod = trainer
    assert not operator.deferrable
    assert operator.schedule_timeout_seconds == 4 * 3600
    assert pod.spec.restart_policy == "Never"


def test_a_small_stage_asks_for_no_gpu() -> None:
    _operator, pod = build("list_documents", corpus="")
    assert "nvidia.com/gpu" not in pod.spec.containers[0].resources.limits
    assert not pod.spec.tolerations
    assert not pod.spec.node_selector
    assert "/dev/shm" not in [mount.mount_path for mount in pod.spec.containers[0].volume_mounts]


def test_no_secret_is_in_the_pod(trainer: Any) -> None:
    operator, pod = trainer
    container = pod.spec.containers[0]
    assert [source.secret_ref.name for source in container.env_from] == ["stage-environment"]
    for stage in ("register", "promote", "roll_back"):  # the private key of releases is for these alone
        signing = build(stage)[1].spec.containers[0].env_from[1].secret_ref
        assert (signing.name, signing.optional) == ("stage-environment-signing", True)
    assert "hidden" not in str(pod.to_dict())
    assert operator.log_pod_spec_on_failure is False
    assert container.termination_message_policy == "FallbackToLogsOnError"


def test_a_user_cannot_make_kubernetes_expand_a_secret() -> None:
    _operator, pod = build("roll_back", reason="{{ '$(MILLRACE_DATABASE_URL)' }}")
    assert pod.spec.containers[0].args[-1] == "--reason=$$(MILLRACE_DATABASE_URL)"


def test_the_pod_is_confined(trainer: Any) -> None:
    pod = trainer[1]
    container = pod.spec.containers[0]
    assert pod.spec.security_context.run_as_non_root is True
    assert pod.spec.security_context.run_as_user > 0
    assert pod.spec.security_context.seccomp_profile.type == "RuntimeDefault"
    assert container.security_context.read_only_root_filesystem is True
    assert container.security_context.allow_privilege_escalation is False
    assert container.security_context.capabilities.drop == ["ALL"]
    assert pod.spec.automount_service_account_token is False
    written = {mount.mount_path for mount in container.volume_mounts}
    assert {"/tmp", "/cache"} <= written
    assert {env.value.split("/")[1] for env in container.env if env.value.startswith("/")} <= {"tmp", "cache"}


def test_no_service_of_the_namespace_can_break_the_strict_settings(trainer: Any) -> None:
    assert trainer[1].spec.enable_service_links is False


def test_the_pod_says_which_image_it_is(trainer: Any) -> None:
    assert {env.name: env.value for env in trainer[1].spec.containers[0].env}["MILLRACE_IMAGE_DIGEST"] == DIGEST


def test_a_missing_image_is_told_when_the_dag_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MILLRACE_STAGE_IMAGE")
    with pytest.raises(ValueError, match="expected MILLRACE_STAGE_IMAGE"):
        build("train")


@pytest.mark.parametrize(
    ("exit_code", "reason", "error"),
    [
        (2, "Error", "AirflowFailException"),
        (75, "Error", "AirflowException"),
        (137, "OOMKilled", "AirflowException"),
        (None, "NodeLost", "AirflowException"),
    ],
)
def test_the_pods_end_decides(trainer: Any, exit_code: int | None, reason: str, error: str) -> None:
    from airflow.sdk import exceptions
    from millrace_status import Ending

    operator, _pod = trainer
    with pytest.raises(exceptions.AirflowException, match=reason) as caught:
        operator._judge(context(operator), Ending(exit_code, reason), "")
    assert type(caught.value).__name__ == error


@pytest.mark.integration
def test_a_pod_reported_as_a_success_without_a_manifest_is_a_failure(
    trainer: Any, stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.exceptions import AirflowException
    from millrace_status import Ending

    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)
    operator, _pod = trainer
    with pytest.raises(AirflowException, match="found no manifest"):
        operator._judge(context(operator), Ending(0, "Completed"), "")


def test_the_reference_is_handed_on_without_a_sidecar(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from millrace_status import Ending

    operator, pod = trainer
    assert [container.name for container in pod.spec.containers] == ["base"]
    pushed: dict[str, Any] = {}
    monkeypatch.setattr(type(operator), "conclude", lambda *_: {"manifest": "s3://x"})
    ti = SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))
    operator._judge({"ti": ti}, Ending(0, "Completed"), "")
    assert pushed == {"return_value": {"manifest": "s3://x"}}
