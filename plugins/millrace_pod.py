"""The Kubernetes launcher: a stage as a pod, through KubernetesPodOperator.

Needs `MILLRACE_STAGE_IMAGE`; reads `MILLRACE_KUBERNETES_NAMESPACE`, `_CONNECTION`, `_SECRET` and
`MILLRACE_GPU_POOL_LABEL` when the DAG is parsed. The stage's environment comes from the secret, by
reference: no value passes through Airflow. Fails as `millrace_outcome.py` says; a pod's exit code is
read from its status, and its manifest is verified whatever Kubernetes reports.

Only `millrace_stage.py` imports this module, and only for `MILLRACE_LAUNCHER=kubernetes`: it costs a second.
"""

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk.exceptions import AirflowException
from kubernetes.client import models as k8s
from millrace_outcome import MlflowRunLink, StageOutcome, command_line, run_uri

if TYPE_CHECKING:
    from airflow.sdk import Context

GPU = "nvidia.com/gpu"
USER = 10001  # the user of the stage image; any number but 0 works
CACHE = "/cache"
SCHEDULE_TIMEOUT = timedelta(hours=4)  # GPU nodes are added on demand, and may be sold out
STARTUP_TIMEOUT = timedelta(minutes=30)  # the image with CUDA and torch is large
# Caches go to scratch volumes, because the root file system is read-only.
SCRATCH = {
    "MILLRACE_CACHE_DIR": CACHE,
    "HF_HOME": f"{CACHE}/huggingface",
    "HOME": "/tmp",
    "TRITON_CACHE_DIR": "/tmp/triton",
}


class PodStage(StageOutcome, KubernetesPodOperator):
    """Runs one stage as a pod."""

    template_fields = (*KubernetesPodOperator.template_fields, "options", "part")
    template_fields_renderers = {**KubernetesPodOperator.template_fields_renderers, "options": "json"}
    operator_extra_links = (MlflowRunLink(),)
    ui_color = "#e3eef9"

    def __init__(
        self,
        *,
        stage: str,
        options: dict[str, Any] | None = None,
        part: str | None = None,
        on_refusal: Literal["fail", "skip"] = "fail",
        skip_when: str | None = None,
        grace: int = 30,
        gpus: int | str = 0,
        **kwargs: Any,
    ) -> None:
        timeout: timedelta = kwargs.get("execution_timeout") or timedelta(hours=6)
        super().__init__(
            **{
                "name": f"millrace-{stage.replace('_', '-')}",
                "image": _required("MILLRACE_STAGE_IMAGE"),
                "namespace": os.environ.get("MILLRACE_KUBERNETES_NAMESPACE") or "millrace",
                "kubernetes_conn_id": os.environ.get("MILLRACE_KUBERNETES_CONNECTION") or "kubernetes_default",
                "cmds": ["python", "-m", "tasks"],
                "labels": {"app.kubernetes.io/part-of": "millrace", "millrace/stage": stage},
                "termination_grace_period": grace,
                "active_deadline_seconds": int((timeout + SCHEDULE_TIMEOUT).total_seconds()),
                **_environment(),
                **_machine(gpus),
                **_watching(deferrable=_wants_gpu(gpus)),
                **_confinement(),
                **kwargs,
            }
        )
        self.stage = stage
        self.options = options or {}
        self.part = part
        self.on_refusal = on_refusal
        self.skip_when = skip_when
        self.reference = None

    def execute(self, context: "Context") -> Any:
        """Start the pod; wait for it here, or in the triggerer where it may take hours."""
        self.arguments = self.pod_arguments(context)
        try:
            super().execute(context)
        except AirflowException as error:
            return self._after(context, error)
        return self._after(context, None)

    def trigger_reentry(self, context: "Context", event: dict[str, Any]) -> Any:
        """Come back from the triggerer; read how the pod ended."""
        self.arguments = self.pod_arguments(context)
        try:
            super().trigger_reentry(context, event)
        except AirflowException as error:
            return self._after(context, error)
        return self._after(context, None)

    def pod_arguments(self, context: "Context") -> list[str]:
        """Return the stage's arguments. Kubernetes expands $(NAME) in them from the environment, and that holds
        secrets: an option typed by a user must not, so it is escaped."""
        arguments = command_line(self.stage, run_uri(context), self.part, self.options)
        return [argument.replace("$(", "$$(") for argument in arguments]

    def _after(self, context: "Context", error: AirflowException | None) -> dict[str, Any]:
        exit_code = _exit_code(self.remote_pod or self.pod, self.base_container_name)
        if error is not None and not exit_code:
            raise error  # never scheduled, evicted, deleted: not the stage's word
        return self.conclude(context, exit_code or 0, str(error or "")[-1500:])


def _environment() -> dict[str, Any]:
    """Return where the stage's settings come from: the secret, and the scratch folders."""
    secret = os.environ.get("MILLRACE_KUBERNETES_SECRET") or "millrace-stage"
    _, _, digest = os.environ.get("MILLRACE_STAGE_IMAGE", "").partition("@")
    return {
        "env_from": [k8s.V1EnvFromSource(secret_ref=k8s.V1SecretEnvSource(name=secret))],
        "env_vars": SCRATCH | ({"MILLRACE_IMAGE_DIGEST": digest} if digest else {}),
        # A service called millrace-... would add MILLRACE_..._SERVICE_HOST, which strict settings refuse.
        "pod_template_dict": {"spec": {"enableServiceLinks": False, "containers": [{"name": "base"}]}},
    }


def _machine(gpus: int | str) -> dict[str, Any]:
    """Return what the pod asks of a node."""
    gpu = _wants_gpu(gpus)
    size = {"cpu": "8", "memory": "64Gi"} if gpu else {"cpu": "1", "memory": "4Gi"}
    exact = {"memory": size["memory"]} | ({GPU: str(gpus)} if gpu else {})  # Kubernetes wants GPU limits = requests
    volumes = {"tmp": ("/tmp", None, "16Gi"), "cache": (CACHE, None, "100Gi" if gpu else "16Gi")}
    if gpu:
        volumes["shm"] = ("/dev/shm", "Memory", "16Gi")  # NCCL and data loaders; counts as memory of the pod
    label, _, value = (os.environ.get("MILLRACE_GPU_POOL_LABEL") or "nvidia.com/gpu.present=true").partition("=")
    return {
        "container_resources": k8s.V1ResourceRequirements(requests=size | exact, limits=exact),
        "volumes": [
            k8s.V1Volume(name=name, empty_dir=k8s.V1EmptyDirVolumeSource(medium=medium, size_limit=limit))
            for name, (_path, medium, limit) in volumes.items()
        ],
        "volume_mounts": [k8s.V1VolumeMount(name=name, mount_path=path) for name, (path, _m, _l) in volumes.items()],
        "node_selector": {label: value} if gpu else {},
        "tolerations": [k8s.V1Toleration(key=GPU, operator="Exists", effect="NoSchedule")] if gpu else [],
    }


def _watching(*, deferrable: bool) -> dict[str, Any]:
    """Return how the pod is followed. Only long stages are deferred: a deferral that resumes within seconds is
    taken for a failure (apache/airflow#72716)."""
    return {
        "deferrable": deferrable,
        "poll_interval": 15,
        "logging_interval": 60 if deferrable else None,
        "schedule_timeout_seconds": int(SCHEDULE_TIMEOUT.total_seconds()),
        "startup_timeout_seconds": int(STARTUP_TIMEOUT.total_seconds()),
        "on_finish_action": "delete_succeeded_pod",  # a failed pod is kept for whoever looks into it
        "on_kill_action": "delete_pod",
        "log_events_on_failure": True,
        "log_pod_spec_on_failure": False,  # it would print the environment
        "termination_message_policy": "FallbackToLogsOnError",
        "do_xcom_push": False,  # no sidecar: the result is the manifest
    }


def _confinement() -> dict[str, Any]:
    """Return what the pod may not do: the `restricted` pod security standard, and a read-only root."""
    return {
        "security_context": k8s.V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=USER,
            run_as_group=USER,
            fs_group=USER,
            seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
        ),
        "container_security_context": k8s.V1SecurityContext(
            allow_privilege_escalation=False,
            read_only_root_filesystem=True,
            capabilities=k8s.V1Capabilities(drop=["ALL"]),
        ),
        "automount_service_account_token": False,
    }


def _wants_gpu(gpus: int | str) -> bool:
    return str(gpus) != "0"  # a template ("{{ params.gpus }}") asks for some


def _exit_code(pod: Any, container: str) -> int | None:
    """Return the exit code of the stage's container, or None where it is not known."""
    for status in (pod.status.container_statuses or []) if pod is not None and pod.status else []:
        if status.name == container and status.state and status.state.terminated:
            return int(status.state.terminated.exit_code)
    return None


def _required(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise ValueError(
            f"expected {name} to name the stages' image (launcher kubernetes), found nothing. Next: set it."
        )
    return value
