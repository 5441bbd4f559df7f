"""The overlays as an operator would apply them: what has to be filled in, filled in; and who reaches whom by their policies."""

import ipaddress
import json
from collections.abc import Mapping
from typing import Any

from tests.manifests.kustomize import ROOT, Object, pod_of, render

OVERLAYS = sorted(path.name for path in (ROOT / "overlays").iterdir())
DIGEST = "0123456789abcdef" * 4
# What the files say, and what an operator puts there. Addresses of documentation (RFC 5737) stand for servers outside.
FILLED: dict[str, Any] = {
    "DATABASE-CIDR": "192.0.2.10/32",
    "OBJECT-STORAGE-CIDR": "192.0.2.20/32",
    "OBJECT-STORAGE-PORT": 8333,
    "KUBERNETES-API-CIDR": "192.0.2.30/32",
    "GIT-CIDR": "192.0.2.40/32",
    "SET-THE-MODEL": "s3://models/teacher",
    "DIGEST-OF-TARGET-ASSISTANT": DIGEST,
    "DIGEST-OF-MLFLOW": DIGEST,
    "DIGEST-OF-TARGET-CPU": DIGEST,
    "REGISTRY/": "registry.example/",
}
METADATA = "169.254.169.254"  # of the cloud: it hands out the node's rights


def filled(overlay: str, values: Mapping[str, Any] = FILLED) -> list[Object]:
    """Return the objects of an overlay with every placeholder filled in."""
    text = json.dumps(render(ROOT / "overlays" / overlay))
    for name, value in values.items():
        text = text.replace(f'"{name}"', json.dumps(value)).replace(name, str(value))
    found: list[Object] = json.loads(text)
    return found


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Return whether a label selector takes an object with these labels."""
    for each in selector.get("matchExpressions", ()):
        value = labels.get(each["key"])
        holds = {
            "Exists": value is not None,
            "DoesNotExist": value is None,
            "In": value in each.get("values", ()),
            "NotIn": value not in each.get("values", ()),
        }[each["operator"]]
        if not holds:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


class Network:
    """The policies of one namespace, as Kubernetes reads them: what any of them allows is allowed."""

    def __init__(self, objects: list[Object]) -> None:
        self.policies = [each["spec"] for each in objects if each["kind"] == "NetworkPolicy"]

    def of(self, labels: Mapping[str, str], direction: str) -> list[Object]:
        """Return the policies that hold for a pod."""
        return [p for p in self.policies if direction in p["policyTypes"] and selects(p["podSelector"], labels)]

    def leaves(self, labels: Mapping[str, str], port: int, **other: Any) -> bool:
        """Return whether a pod may open a connection to an address, or to a pod (of a namespace)."""
        return self._allowed(self.of(labels, "Egress"), "egress", "to", port, other)

    def enters(self, labels: Mapping[str, str], port: int, **other: Any) -> bool:
        """Return whether a pod may be reached from an address, or from a pod (of a namespace)."""
        return self._allowed(self.of(labels, "Ingress"), "ingress", "from", port, other)

    def reaches(self, one: Mapping[str, str], other: Mapping[str, str], port: int) -> bool:
        """Return whether one pod of the namespace reaches another."""
        return self.leaves(one, port, pod=other) and self.enters(other, port, pod=one)

    def _allowed(self, policies: list[Object], rules: str, peers: str, port: int, other: Mapping[str, Any]) -> bool:
        return not policies or any(
            _port(rule, port) and any(_peer(peer, **other) for peer in rule[peers])
            for policy in policies
            for rule in policy.get(rules, ())
        )


def _port(rule: Object, port: int) -> bool:
    return "ports" not in rule or any(each.get("port") == port for each in rule["ports"])


def _peer(
    peer: Object,
    address: str | None = None,
    pod: Mapping[str, str] | None = None,
    namespace: Mapping[str, str] | None = None,
) -> bool:
    if block := peer.get("ipBlock"):
        if address is None:
            return False
        where = ipaddress.ip_address(address)
        return where in ipaddress.ip_network(block["cidr"]) and not any(
            where in ipaddress.ip_network(each) for each in block.get("except", ())
        )
    if address is not None or ("namespaceSelector" in peer) != (namespace is not None):
        return False
    return (namespace is None or selects(peer["namespaceSelector"], namespace)) and (
        selects(peer.get("podSelector", {}), pod or {})
    )


def workloads(objects: list[Object]) -> list[Object]:
    """Return what makes pods."""
    return [each for each in objects if pod_of(each) is not None]
