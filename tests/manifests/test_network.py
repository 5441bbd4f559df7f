"""Who reaches whom: every pod of Millrace and Airflow against every place, by the policies of each overlay."""

import pytest

from tests.manifests.installations import FILLED, METADATA, OVERLAYS, Network, filled
from tests.manifests.kustomize import ROOT, render

PART = {"app.kubernetes.io/part-of": "millrace"}
PODS = {
    "stage": PART | {"millrace/stage": "index_documents"},
    "build": PART | {"millrace/stage": "build_dataset"},
    "train": PART | {"millrace/stage": "train"},
    "assistant": PART | {"app.kubernetes.io/name": "assistant"},
    "mlflow": PART | {"app.kubernetes.io/name": "mlflow"},
    "vllm": PART | {"app.kubernetes.io/name": "vllm"},
    "task": PART | {"tier": "airflow", "component": "worker"},  # helm/airflow.yaml gives the chart's pods the label
    "ui": PART | {"tier": "airflow", "component": "api-server"},
    "stranger": {"app": "stranger"},
}
PLACES = {
    "database": (FILLED["DATABASE-CIDR"].split("/")[0], 5432),
    "storage": (FILLED["OBJECT-STORAGE-CIDR"].split("/")[0], None),
    "kubernetes": (FILLED["KUBERNETES-API-CIDR"].split("/")[0], 443),
    "git": (FILLED["GIT-CIDR"].split("/")[0], 22),
    "the internet": ("198.51.100.7", 443),
    "a neighbour": ("10.0.9.9", 443),
    "the cloud's metadata": (METADATA, 80),
}
STORES = {"database", "storage"}
REACHED = {
    "stage": STORES, "build": STORES, "train": STORES, "assistant": STORES, "mlflow": STORES, "vllm": {"storage"},
    "task": STORES | {"kubernetes", "git"}, "ui": STORES | {"kubernetes", "git"}, "stranger": set[str](),
}  # fmt: skip
# Secrets Manager and its like have no short list of addresses: on EKS Airflow's own pods reach any by HTTPS.
ANYWHERE = {"the internet", "a neighbour", "storage"}
DNS = {"namespace": {"kubernetes.io/metadata.name": "kube-system"}, "pod": {"k8s-app": "kube-dns"}}


def port_of_storage(overlay: str) -> int:
    return int(FILLED["OBJECT-STORAGE-PORT"]) if overlay == "small" else 443


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("pod", PODS)
def test_a_pod_reaches_what_it_needs_and_nothing_else(pod: str, overlay: str) -> None:
    network = Network(filled(overlay))
    reached = {
        place
        for place, (address, port) in PLACES.items()
        if network.leaves(PODS[pod], port or port_of_storage(overlay), address=address)
    }
    aws = ANYWHERE if overlay != "small" and pod in {"task", "ui"} else set()
    assert reached == REACHED[pod] | aws
    assert network.leaves(PODS[pod], 53, **DNS)
    assert not network.leaves(PODS[pod], 53, address="198.51.100.7")
    for port in (80, 443, 5432):
        assert not network.leaves(PODS[pod], port, address=METADATA)
    asked = overlay != "small" and pod != "stranger"  # the agent of EKS Pod Identity
    assert network.leaves(PODS[pod], 80, address="169.254.170.23") is asked


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_reach_each_other_where_they_have_to(overlay: str) -> None:
    network = Network(filled(overlay))
    ports = {"mlflow": 5000, "assistant": 8000, "vllm": 8000, "train": 29500, "ui": 8080, "task": 8793, "stage": 8000}
    reached = {
        (one, other)
        for one in PODS
        for other, port in ports.items()
        if network.reaches(PODS[one], PODS[other], port) and one != "stranger"
    }
    wanted = {(one, "mlflow") for one in ("stage", "build", "train", "assistant")} | {("train", "train")}
    wanted |= {("task", "ui"), ("ui", "task"), ("ui", "ui"), ("task", "task")}
    assert reached == wanted | ({("build", "vllm")} if overlay == "eks-vllm" else set())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_people_come_in_by_a_label_on_their_namespace(overlay: str) -> None:
    network = Network(filled(overlay))
    for pod, port, label in (("assistant", 8000, "may-ask"), ("ui", 8080, "may-operate")):
        assert network.enters(PODS[pod], port, namespace={f"millrace/{label}": "yes"}, pod={})
        assert not network.enters(PODS[pod], port, namespace={}, pod={})
        assert not network.enters(PODS[pod], port + 1, namespace={f"millrace/{label}": "yes"}, pod={})
    assert not network.enters(PODS["mlflow"], 5000, namespace={"millrace/may-ask": "yes"}, pod={})


def test_by_itself_the_base_lets_nobody_out() -> None:
    network = Network(render(ROOT / "base"))
    for labels in PODS.values():
        assert not [
            place for place, (address, port) in PLACES.items() if network.leaves(labels, port or 443, address=address)
        ]
        assert network.leaves(labels, 53, **DNS)


@pytest.mark.parametrize("pod", ["stage", "build", "train", "assistant", "vllm"])
def test_the_hub_is_public_addresses_only(pod: str) -> None:
    network = Network(render(ROOT / "base") + render_component("hub"))
    reached = {
        place for place, (address, port) in PLACES.items() if network.leaves(PODS[pod], port or 443, address=address)
    }
    assert "the internet" in reached and not reached & {"a neighbour", "the cloud's metadata"}
    assert not network.leaves(PODS[pod], 80, address="198.51.100.7")
    assert not network.leaves(PODS[pod], 443, address=METADATA)


def render_component(name: str) -> list[dict[str, object]]:
    import yaml

    return list(yaml.safe_load_all((ROOT / "components" / name / "network.yaml").read_text(encoding="utf-8")))
