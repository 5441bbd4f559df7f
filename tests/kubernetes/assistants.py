"""The assistant's pods as a client of its service sees them: those that are ready, and a key."""

import hashlib
from typing import Any

import httpx

from tests.kubernetes.cluster import Cluster, wait_for

KEY = "a key of this test only"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
NAME = {"app.kubernetes.io/name": "assistant"}


class Assistants:
    """The pods of the Deployment `assistant`."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.http = httpx.Client(timeout=120, headers={"Authorization": f"Bearer {KEY}"})

    def pods(self) -> list[Any]:
        """Return the pods that nobody is deleting."""
        found = [pod for pod in self.cluster.pods() if (pod.metadata.labels or {}).items() >= NAME.items()]
        return [pod for pod in found if pod.metadata.deletion_timestamp is None]

    def ready(self) -> list[str]:
        """Return the addresses behind the service: what kube-proxy would send requests to."""
        endpoints = self.cluster.core.read_namespaced_endpoints("assistant", self.cluster.namespace)
        return [address.ip for subset in endpoints.subsets or [] for address in subset.addresses or []]

    def wait(self, number: int, seconds: float = 240) -> list[str]:
        """Wait until so many are ready."""
        wait_for(lambda: len(self.ready()) >= number, seconds)
        return self.ready()

    def get(self, address: str, path: str) -> httpx.Response:
        return self.http.get(f"http://{address}:8000{path}")

    def ask(self, address: str, question: str, tokens: int = 24) -> httpx.Response:
        """Ask one pod a question."""
        messages = [{"role": "user", "content": question}]
        body = {"model": "millrace", "messages": messages, "max_tokens": tokens}
        return self.http.post(f"http://{address}:8000/v1/chat/completions", json=body)

    def restarts(self) -> int:
        return sum(status.restart_count for pod in self.pods() for status in pod.status.container_statuses or [])


def environment(stack: dict[str, str], host: str) -> dict[str, str]:
    """Return the assistant's secret: where the stack is, as its pods reach it, and the digest of the key."""
    wanted = ("MILLRACE_DATABASE_URL", "MILLRACE_S3_", "MILLRACE_MLFLOW_", "AWS_", "HF_HUB_", "TOKENIZERS_")
    found = {name: value.replace("127.0.0.1", host) for name, value in stack.items() if name.startswith(wanted)}
    return found | {"MILLRACE_ASSISTANT_KEY_SHA256": DIGEST}
