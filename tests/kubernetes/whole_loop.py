"""What the whole loop on a cluster needs: its documents and its model in S3, the loop with the assistant in pods, and a watcher."""

import base64
import os
import pydoc_data.topics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.airflow_home import REPOSITORY
from tests.kubernetes.assistants import Assistants
from tests.kubernetes.cluster import Cluster, Watch
from tests.short_loop import ShortLoop

TOPICS = (
    "pass",
    "lambda",
    "nonlocal",
    "assert",
    "while",
    "del",
    "global",
    "return",
    "break",
    "continue",
    "if",
    "yield",
)
BASE_MODEL = "s3://millrace/models/base"
GOLDEN = "s3://millrace/golden.jsonl"
CORPUS = "s3://millrace/corpus"


def upload_corpus(storage: Any) -> None:
    """Put the shortest topics of Python's reference into S3, and a question about each."""
    questions = []
    for topic in TOPICS:
        uri = f"{CORPUS}/{topic}.txt"
        storage.put_bytes(uri, pydoc_data.topics.topics[topic].encode())
        question = f"What does the {topic} statement or expression do?"
        questions.append({"id": topic, "question": question, "documents": [uri]})
    storage.put_rows(GOLDEN, questions)


def upload_base_model(storage: Any, folder: Path) -> None:
    """Put the small language model into S3 as safetensors, once: each pod that reads it there need not convert it."""
    from tasks import models
    from tasks.settings import Settings

    packed = Settings.model_fields["base_model"].default
    script = f"from pathlib import Path; from tasks import models; print(models.fetch({packed!r}, Path('models')))"
    command = [sys.executable, "-c", script]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    converted = folder / done.stdout.split()[-1]
    assert models.require_weights(converted, packed)
    storage.put_folder(BASE_MODEL, converted)


class ClusterLoop(ShortLoop):
    """The loop of `make demo`, with the assistant in pods: its address is that of a ready one."""

    last = "preflight"
    assistants: Assistants

    def _ready(self) -> None:
        self.assistant = f"http://{self.assistants.wait(2, 600)[0]}:8000"
        self.environment["MILLRACE_ASSISTANT_URL"] = self.assistant


class Seen(Watch):
    """The pods of stages that were seen while the loop ran: name and stage."""

    every = 0.5

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.cluster, self.pods = cluster, dict[str, str]()

    def look(self) -> None:
        for pod in self.cluster.pods():
            if stage := (pod.metadata.labels or {}).get("millrace/stage"):
                self.pods[pod.metadata.name] = stage


def database_url(cluster: Cluster) -> str:
    secret = cluster.core.read_namespaced_secret("millrace-assistant", cluster.namespace)
    return base64.b64decode(secret.data["MILLRACE_DATABASE_URL"]).decode()


def requests_of(url: str, request: str) -> int:
    from tasks.database import connect

    with connect(url) as connection:
        row = connection.execute("SELECT count(*) AS found FROM requests WHERE id = %s", (request,)).fetchone()
    assert row is not None
    return int(row["found"])
