"""Rules of our own for every pod of every overlay: what it may do, what it takes, and how it is looked after."""

import re
from collections.abc import Iterator

import pytest

from tests.manifests.installations import OVERLAYS, Network, filled, selects, workloads
from tests.manifests.kustomize import ROOT, Object, containers, identity, pod_of, render

PLACEHOLDER = re.compile(r"[A-Z]{3,}(-[A-Z]+)+|REGISTRY/")


def each_container(overlay: str) -> Iterator[tuple[str, Object, Object]]:
    """Yield name, pod specification and container of all pods of an overlay."""
    for each in workloads(filled(overlay)):
        pod = pod_of(each)
        assert pod is not None
        for container in containers(each):
            yield f"{each['metadata']['name']}/{container['name']}", pod["spec"], container


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_is_confined(overlay: str) -> None:
    seen = 0
    for name, pod, container in each_container(overlay):
        seen += 1
        whole, own = pod["securityContext"], container["securityContext"]
        assert whole["runAsNonRoot"] is True and whole["runAsUser"] >= 1000, name
        assert whole["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True, name
        assert own["capabilities"] == {"drop": ["ALL"]}, name
        assert not {"privileged", "runAsUser", "procMount", "seccompProfile"} & set(own), name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), name
        assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False, name
        assert all(set(volume) & {"emptyDir", "configMap", "secret"} for volume in pod["volumes"]), name
    assert seen >= 2


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_says_what_it_takes(overlay: str) -> None:
    for name, pod, container in each_container(overlay):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert {"cpu", "memory", "ephemeral-storage"} <= set(requests), name
        assert {"memory", "ephemeral-storage"} <= set(limits), name
        # More memory than asked for invites an eviction; GPUs are whole.
        assert requests["memory"] == limits["memory"], name
        assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu"), name
        assert all("sizeLimit" in volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_image_is_pinned(overlay: str) -> None:
    for name, _pod, container in each_container(overlay):
        image = container["image"]
        assert re.search(r"@sha256:[0-9a-f]{64}$|:v?\d+\.\d+\.\d+$", image), f"{name}: {image}"
        if overlay != "small" and "vllm-openai" not in image:
            assert "@sha256:" in image, f"{name}: {image}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_server_is_looked_after(overlay: str) -> None:
    for each in workloads(filled(overlay)):
        pod = pod_of(each)
        assert pod is not None
        for container in pod["spec"]["containers"]:
            probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
            ports = {port["name"] for port in container["ports"]}
            assert all(probe["port"] in ports for probe in probes.values())
            # What knows of a database or of a model must not restart the pod.
            assert probes["liveness"]["path"] in {"/healthz", "/health"}
        assert pod["spec"]["priorityClassName"] == "millrace-serving"
        assert pod["metadata"]["labels"].items() >= each["spec"]["selector"]["matchLabels"].items()


def test_the_assistant_ends_its_requests_before_it_is_killed() -> None:
    from tasks.serving.server import GRACE_SECONDS

    assistant = next(each for each in workloads(filled("eks")) if each["metadata"]["name"] == "assistant")
    spec = assistant["spec"]["template"]["spec"]
    pause = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    log_writer = 30  # RequestLog.close waits for its thread
    assert spec["terminationGracePeriodSeconds"] >= pause + GRACE_SECONDS + log_writer + 5
    assert "replicas" not in assistant["spec"], "the autoscaler decides"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_points_at_an_object_finds_it(overlay: str) -> None:
    objects = filled(overlay)
    names = {(each["kind"], each["metadata"]["name"]) for each in objects}
    for each in workloads(objects):
        spec = each["spec"]["template"]["spec"]
        assert ("ServiceAccount", spec["serviceAccountName"]) in names
        assert ("PriorityClass", spec["priorityClassName"]) in names
    for each in objects:
        if each["kind"] == "HorizontalPodAutoscaler":
            target = each["spec"]["scaleTargetRef"]
            assert (target["kind"], target["name"]) in names
            assert each["spec"]["minReplicas"] > 1, "the budget of one pod would stop every drain"
        if each["kind"] in {"PodDisruptionBudget", "Service"}:
            selector = each["spec"]["selector"]
            chosen = selector if each["kind"] == "PodDisruptionBudget" else {"matchLabels": selector}
            labels = [each["spec"]["template"]["metadata"]["labels"] for each in workloads(objects)]
            assert sum(selects(chosen, each) for each in labels) == 1, identity(each)
        if each["kind"] == "RoleBinding":
            assert (each["roleRef"]["kind"], each["roleRef"]["name"]) in names
            assert {("ServiceAccount", subject["name"]) for subject in each["subjects"]} <= names
    network = Network(objects)
    for each in workloads(objects):
        labels = each["spec"]["template"]["metadata"]["labels"]
        for direction in ("Ingress", "Egress"):
            assert len(network.of(labels, direction)) > 1, f"only denied: {each['metadata']['name']} {direction}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_has_to_be_filled_in_cannot_be_forgotten(overlay: str) -> None:
    """Every placeholder stands where it is refused: as an address, a port, or the name of an image, or of a model."""
    for each in render(ROOT / "overlays" / overlay):
        for path, text in strings(each):
            if PLACEHOLDER.search(text):
                assert path.endswith(("ipBlock.cidr", ".ports.port", ".image", ".MODEL")), f"{identity(each)} {path}"
    assert not [
        text for each in filled(overlay) for _path, text in strings(each) if PLACEHOLDER.search(text)
    ]  # or the tests below look at something else than what is applied


def strings(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of an object with where it stands."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from strings(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner, path)
    elif isinstance(value, str):
        yield path, value
