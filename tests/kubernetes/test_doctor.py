"""The doctor on a real cluster: as its administrator and as the launcher's account, in a namespace of its own.

The pod runs the code of this checkout, unpacked over the image's, so that the image may be older than the doctor.
"""

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.airflow_home import REPOSITORY

pytestmark = [pytest.mark.kubernetes, pytest.mark.airflow, pytest.mark.slow]
SIZES = {
    "MILLRACE_GPU_POD_CPUS": "0.2", "MILLRACE_GPU_POD_MEMORY_GB": "1", "MILLRACE_GPU_POD_SCRATCH_GB": "4",
    "MILLRACE_POD_CPUS": "0.2", "MILLRACE_POD_MEMORY_GB": "2", "MILLRACE_POD_SCRATCH_GB": "4",
}  # fmt: skip
CODE = "doctor-code"


@pytest.fixture(scope="module")
def ground(stack: Any, within_reach: None) -> Iterator[Any]:
    """A namespace made from infra/kubernetes/base, the stages' secret in it, the stack within the pods' reach."""
    from tasks.database import migrate
    from tests.kubernetes.cluster import Cluster

    migrate(stack.database_url)
    with Cluster() as made:
        made.put_secret({name: value.replace("127.0.0.1", made.host) for name, value in stack.env.items()})
        yield made


@pytest.fixture(scope="module")
def doctor(ground: Any, stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return a function that runs the command for that namespace, as one of its service accounts or as administrator."""
    folder = tmp_path_factory.mktemp("kubeconfig")

    def run(*arguments: str, account: str = "", start: tuple[str, ...] = ("-m", "tasks"), **changes: str) -> Any:
        kubeconfig = os.environ["KUBECONFIG"]
        if account:
            kubeconfig = str(ground.kubeconfig_of(account, folder / account))
        services = {name: value for name, value in stack.env.items() if "DATABASE" not in name and "MLFLOW" not in name}
        values = services | SIZES | {
            "KUBECONFIG": kubeconfig, "MILLRACE_STAGE_IMAGE": os.environ["TEST_STAGE_IMAGE"],
            "MILLRACE_KUBERNETES_NAMESPACE": ground.namespace, "MILLRACE_LAUNCHER": "kubernetes",
        } | changes  # fmt: skip
        base = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
        done = subprocess.run(
            [sys.executable, *start, "doctor", "--format", "json", *arguments],
            cwd=REPOSITORY, env=base | values, capture_output=True, text=True, check=False, timeout=700,
        )  # fmt: skip
        assert done.stdout, done.stderr
        found = json.loads(done.stdout)
        assert found["exit_code"] == done.returncode
        print(*(f"{each['status']} {each['check']}: {each['found']}" for each in found["findings"]), sep="\n")
        return done.returncode, {each["check"]: each for each in found["findings"]}

    return run


def test_an_administrator_sees_nodes_quota_and_the_launchers_permissions(doctor: Any) -> None:
    code, found = doctor("--short", "--gpus", "2")
    assert code == 0
    assert {each["status"] for each in found.values()} == {"ok"}
    assert "account millrace-launcher may do all 10 things" in found["permissions"]["found"]
    assert "1 of 1 nodes" in found["gpu nodes"]["found"] and "a pod of 2 GPUs" in found["gpu nodes"]["found"]
    assert "would be accepted now" in found["gpu quota"]["found"]


def test_the_launchers_own_account_may_not_see_nodes_and_says_so(doctor: Any) -> None:
    code, found = doctor("--short", account="millrace-launcher")
    assert code == 0
    assert "this account may do all 10 things" in found["permissions"]["found"]
    assert found["gpu nodes"]["status"] == "skip" and "may not see nodes" in found["gpu nodes"]["found"]
    assert found["gpu quota"]["status"] == "ok"


def test_an_account_without_the_role_is_told_what_it_lacks(doctor: Any) -> None:
    code, found = doctor("--short", "--account", "default")
    assert code == 2
    assert "expected account default to be allowed 10 things" in found["permissions"]["found"]
    assert "kubectl apply -k infra/kubernetes/base" in found["permissions"]["next"]
    code, found = doctor("--short", "--account", "elsewhere:airflow")
    assert code == 2 and "account elsewhere:airflow" in found["permissions"]["found"]
    code, found = doctor("--short", account="default")
    assert code == 2 and found["gpu quota"]["status"] == "mend"


def test_more_gpus_than_a_node_or_the_quota_has(doctor: Any, ground: Any) -> None:
    code, found = doctor("--short", "--gpus", "20")
    assert code == 2
    assert "a pod asks for nvidia.com/gpu 20, the node has 8" in found["gpu nodes"]["found"]
    assert "expected a quota of 20 GPUs or more" in found["gpu quota"]["found"]
    code, found = doctor("--short", MILLRACE_GPU_POOL_LABEL="pool=nowhere")
    assert code == 0 and found["gpu nodes"]["status"] == "skip"
    assert not ground.pods()


def test_a_namespace_that_is_not_there_and_a_cluster_that_is_away(doctor: Any, tmp_path: Path) -> None:
    code, found = doctor("--short", MILLRACE_KUBERNETES_NAMESPACE="millrace-nowhere")
    assert code == 2 and "MILLRACE_KUBERNETES_NAMESPACE" in found["gpu quota"]["next"]
    given = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    for each in given["clusters"]:
        each["cluster"]["server"] = "https://127.0.0.1:9"
    away = tmp_path / "away"
    away.write_text(yaml.safe_dump(given))
    code, found = doctor("--short", KUBECONFIG=str(away))
    assert code == 75 and found["cluster"]["code"] == found["gpu quota"]["code"] == 75
    code, found = doctor("--short", KUBECONFIG=str(tmp_path / "nothing"))
    assert code == 2 and "expected a cluster in KUBECONFIG" in found["cluster"]["found"]


@pytest.mark.parametrize("account", ["", "millrace-launcher"])
def test_the_pod_tells_what_it_finds_from_where_stages_run(account: str, doctor: Any, ground: Any) -> None:
    with_code(ground)
    code, found = doctor(account=account, start=OVER_THE_IMAGE)
    assert code == 0
    assert (
        os.environ["TEST_STAGE_IMAGE"] in found["image"]["found"]
        and "s after it was asked for" in found["image"]["found"]
    )
    inside = {name.removeprefix("pod: ") for name in found if name.startswith("pod: ")}
    assert {"database", "pgvector", "migrations", "bucket", "registry", "base model", "ports", "versions"} <= inside
    assert ground.host in found["pod: ports"]["found"]
    assert not ground.pods()


def test_a_secret_that_is_wrong_is_found_from_inside(doctor: Any, ground: Any, stack: Any) -> None:
    with_code(ground)
    ground.core.patch_namespaced_secret(
        "millrace-stage",
        ground.namespace,
        {"stringData": {"MILLRACE_DATABASE_URL": f"postgresql://u:hidden-pw@{ground.host}:9/x"}},
    )
    try:
        code, found = doctor(start=OVER_THE_IMAGE)
    finally:
        url = stack.env["MILLRACE_DATABASE_URL"].replace("127.0.0.1", ground.host)
        ground.core.patch_namespaced_secret(
            "millrace-stage", ground.namespace, {"stringData": {"MILLRACE_DATABASE_URL": url}}
        )
    assert code == 75 and found["pod: database"]["code"] == 75 and found["pod: bucket"]["status"] == "ok"
    assert "hidden-pw" not in json.dumps(found)


def test_an_image_that_is_not_there_and_a_secret_that_is_missing(doctor: Any, ground: Any) -> None:
    code, found = doctor(MILLRACE_STAGE_IMAGE="127.0.0.1:9/no/such:image")
    assert code == 2 and "expected the image to be pulled, found ErrImagePull" in found["image"]["found"]
    code, found = doctor(MILLRACE_KUBERNETES_SECRET="no-such-secret")
    assert code == 2 and "make the secret no-such-secret" in found["image"]["next"]
    assert not ground.pods()


# Starts the doctor with a pod whose command first unpacks a ConfigMap: the only change to what the product does.
PATCH = f"""
import sys
from tasks.doctor import pod, podspec
made = podspec.pod
def pod_with_code(settings, name, arguments, gpus=0):
    body = made(settings, name, arguments, gpus)
    spec = body["spec"]
    spec["volumes"].append({{"name": "code", "configMap": {{"name": "{CODE}"}}}})
    container = spec["containers"][0]
    container["volumeMounts"].append({{"name": "code", "mountPath": "/code"}})
    script = "mkdir /tmp/code && tar xzf /code/code.tgz -C /tmp/code && cp -r /opt/millrace/requirements /tmp/code && cd /tmp/code"
    container["command"] = ["sh", "-c", script + ' && exec "$0" "$@"', *arguments]
    return body
podspec.pod = pod_with_code
from tasks.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
OVER_THE_IMAGE = ("-c", PATCH)


def with_code(ground: Any) -> None:
    """Put the code of this checkout into the namespace, once."""
    from kubernetes import client

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(REPOSITORY / "tasks", "tasks", filter=lambda i: None if "__pycache__" in i.name else i)
    body = client.V1ConfigMap(
        metadata=client.V1ObjectMeta(name=CODE), binary_data={"code.tgz": base64.b64encode(packed.getvalue()).decode()}
    )
    names = [each.metadata.name for each in ground.core.list_namespaced_config_map(ground.namespace).items]
    if CODE not in names:
        ground.core.create_namespaced_config_map(ground.namespace, body)
