"""The overlay `small` on a real cluster: what it takes and what it refuses, and the assistant before there is a release.

Kubernetes 1.20 knows the disruption budget and the autoscaler under older names (installation.py), and enforces neither network
policies nor pod security: those are proven by tests/manifests only.
"""

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from tests.kubernetes.assistants import DIGEST, Assistants, environment
from tests.kubernetes.cluster import Cluster, wait_for
from tests.kubernetes.installation import Installation

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]


def addresses(host: str, port: int) -> dict[str, Any]:
    """Return what an operator fills in for servers on this machine."""
    places = ("DATABASE-CIDR", "OBJECT-STORAGE-CIDR", "KUBERNETES-API-CIDR", "GIT-CIDR")
    return dict.fromkeys(places, f"{host}/32") | {"OBJECT-STORAGE-PORT": port}


@pytest.fixture(scope="module")
def cluster(stack: Any, within_reach: None) -> Iterator[Cluster]:
    """The overlay, filled in and applied; the assistant's database is there, and holds no release."""
    from tasks.database import migrate

    migrate(stack.database_url)
    made = Cluster("overlays/small")
    made.installation.fill(addresses(made.host, stack.settings.ports["s3"]))
    made.installation.set_images(os.environ["TEST_STAGE_IMAGE"])
    # Its image is another one, and the tests' MLflow runs on this machine.
    made.installation.find("Deployment", "mlflow")["spec"]["replicas"] = 0
    with made:
        made.put_secret(environment(stack.env, made.host), "millrace-assistant")
        yield made


@pytest.fixture(scope="module")
def assistants(cluster: Cluster) -> Assistants:
    return Assistants(cluster)


def test_it_is_all_there(cluster: Cluster) -> None:
    network = client.NetworkingV1Api(cluster.api).list_namespaced_network_policy(cluster.namespace).items
    wanted = {each["metadata"]["name"] for each in cluster.installation.objects if each["kind"] == "NetworkPolicy"}
    assert {each.metadata.name for each in network} == wanted and len(wanted) >= 10
    classes = {each.metadata.name: each for each in client.SchedulingV1Api(cluster.api).list_priority_class().items}
    assert classes["millrace-serving"].value > classes["millrace-stages"].value > 0
    assert classes["millrace-stages"].preemption_policy == "Never"
    cluster.installation.apply(cluster.api)  # again: it changes nothing


@pytest.mark.parametrize("overlay", ["small", "eks"])
def test_an_address_that_is_not_filled_in_is_refused(overlay: str, cluster: Cluster) -> None:
    unfilled = Installation(f"overlays/{overlay}", cluster.namespace)
    for name in ("to-database", "to-object-storage", "airflow-to-kubernetes", "airflow-to-git"):
        with pytest.raises(ApiException) as caught:
            unfilled.apply(cluster.api, ("NetworkPolicy", name))
        assert caught.value.status == 422
        assert "cidr: Invalid value" in caught.value.body or "OBJECT-STORAGE-PORT" in caught.value.body


@pytest.mark.parametrize(
    ("account", "may", "may_not"),
    [
        (
            "airflow-scheduler",
            ["create pods", "watch pods", "patch pods"],
            ["list secrets", "create jobs", "get pods/exec"],
        ),
        ("airflow-api-server", ["list pods", "get pods/log"], ["create pods", "get pods", "list secrets"]),
        ("assistant", [], ["list pods", "list secrets"]),
        ("default", [], ["list pods", "list secrets"]),
    ],
)
def test_an_account_may_what_it_needs(account: str, may: list[str], may_not: list[str], cluster: Cluster) -> None:
    review = client.AuthorizationV1Api(cluster.api)

    def allowed(what: str) -> bool:
        verb, _, resource = what.partition(" ")
        kind, _, sub = resource.partition("/")
        group = "batch" if kind == "jobs" else ""
        attributes = {
            "namespace": cluster.namespace,
            "verb": verb,
            "group": group,
            "resource": kind,
            "subresource": sub,
        }
        spec = {"user": f"system:serviceaccount:{cluster.namespace}:{account}", "resourceAttributes": attributes}
        return bool(review.create_subject_access_review({"spec": spec}).status.allowed)

    assert [what for what in may if not allowed(what)] == []
    assert [what for what in may_not if allowed(what)] == []


def test_the_autoscaler_asks_for_two_at_once(assistants: Assistants) -> None:
    wait_for(lambda: len(assistants.pods()) == 2, 90)
    spec = assistants.pods()[0].spec
    assert spec.priority == 100000 and spec.service_account_name == "assistant"
    assert not [v for v in spec.volumes if v.projected or v.secret], "no token of the cluster's API"


def test_without_a_release_it_lives_and_is_not_ready(assistants: Assistants) -> None:
    wait_for(lambda: all(started(pod) for pod in assistants.pods()), 120)
    for pod in assistants.pods():
        assert assistants.get(pod.status.pod_ip, "/healthz").status_code == 200
        ready = assistants.get(pod.status.pod_ip, "/readyz")
        assert ready.status_code == 503 and ready.json()["problem"] == "the ledger holds no release yet"
        answer = assistants.ask(pod.status.pod_ip, "What does the pass statement do?")
        assert answer.status_code == 503, answer.text
    assert assistants.ready() == []


def test_a_wrong_key_is_refused(assistants: Assistants) -> None:
    address = assistants.pods()[0].status.pod_ip
    answer = assistants.http.get(f"http://{address}:8000/v1/models", headers={"Authorization": f"Bearer {DIGEST}"})
    assert answer.status_code == 401


def test_an_absent_database_restarts_nothing(cluster: Cluster, assistants: Assistants, stack: Any) -> None:
    """Longer than the liveness probe bears: 6 times 10 seconds."""
    url = environment(stack.env, cluster.host)["MILLRACE_DATABASE_URL"]
    _server, _, database = url.rpartition("/")
    away = f"postgresql://nobody:nothing@{cluster.host}:9/{database}"
    set_database(cluster, away)
    try:
        first = {pod.metadata.name for pod in assistants.pods()}
        for pod in assistants.pods():
            cluster.delete_pod(pod)
        wait_for(lambda: len(new := assistants.pods()) == 2 and not first & {p.metadata.name for p in new}, 60)
        wait_for(lambda: all(started(pod) for pod in assistants.pods()), 120)
        end = time.monotonic() + 75
        while time.monotonic() < end:
            assert assistants.restarts() == 0
            time.sleep(5)
        for pod in assistants.pods():
            assert assistants.get(pod.status.pod_ip, "/healthz").status_code == 200
            assert "the ledger cannot be read" in assistants.get(pod.status.pod_ip, "/readyz").json()["problem"]
    finally:
        set_database(cluster, url)


def set_database(cluster: Cluster, url: str) -> None:
    body = {"stringData": {"MILLRACE_DATABASE_URL": url}}
    cluster.core.patch_namespaced_secret("millrace-assistant", cluster.namespace, body)


def started(pod: Any) -> bool:
    statuses = pod.status.container_statuses or []
    return bool(pod.status.pod_ip) and bool(statuses) and all(status.started for status in statuses)
