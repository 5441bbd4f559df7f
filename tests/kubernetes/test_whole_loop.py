"""The whole loop on a real cluster, every stage in a pod: documents, training, a release that a person approves, the assistant's
pods that answer with it, their requests, the drift in them, and the training that this starts. Then what the pods bear.

Airflow runs on this machine, with the service account of infra/kubernetes and the product's own DAGs. The corpus is small: the
shortest topics of Python's reference, in S3.
"""

import base64
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from local.airflow_api import AirflowClient
from local.loop import DAGS, QUESTIONS, Findings
from local.progress import Progress
from local.stack import EmbeddedStack
from tests.airflow_home import REPOSITORY
from tests.kubernetes.assistants import KEY, Assistants, environment
from tests.kubernetes.cluster import LAUNCHER, Cluster, Forward, wait_for
from tests.kubernetes.conftest import SIZES
from tests.kubernetes.installation import Installation, evict
from tests.kubernetes.test_overlays import addresses
from tests.kubernetes.whole_loop import (
    BASE_MODEL,
    CORPUS,
    GOLDEN,
    TOPICS,
    ClusterLoop,
    Seen,
    database_url,
    requests_of,
    upload_base_model,
    upload_corpus,
)
from tests.live_airflow import environment as airflow_environment
from tests.live_airflow import running

pytestmark = [pytest.mark.kubernetes, pytest.mark.airflow, pytest.mark.slow]

REQUESTS = 120  # of each file: enough for a window that is judged
STAGES = {
    "knowledge": {"list_documents", "read_documents", "validate_documents", "index_documents", "check_index", "switch_index"},
    "fine-tuning": {
        "preflight", "build_dataset", "validate_dataset", "plan_training", "train", "evaluate", "gate", "register",
    },
    "release": {"propose", "promote", "announce"},
    "drift": {"collect_requests", "report_drift", "decide"},
}  # fmt: skip


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    """Postgres, S3 and MLflow of this loop alone, with its corpus and its questions in S3."""
    from tasks.database import migrate
    from tasks.storage import Storage

    folder = tmp_path_factory.mktemp("loop-stack")
    with (
        EmbeddedStack(folder, parts=("postgres", "s3", "mlflow"), ports="free") as started,
        pytest.MonkeyPatch.context() as m,
    ):
        for name, value in started.env.items():
            if name.startswith("AWS_"):
                m.setenv(name, value)
        storage = Storage(started.env["MILLRACE_S3_ENDPOINT_URL"])
        upload_corpus(storage)
        upload_base_model(storage, folder)
        migrate(started.database_url)
        yield started


@pytest.fixture(scope="module")
def cluster(stack: EmbeddedStack) -> Iterator[Cluster]:
    """The overlay `small`, with the secrets of stages and assistant, and the stack within the pods' reach."""
    made = Cluster("overlays/small")
    made.installation.fill(addresses(made.host, stack.settings.ports["s3"]))
    made.installation.set_images(os.environ["TEST_STAGE_IMAGE"])
    made.installation.find("Deployment", "mlflow")["spec"]["replicas"] = 0
    with Forward(made.host, (stack.settings.ports[part] for part in ("postgres", "s3", "mlflow"))), made:
        stages = {name: value.replace("127.0.0.1", made.host) for name, value in stack.env.items()}
        made.put_secret(stages | {
            "MILLRACE_CORPUS": CORPUS, "MILLRACE_GOLDEN_QUESTIONS": GOLDEN,
            "MILLRACE_RECIPE": "smoke_cpu", "MILLRACE_BASE_MODEL": BASE_MODEL,
        })  # fmt: skip
        made.put_secret(environment(stack.env, made.host), "millrace-assistant")
        yield made


@pytest.fixture(scope="module")
def airflow(
    cluster: Cluster, stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AirflowClient]:
    """Airflow with MILLRACE_LAUNCHER=kubernetes and all DAGs of the product."""
    folder = tmp_path_factory.mktemp("loop-airflow")
    kubeconfig = str(cluster.kubeconfig_of(LAUNCHER, folder / "launcher.kubeconfig"))
    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": kubeconfig}}
    values = stack.env | SIZES | {
        "MILLRACE_LAUNCHER": "kubernetes", "MILLRACE_STAGE_IMAGE": os.environ["TEST_STAGE_IMAGE"],
        "MILLRACE_KUBERNETES_NAMESPACE": cluster.namespace, "MILLRACE_RECIPE": "smoke_cpu",
        "MILLRACE_POD_PRIORITY_CLASS": "millrace-stages",
        "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(connection),
    }  # fmt: skip
    made = airflow_environment(folder, REPOSITORY / "dags", values)
    with running(
        folder, {name: value for name, value in made.items() if name != "KUBECONFIG"}, dags=len(DAGS)
    ) as client:
        yield AirflowClient(client.url, "admin", "admin")


@pytest.fixture(scope="module")
def assistants(cluster: Cluster) -> Assistants:
    return Assistants(cluster)


@pytest.fixture(scope="module")
def seen(cluster: Cluster) -> Iterator[Seen]:
    with Seen(cluster) as looking:
        yield looking


@pytest.fixture(scope="module")
def findings(
    seen: Seen,
    airflow: AirflowClient,
    assistants: Assistants,
    stack: EmbeddedStack,
    tmp_path_factory: pytest.TempPathFactory,
) -> Findings:
    """What one pass through the loop found."""
    progress = Progress({}, tmp_path_factory.mktemp("loop") / "times.json")
    loop = ClusterLoop(airflow, dict(os.environ) | stack.env | {"MILLRACE_ASSISTANT_KEY": KEY}, progress)
    loop.assistants = assistants
    started = time.monotonic()
    found = loop.run(REQUESTS)
    print(
        f"the loop took {time.monotonic() - started:.0f} s: {json.dumps({k: round(v) for k, v in found.seconds.items()})}"
    )
    return found


def test_every_stage_ran_in_a_pod(findings: Findings, seen: Seen, stack: EmbeddedStack) -> None:
    from tasks.storage import Storage

    storage = Storage(stack.env["MILLRACE_S3_ENDPOINT_URL"])
    for step, stages in STAGES.items():
        references = findings.references[step]
        assert {name.partition("[")[0] for name in references} == stages
        for name, reference in references.items():
            host = json.loads(storage.get_bytes(reference["manifest"]))["host"]
            assert seen.pods[host] == name.partition("[")[0], "the pod was seen, and the manifest was written in it"


def test_documents_became_a_checked_index(findings: Findings) -> None:
    stages = findings.references["knowledge"]
    assert stages["list_documents"]["counts"]["documents"] == len(TOPICS)
    assert stages["check_index"]["metrics"]["recall_at_5"] >= 0.6


def test_a_person_released_a_trained_candidate(findings: Findings) -> None:
    assert findings.references["fine-tuning"]["train"]["facts"]["ranks"] == 2
    assert findings.approved == findings.runs["release"]["dag_run_id"]
    assert findings.references["release"]["promote"]["facts"]["release"] == 1


def test_every_pod_answers_with_the_release(findings: Findings, assistants: Assistants) -> None:
    assert len(findings.answers) == len(QUESTIONS)
    answers = [assistants.ask(address, QUESTIONS[0]).raise_for_status().json() for address in assistants.wait(2)]
    assert len(answers) == 2
    for answer in findings.answers + answers:
        assert answer["choices"][0]["message"]["content"].strip()
        assert answer["millrace"]["release"] == 1
        assert answer["documents"] and all(each["uri"].startswith(f"{CORPUS}/") for each in answer["documents"])


def test_requests_drifted_and_started_a_training(findings: Findings) -> None:
    assert findings.replays["before"]["answered"] == findings.replays["after"]["answered"] == REQUESTS
    assert findings.feedback > 0
    facts = findings.references["drift"]["decide"]["facts"]
    assert (facts["action"], facts["dag_id"]) == ("train_again", "fine_tune")
    assert findings.started is not None and findings.started["dag_run_id"] == facts["dag_run_id"]


def test_no_pod_of_a_stage_is_left(findings: Findings, cluster: Cluster) -> None:
    wait_for(lambda: not [pod for pod in cluster.pods() if "millrace/stage" in (pod.metadata.labels or {})], 90)


def test_a_deleted_pod_ends_its_answer_and_another_takes_over(
    findings: Findings, cluster: Cluster, assistants: Assistants
) -> None:
    first, second = assistants.wait(2)[:2]
    leaving = next(pod for pod in assistants.pods() if pod.status.pod_ip == first)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(assistants.ask, first, "Explain the while statement at length.", tokens=60)
        time.sleep(1)  # the answer takes longer than this
        assert not answer.done()
        cluster.delete_pod(leaving)
        wait_for(lambda: first not in assistants.ready(), 30)
        assert assistants.ask(second, "What does the del statement do?").status_code == 200
        found = answer.result(90).raise_for_status().json()
    assert found["choices"][0]["message"]["content"].strip()
    assert first not in assistants.wait(2)
    rows = requests_of(database_url(cluster), found["request_id"])
    assert rows == 1, "the request of the pod that left is in the log"


def test_a_drain_takes_one_at_a_time(findings: Findings, cluster: Cluster, assistants: Assistants) -> None:
    assistants.wait(2)
    first, second = assistants.pods()
    assert evict(cluster.api, first) == 201
    # The other is the last one that answers: it stays until there are two again.
    assert evict(cluster.api, second) == 429
    assert assistants.ask(second.status.pod_ip, "What does the pass statement do?").status_code == 200
    assistants.wait(2)
    wait_for(lambda: evict(cluster.api, second) == 201, 30)
    assistants.wait(2)
    assert second.status.pod_ip not in assistants.ready()
    assert assistants.restarts() == 0


def test_the_model_server_finds_its_model(cluster: Cluster) -> None:
    """The container `fetch` of components/vllm, by itself: what follows it needs a GPU and an image that is not at hand."""
    vllm = Installation("overlays/eks-vllm", cluster.namespace).fill({"SET-THE-MODEL": BASE_MODEL})
    vllm.set_images(os.environ["TEST_STAGE_IMAGE"])
    vllm.apply(cluster.api, ("ConfigMap", "vllm"), ("ServiceAccount", "vllm"))
    secret = cluster.core.read_namespaced_secret("millrace-assistant", cluster.namespace).data
    cluster.put_secret(
        {
            name: base64.b64decode(value).decode()
            for name, value in secret.items()
            if name.startswith(("AWS_", "MILLRACE_S3_"))
        },
        "millrace-vllm",
    )
    whole = vllm.find("Deployment", "vllm")["spec"]["template"]["spec"]
    kept = ("serviceAccountName", "automountServiceAccountToken", "enableServiceLinks", "securityContext", "volumes")
    spec = {name: whole[name] for name in kept} | {"containers": whole["initContainers"], "restartPolicy": "Never"}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fetch"}, "spec": spec}
    cluster.core.create_namespaced_pod(cluster.namespace, body)

    def phase() -> str:
        return str(cluster.core.read_namespaced_pod("fetch", cluster.namespace).status.phase)

    wait_for(lambda: phase() in {"Succeeded", "Failed"}, 180)
    log = str(cluster.core.read_namespaced_pod_log("fetch", cluster.namespace))
    assert phase() == "Succeeded", log
    assert "served: /models/s3-" in log
