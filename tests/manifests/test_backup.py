"""The component of nightly backups, which no overlay has by itself: it wants a secret and a place of its own."""

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from tests.manifests.installations import Network, filled
from tests.manifests.kustomize import ROOT, Object, render
from tests.manifests.test_schemas import VERSIONS


@pytest.fixture
def objects(tmp_path: Path) -> list[Object]:
    """The component on the base, as an overlay of one's own has it."""
    (tmp_path / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: millrace\n"
        f"resources: [{ROOT / 'base'}]\ncomponents: [{ROOT / 'components' / 'backup'}]\n"
        "images: [{name: millrace-backup, newName: registry.example/stage, newTag: 1.2.3}]\n",
        encoding="utf-8",
    )
    return render(tmp_path)


def template(objects: list[Object]) -> Any:
    (job,) = [each for each in objects if each["kind"] == "CronJob"]
    return job["spec"]["jobTemplate"]["spec"]["template"]


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_it(version: str, objects: list[Object]) -> None:
    for each in objects:
        kubernetes_validate.validate(each, version, strict=True)


def test_its_pod_is_confined_and_pinned(objects: list[Object]) -> None:
    spec = template(objects)["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 10001
    assert not spec["automountServiceAccountToken"] and not spec["enableServiceLinks"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert container["image"] == "registry.example/stage:1.2.3"
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    names = {(each["kind"], each["metadata"]["name"]) for each in objects}
    assert {("ServiceAccount", spec["serviceAccountName"]), ("PriorityClass", spec["priorityClassName"])} <= names


@pytest.mark.parametrize("overlay", ["small", "eks"])
def test_it_reaches_database_and_storage(overlay: str, objects: list[Object]) -> None:
    network = Network(filled(overlay))
    labels = template(objects)["metadata"]["labels"]
    assert network.leaves(labels, 5432, address="192.0.2.10")
    assert network.leaves(labels, 443 if overlay == "eks" else 8333, address="192.0.2.20")
    assert not network.leaves(labels, 443, address="198.51.100.7")
