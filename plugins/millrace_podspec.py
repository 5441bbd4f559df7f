"""What a stage's pod asks for and what it may not do, for both Kubernetes launchers (one pod, several nodes).

Reads, when a task is built, `MILLRACE_STAGE_IMAGE`, `MILLRACE_KUBERNETES_NAMESPACE`, `_CONNECTION` and `_SECRET`,
`MILLRACE_GPU_POOL_LABEL`, `MILLRACE_POD_PRIORITY_CLASS` and the sizes below (`tasks/settings.py` says what each means and checks
them in every stage). Writes nothing. Fails with ValueError, while the DAG is parsed, when the image is not named or a size is not a number; and with
AirflowFailException, when the task starts, for more GPUs than a node of the pool has.
"""

import os
from typing import Any

from airflow.sdk.exceptions import AirflowFailException
from kubernetes.client import models as k8s

GPU = "nvidia.com/gpu"
USER = 10001  # the user of the stage image; any number but 0 works
CACHE = "/cache"
# Caches go to scratch volumes, because the root file system is read-only.
SCRATCH = {
    "MILLRACE_CACHE_DIR": CACHE,
    "HF_HOME": f"{CACHE}/huggingface",
    "HOME": "/tmp",
    "TRITON_CACHE_DIR": "/tmp/triton",
}
# The private key of releases is in a secret of its own, which no other stage gets: a training runs code of many hands.
RELEASING = ("register", "promote", "roll_back")
SIZES: dict[str, float] = {
    "MILLRACE_POD_CPUS": 1,
    "MILLRACE_POD_MEMORY_GB": 4,
    "MILLRACE_POD_SCRATCH_GB": 16,
    "MILLRACE_GPU_POD_CPUS": 6,
    "MILLRACE_GPU_POD_MEMORY_GB": 28,
    "MILLRACE_GPU_POD_SCRATCH_GB": 100,
    "MILLRACE_GPUS_PER_NODE": 8,
    "MILLRACE_POD_WAIT_MINUTES": 240,
}


def size(name: str) -> float:
    """Return one of the sizes, from the environment or its default."""
    value = os.environ.get(name) or str(SIZES[name])
    try:
        return float(value)
    except ValueError as error:
        raise ValueError(f"expected {name} to be a number, found {value!r}. Next: correct it.") from error


def required(name: str) -> str:
    """Return a variable that has no default."""
    value = os.environ.get(name, "")
    if not value:
        raise ValueError(
            f"expected {name} to name the stages' image (launcher kubernetes), found nothing. Next: set it."
        )
    return value


def namespace() -> str:
    """Return where the stages' pods live."""
    return os.environ.get("MILLRACE_KUBERNETES_NAMESPACE") or "millrace"


def connection() -> str:
    """Return Airflow's connection to the cluster."""
    return os.environ.get("MILLRACE_KUBERNETES_CONNECTION") or "kubernetes_default"


def environment(stage: str) -> dict[str, Any]:
    """Return where the stage's settings come from: the secrets, by reference, and the scratch folders."""
    secret = os.environ.get("MILLRACE_KUBERNETES_SECRET") or "millrace-stage"
    _, _, digest = os.environ.get("MILLRACE_STAGE_IMAGE", "").partition("@")
    sources = [k8s.V1SecretEnvSource(name=secret)]
    if stage in RELEASING:
        sources.append(k8s.V1SecretEnvSource(name=f"{secret}-signing", optional=True))
    return {
        "env_from": [k8s.V1EnvFromSource(secret_ref=source) for source in sources],
        "env_vars": SCRATCH | ({"MILLRACE_IMAGE_DIGEST": digest} if digest else {}),
        # A service called millrace-... would add MILLRACE_..._SERVICE_HOST, which strict settings refuse.
        "pod_template_dict": {"spec": {"enableServiceLinks": False, "containers": [{"name": "base"}]}},
    }


def machine(gpus: int) -> dict[str, Any]:
    """Return what a pod with so many GPUs asks of a node. Processors and memory grow with the GPUs."""
    kind, times = ("GPU_POD", gpus) if gpus else ("POD", 1)
    memory = size(f"MILLRACE_{kind}_MEMORY_GB") * times
    # Kubernetes wants GPU limits = requests; a memory limit above the request would invite an eviction.
    exact = {"memory": _mebibytes(memory)} | ({GPU: str(gpus)} if gpus else {})
    scratch = _mebibytes(size(f"MILLRACE_{kind}_SCRATCH_GB"))
    volumes = {"tmp": ("/tmp", None, scratch), "cache": (CACHE, None, scratch)}
    if gpus:
        volumes["shm"] = ("/dev/shm", "Memory", _mebibytes(memory / 4))  # NCCL and data loaders; memory of the pod
    label, _, value = (os.environ.get("MILLRACE_GPU_POOL_LABEL") or "nvidia.com/gpu.present=true").partition("=")
    cpu = {"cpu": f"{round(size(f'MILLRACE_{kind}_CPUS') * times * 1000)}m"}
    return {
        "container_resources": k8s.V1ResourceRequirements(requests=cpu | exact, limits=exact),
        "volumes": [
            k8s.V1Volume(name=name, empty_dir=k8s.V1EmptyDirVolumeSource(medium=medium, size_limit=limit))
            for name, (_path, medium, limit) in volumes.items()
        ],
        "volume_mounts": [k8s.V1VolumeMount(name=name, mount_path=path) for name, (path, _m, _l) in volumes.items()],
        "node_selector": {label: value} if gpus else {},
        "tolerations": [k8s.V1Toleration(key=GPU, operator="Exists", effect="NoSchedule")] if gpus else [],
        "priority_class_name": os.environ.get("MILLRACE_POD_PRIORITY_CLASS") or None,
    }


def confinement() -> dict[str, Any]:
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


def gpus_of_a_pod(given: int | str) -> int:
    """Return the number of GPUs after checking it: a pod that no node can ever hold would wait in vain."""
    try:
        gpus = int(given)
    except ValueError:
        gpus = -1
    most = int(size("MILLRACE_GPUS_PER_NODE"))
    if not 0 <= gpus <= most:
        raise AirflowFailException(
            f"expected 0 to {most} GPUs in one pod (MILLRACE_GPUS_PER_NODE: no node of the pool has more), found {given!r}. "
            "Next: ask for fewer, spread them over several nodes, or correct the setting."
        )
    return gpus


def _mebibytes(gigabytes: float) -> str:
    return f"{round(gigabytes * 1024)}Mi"
