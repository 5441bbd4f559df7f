"""A namespace of its own on the cluster that KUBECONFIG names, made from infra/kubernetes, and what tests do to it."""

import asyncio
import os
import shlex
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from tests.kubernetes.installation import Installation

LAUNCHER, QUOTA, SECRET = "millrace-launcher", "millrace-gpus", "millrace-stage"
GPU_NODE = "gpu-0"
WHAT_NEEDS_A_CLUSTER = "a cluster: KUBECONFIG (of an administrator), TEST_STAGE_IMAGE (target test, loaded into it)"


def missing() -> str:
    """Return why these tests cannot run here, or nothing."""
    unset = [name for name in ("KUBECONFIG", "TEST_STAGE_IMAGE") if not os.environ.get(name)]
    return f"needs {WHAT_NEEDS_A_CLUSTER}; unset: {', '.join(unset)}" if unset else ""


class Watch:
    """Looks again and again, in a thread of its own, for the length of a block. What it does is `look`."""

    every = 1.0  # seconds

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._looking, daemon=True)

    def look(self) -> None:
        """Look once."""
        raise NotImplementedError

    def _looking(self) -> None:
        while not self._over.wait(self.every):
            self.look()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


class Cluster:
    """The cluster, as its administrator; a context manager that takes its namespace away again."""

    def __init__(self, folder: str = "base") -> None:
        self.api = config.new_client_from_config(os.environ["KUBECONFIG"])
        self.core = client.CoreV1Api(self.api)
        self.namespace = f"millrace-test-{uuid.uuid4().hex[:6]}"
        self.installation = Installation(folder, self.namespace)

    def __enter__(self) -> "Cluster":
        try:
            self.installation.apply(self.api)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.core.delete_namespace(self.namespace)

    @property
    def host(self) -> str:
        """The address of this machine that pods reach: the one it has on the network of the API server."""
        address = self.api.configuration.host.removeprefix("https://").split("/")[0]
        name, _, port = address.partition(":")
        with socket.create_connection((name, int(port or 443)), timeout=10) as connection:
            return str(connection.getsockname()[0])

    def kubeconfig_of(self, account: str, path: Path) -> Path:
        """Write a kubeconfig with a token of a service account: what Airflow is to the cluster."""
        request = {"spec": {"expirationSeconds": 7200, "audiences": []}}
        token = self.core.create_namespaced_service_account_token(account, self.namespace, request).status.token
        given = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
        current = next(c["context"] for c in given["contexts"] if c["name"] == given["current-context"])
        server = next(c for c in given["clusters"] if c["name"] == current["cluster"])
        context = {"cluster": server["name"], "user": account, "namespace": self.namespace}
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1", "kind": "Config", "current-context": "test", "clusters": [server],
                    "users": [{"name": account, "user": {"token": token}}],
                    "contexts": [{"name": "test", "context": context}],
                }
            )
        )  # fmt: skip
        return path

    def put_secret(self, values: dict[str, str], name: str = SECRET) -> None:
        body = client.V1Secret(metadata=client.V1ObjectMeta(name=name), string_data=values)
        self.core.create_namespaced_secret(self.namespace, body)

    def put_files(self, name: str, *paths: Path) -> None:
        self._put_config(name, {path.name: path.read_text(encoding="utf-8") for path in paths})

    def put_text(self, name: str, file: str, text: str) -> None:
        self._put_config(name, {file: text})

    def _put_config(self, name: str, data: dict[str, str]) -> None:
        body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name), data=data)
        self.core.create_namespaced_config_map(self.namespace, body)

    def set_quota(self, gpus: int) -> None:
        body = {"spec": {"hard": {"requests.nvidia.com/gpu": str(gpus)}}}
        self.core.patch_namespaced_resource_quota(QUOTA, self.namespace, body)
        # The controller copies it to the status, and only then it holds.
        wait_for(lambda: self._quota().status.hard == {"requests.nvidia.com/gpu": str(gpus)})

    def _quota(self) -> Any:
        return self.core.read_namespaced_resource_quota(QUOTA, self.namespace)

    def pods(self, run: str | None = None) -> list[Any]:
        """Return the pods of the namespace, or of one DAG run."""
        found = self.core.list_namespaced_pod(self.namespace).items
        return [pod for pod in found if run is None or pod.metadata.labels.get("run_id") == run]

    def jobs(self, run: str) -> list[Any]:
        found = client.BatchV1Api(self.api).list_namespaced_job(self.namespace, label_selector=f"run_id={run}")
        return list(found.items)

    def services(self, run: str) -> list[Any]:
        return list(self.core.list_namespaced_service(self.namespace, label_selector=f"run_id={run}").items)

    def running(self, run: str) -> Any:
        """Return the one pod of a run as soon as its container runs."""
        found: list[Any] = []

        def runs() -> bool:
            found[:] = [pod for pod in self.pods(run) if pod.metadata.deletion_timestamp is None]
            statuses = [s for pod in found for s in pod.status.container_statuses or []]
            return len(found) == 1 and any(s.state.running for s in statuses)

        wait_for(runs, 120)
        return found[0]

    def delete_pod(self, pod: Any) -> None:
        self.core.delete_namespaced_pod(pod.metadata.name, self.namespace)

    def log(self, pod: Any) -> str:
        try:
            return str(self.core.read_namespaced_pod_log(pod.metadata.name, self.namespace))
        except ApiException:
            return ""

    def node_ready(self, node: str = GPU_NODE) -> bool:
        return any(c.type == "Ready" and c.status == "True" for c in self.core.read_node(node).status.conditions)

    def node(self, action: str) -> None:
        """Stop or start the GPU node, with the command that the environment gives."""
        command = [*shlex.split(os.environ["TEST_NODE_COMMAND"]), f"{action}-node", GPU_NODE]
        subprocess.run(command, check=True, capture_output=True, timeout=300)


class Forward:
    """Listens at an address that pods reach, and passes on to the same ports of 127.0.0.1, where the stack is."""

    def __init__(self, host: str, ports: Iterable[int]) -> None:
        self.host, self.ports = host, list(ports)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> "Forward":
        self.thread.start()
        for port in self.ports:
            asyncio.run_coroutine_threadsafe(self._listen(port), self.loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    async def _listen(self, port: int) -> None:
        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

        await asyncio.start_server(connect, self.host, port)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass everything on until one side ends."""
    try:
        while block := await reader.read(65536):
            writer.write(block)
            await writer.drain()
        writer.write_eof()
    except (ConnectionError, RuntimeError):
        writer.close()  # the other side has gone: a pod was killed, which is what these tests do


def wait_for(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.5)
