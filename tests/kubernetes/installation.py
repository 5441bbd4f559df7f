"""infra/kubernetes on the cluster of the tests: rendered, moved to a namespace, filled in, and applied as `kubectl apply` does.

The manifests are written for a current Kubernetes. What an old cluster knows under an older name only is translated by the
table OLDER, and nothing else is: an object that the cluster does not know fails the test.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import NotFoundError

from tests.manifests.kustomize import CLUSTER_WIDE, ROOT, Object, containers, render

# Kubernetes before 1.21, 1.23: the same objects under an older version, and the fields that this does not know.
OLDER: dict[str, tuple[str, tuple[str, ...]]] = {
    "policy/v1": ("policy/v1beta1", ("unhealthyPodEvictionPolicy",)),
    "autoscaling/v2": ("autoscaling/v2beta2", ()),
}
OWNER = "millrace-test"


class Installation:
    """One overlay in one namespace."""

    def __init__(self, folder: str, namespace: str) -> None:
        self.namespace = namespace
        self.objects = moved(render(ROOT / folder), namespace)

    def fill(self, values: dict[str, Any]) -> "Installation":
        """Put what an operator has to fill in where it is asked for."""
        text = json.dumps(self.objects)
        for name, value in values.items():
            text = text.replace(f'"{name}"', json.dumps(value))
        self.objects = json.loads(text)
        return self

    def find(self, kind: str, name: str) -> Object:
        return next(each for each in self.objects if (each["kind"], each["metadata"]["name"]) == (kind, name))

    def set_images(self, image: str) -> None:
        """Give every container that would run one of our images this one."""
        for each in self.objects:
            for container in containers(each):
                container["image"] = image

    def apply(self, api: client.ApiClient, *names: tuple[str, str]) -> None:
        """Apply all objects, or those of a kind and name. Raises ApiException for what the cluster refuses."""
        dynamic = DynamicClient(api)
        served = set(versions(api))
        for each in self.objects:
            if not names or (each["kind"], each["metadata"]["name"]) in names:
                apply(dynamic, for_cluster(each, served))


def versions(api: client.ApiClient) -> Iterator[str]:
    """Yield every apiVersion that the cluster serves."""
    yield "v1"
    for group in client.ApisApi(api).get_api_versions().groups:
        for version in group.versions:
            yield version.group_version


def for_cluster(each: Object, served: Iterable[str]) -> Object:
    """Return an object as this cluster knows it."""
    version = each["apiVersion"]
    if version in served or version not in OLDER:
        return each
    older, unknown = OLDER[version]
    spec = {name: value for name, value in each["spec"].items() if name not in unknown}
    return each | {"apiVersion": older, "spec": spec}


def apply(dynamic: DynamicClient, each: Object) -> None:
    """Apply one object by server-side apply: it may be there already (the account `default`, a priority class)."""
    kind = dynamic.resources.get(api_version=each["apiVersion"], kind=each["kind"])
    meta = each["metadata"]
    if each["kind"] == "PriorityClass":
        # Shared by all namespaces, and its value may not change: the one of an older run has to be the same.
        try:
            assert kind.get(name=meta["name"]).value == each["value"]
            return
        except NotFoundError:
            pass
    dynamic.server_side_apply(
        kind, body=each, name=meta["name"], namespace=meta.get("namespace"), field_manager=OWNER, force_conflicts=True
    )


def moved(objects: list[Object], namespace: str) -> list[Object]:
    """Return objects in another namespace, as an overlay with that `namespace` would have them."""
    for each in objects:
        if each["kind"] == "Namespace":
            each["metadata"]["name"] = namespace
        elif each["kind"] not in CLUSTER_WIDE:
            each["metadata"]["namespace"] = namespace
        for subject in each.get("subjects", ()):
            subject["namespace"] = namespace
    return objects


def evict(api: client.ApiClient, pod: Any) -> int:
    """Ask for the eviction of a pod, as a drain does; return the status of the answer."""
    body = {"metadata": {"name": pod.metadata.name, "namespace": pod.metadata.namespace}}
    modern = "policy/v1" in set(versions(api))
    body |= {"apiVersion": "policy/v1" if modern else "policy/v1beta1", "kind": "Eviction"}
    try:
        client.CoreV1Api(api).create_namespaced_pod_eviction(pod.metadata.name, pod.metadata.namespace, body)
    except ApiException as error:
        return int(error.status)
    return 201
