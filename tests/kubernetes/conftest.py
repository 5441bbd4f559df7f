"""A live Airflow that launches pods on a real cluster, as the service account of infra/kubernetes.

`KUBECONFIG` names the cluster, `TEST_STAGE_IMAGE` the image (target `test` of docker/stage.Dockerfile) that its
nodes have, `TEST_NODE_COMMAND` (optional) a command that takes `stop-node NAME` and `start-node NAME`.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.airflow_home import REPOSITORY
from tests.airflow_home import prepare as prepare_airflow
from tests.live_airflow import Airflow, environment, running

HERE = Path(__file__).parent
FIXTURE = REPOSITORY / "tests" / "plugins" / "stages" / "fixture_stage.py"
SMOKE = REPOSITORY / "tasks" / "training" / "recipes" / "smoke_cpu.yaml"
# Small enough for a cluster of two cores.
SIZES = {
    "MILLRACE_GPU_POD_CPUS": "0.2", "MILLRACE_GPU_POD_MEMORY_GB": "3", "MILLRACE_GPU_POD_SCRATCH_GB": "4",
    "MILLRACE_POD_CPUS": "0.2", "MILLRACE_POD_MEMORY_GB": "3", "MILLRACE_POD_SCRATCH_GB": "4",
    "MILLRACE_GPUS_PER_NODE": "12",  # more than gpu-0 has, so that the scheduler's own word is seen too
}  # fmt: skip
# A worker that was killed is noticed within seconds.
QUICK = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "AIRFLOW__CORE__PARALLELISM": "6",
}

prepare_airflow()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from tests.kubernetes.cluster import missing

    if reason := missing():
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


def longer(recipe: str) -> str:
    """Return a recipe of the same training with eight times the steps: time to be disturbed."""
    assert "train_rows: 24\n" in recipe
    return recipe.replace("train_rows: 24\n", "train_rows: 192\n")


@pytest.fixture(scope="session")
def within_reach(stack: Any) -> Iterator[None]:
    """The stack's servers, at the address of this machine that pods reach."""
    from tests.kubernetes.cluster import Cluster, Forward

    with Forward(Cluster().host, (stack.settings.ports[p] for p in ("postgres", "s3", "mlflow"))):
        yield


@pytest.fixture(scope="session")
def cluster(stack: Any, within_reach: None) -> Iterator[Any]:
    """The cluster, with a namespace, the stages' secret, and the stack's servers within the pods' reach."""
    from tests.kubernetes.cluster import Cluster

    with Cluster() as made:
        values = {name: value.replace("127.0.0.1", made.host) for name, value in stack.env.items()}
        made.put_secret(values)
        made.put_files("fixture-stage", FIXTURE)
        made.put_text("recipe", "long.yaml", longer(SMOKE.read_text(encoding="utf-8")))
        yield made


@pytest.fixture(scope="module")  # it must not stand beside the Airflow of the whole loop: there are two processors
def airflow(cluster: Any, stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    """Airflow with MILLRACE_LAUNCHER=kubernetes; its DAGs are those of live/ and the product's fine_tune."""
    from tasks.database import migrate
    from tests.kubernetes.cluster import LAUNCHER

    migrate(stack.database_url)
    folder = tmp_path_factory.mktemp("airflow")
    dags = folder / "dags"
    shutil.copytree(HERE / "live", dags, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "dags" / "fine_tune.py", dags)
    connection = {
        "conn_type": "kubernetes",
        "extra": {"kube_config_path": str(cluster.kubeconfig_of(LAUNCHER, folder / "launcher.kubeconfig"))},
    }
    values = stack.env | SIZES | QUICK | {
        "MILLRACE_LAUNCHER": "kubernetes", "MILLRACE_STAGE_IMAGE": os.environ["TEST_STAGE_IMAGE"],
        "MILLRACE_KUBERNETES_NAMESPACE": cluster.namespace, "MILLRACE_RECIPE": "smoke_cpu",
        "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(connection),
    }  # fmt: skip
    made = {name: value for name, value in environment(folder, dags, values).items() if name != "KUBECONFIG"}
    with running(folder, made, dags=6) as client:
        yield client
