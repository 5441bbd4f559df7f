"""The pod that the doctor asks for: what `plugins/millrace_podspec.py` gives the stages' pods, without Airflow.

`tasks/` may not import `plugins/`, so this is a second wording of the same pod; a test compares the two, field
by field. Reads settings only.
"""

from typing import Any

from tasks.settings import Settings

GPU = "nvidia.com/gpu"
USER = 10001
CACHE = "/cache"
SCRATCH = {
    "MILLRACE_CACHE_DIR": CACHE,
    "HF_HOME": f"{CACHE}/huggingface",
    "HOME": "/tmp",
    "TRITON_CACHE_DIR": "/tmp/triton",
}
LIFETIME = 1200  # seconds after which Kubernetes itself ends a pod that nobody took away
TOLERATION = {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}


def pod(settings: Settings, name: str, arguments: list[str], gpus: int = 0) -> dict[str, Any]:
    """Return the pod of a stage that runs a command in the stages' image, with so many GPUs."""
    environment = SCRATCH | ({"MILLRACE_IMAGE_DIGEST": digest} if (digest := _digest(settings)) else {})
    container = {
        "name": "base",
        "image": settings.stage_image or "millrace-stage",
        "imagePullPolicy": "IfNotPresent",
        "command": arguments,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "envFrom": [{"secretRef": {"name": settings.kubernetes_secret}}],
        "resources": resources(settings, gpus),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    volumes = scratch(settings, gpus)
    container["volumeMounts"] = [{"name": name, "mountPath": path} for name, (path, _volume) in volumes.items()]
    spec: dict[str, Any] = {
        "containers": [container],
        "volumes": [{"name": name, "emptyDir": volume} for name, (_path, volume) in volumes.items()],
        "restartPolicy": "Never",
        "activeDeadlineSeconds": LIFETIME,
        "terminationGracePeriodSeconds": 5,
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }  # fmt: skip
    if settings.pod_priority_class:
        spec["priorityClassName"] = settings.pod_priority_class
    if gpus:
        label, _, value = settings.gpu_pool_label.partition("=")
        spec |= {"nodeSelector": {label: value}, "tolerations": [TOLERATION]}
    labels = {"app.kubernetes.io/part-of": "millrace", "millrace/stage": "doctor"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}


def resources(settings: Settings, gpus: int) -> dict[str, dict[str, str]]:
    """Return requests and limits; processors and memory grow with the GPUs."""
    cpus = settings.gpu_pod_cpus * gpus if gpus else settings.pod_cpus
    exact = {"memory": _mebibytes(_memory(settings, gpus))} | ({GPU: str(gpus)} if gpus else {})
    return {"requests": {"cpu": f"{round(cpus * 1000)}m"} | exact, "limits": exact}


def scratch(settings: Settings, gpus: int) -> dict[str, tuple[str, dict[str, str]]]:
    """Return the scratch volumes: path and emptyDir, by name."""
    size = {"sizeLimit": _mebibytes(settings.gpu_pod_scratch_gb if gpus else settings.pod_scratch_gb)}
    volumes = {"tmp": ("/tmp", size), "cache": (CACHE, size)}
    if gpus:
        memory = _mebibytes(_memory(settings, gpus) / 4)
        volumes["shm"] = ("/dev/shm", {"medium": "Memory", "sizeLimit": memory})
    return volumes


def why_not(node: Any, settings: Settings, gpus: int) -> str:
    """Return why a node can never take a pod of so many GPUs, or nothing."""
    from kubernetes.utils import parse_quantity

    for taint in node.spec.taints or []:
        if taint.effect in {"NoSchedule", "NoExecute"} and (taint.key, taint.effect) != (GPU, "NoSchedule"):
            return f"the taint {taint.key}:{taint.effect}, which no pod tolerates"
    if node.spec.unschedulable:
        return "it is cordoned"
    offered = node.status.allocatable
    for name, wanted in sorted(resources(settings, gpus)["requests"].items(), key=lambda item: item[0] != GPU):
        if parse_quantity(wanted) > parse_quantity(offered.get(name, "0")):
            return f"a pod asks for {name} {wanted}, the node has {offered.get(name, 'none')}"
    return ""


def _memory(settings: Settings, gpus: int) -> float:
    return settings.gpu_pod_memory_gb * gpus if gpus else settings.pod_memory_gb


def _digest(settings: Settings) -> str:
    return (settings.stage_image or "").partition("@")[2]


def _mebibytes(gigabytes: float) -> str:
    return f"{round(gigabytes * 1024)}Mi"
