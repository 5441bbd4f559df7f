"""What tests of whole trainings share: stages run as every launcher runs them, on datasets of their own."""

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from tasks.contracts import Artifact, Manifest
from tasks.database import connect
from tasks.registry import load_stage
from tasks.settings import REPOSITORY, load_settings
from tasks.stage import run_stage
from tasks.storage import Storage

TINY = "tests/training/tiny.yaml"  # smoke_cpu for the tiny model


class Bench:
    """Runs stages as every launcher does, in run folders of its own."""

    def __init__(self, stack: Any, database: str, storage: Storage) -> None:
        self.environment = {**os.environ, **stack.env, "MILLRACE_DATABASE_URL": database}
        self.bucket = f"s3://{stack.env['MILLRACE_S3_BUCKET']}"
        self.database = database
        self.mlflow = stack.env["MILLRACE_MLFLOW_TRACKING_URI"]
        self.storage = storage

    def new_run(self) -> str:
        return f"{self.bucket}/runs/fine_tune/{uuid.uuid4().hex}"

    def start(self, stage: str, run: str, **options: str) -> "subprocess.Popen[str]":
        arguments = [item for name, value in options.items() for item in (f"--{name}", value)]
        return self.start_tool(stage, "--run", run, *arguments)

    def start_tool(self, name: str, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "tasks", name, *arguments],
            cwd=REPOSITORY, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, stage: str, run: str, expect: int = 0, **options: str) -> dict[str, Any]:
        process = self.start(stage, run, **options)
        out, log = process.communicate()
        assert process.returncode == expect, log[-3000:]
        return json.loads(out.splitlines()[-1]) if out.strip() else {"log": log}

    def plan(self, run: str, **options: str) -> None:
        """Run `plan_training` in this process: it is quick once its libraries are imported."""
        run_stage(load_stage("plan_training"), load_settings(), run, None, options)

    def train(self, run: str, expect: int = 0, **options: str) -> dict[str, Any]:
        """Plan and train with the same options."""
        self.plan(run, **options)
        return self.run("train", run, expect, **options)

    def manifest(self, run: str, stage: str) -> Manifest:
        found = self.storage.read_manifest(f"{run}/{stage}/manifest.json")
        assert found is not None
        return found


def validate_new(bench: Bench, folder: Path, recipe: str = TINY, **more: str) -> str:
    """Return a run folder with a validated dataset that no other test has; `more` is in every row."""
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
    mark = uuid.uuid4().hex[:6]
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"What is {mark}{n}?"},
                {"role": "assistant", "content": f"{mark} {words[n % 10]} {n} {words[n // 10]} and more"},
            ],
            "source": f"source {n}",
            **more,
        }
        for n in range(60)
    ]
    path = folder / "examples.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    run = bench.new_run()
    bench.run("build_dataset", run, examples=str(path), recipe=recipe)
    bench.run("validate_dataset", run)
    return run


def copy_dataset(bench: Bench, run: str) -> str:
    """Return another run folder with the same dataset."""
    other = bench.new_run()
    for stage in ("build_dataset", "validate_dataset"):
        for uri, _size, _etag in bench.storage.list(f"{run}/{stage}/"):
            body = bench.storage.get_bytes(uri)
            bench.storage.put_bytes(uri.replace(run, other), body.replace(run.encode(), other.encode()))
    return other


def make_release(bench: Bench, facts: dict[str, Any], base_model: str, evidence: Artifact | None = None) -> int:
    """Make the adapter of `facts` live, as `promote` would."""
    proof = (evidence.uri, evidence.sha256) if evidence else ("u", "s")
    name = uuid.uuid4().hex
    with connect(bench.database) as connection:
        index = connection.execute(
            "INSERT INTO index_versions (fingerprint, corpus, corpus_sha256, embedder, dimensions, table_name, status, run) "
            "VALUES ('f', 'c', 's', 'e', 3, %s, 'former', %s) RETURNING version",
            (f"chunks_{name}", name),
        ).fetchone()
        assert index is not None
        row = connection.execute(
            "INSERT INTO releases (kind, model_name, model_version, adapter_uri, adapter_sha256, base_model, base_revision, "
            "prompt_sha256, prompt, index_version, embedder, code_revision, evidence_uri, evidence_sha256, approved_by, reason, run) "
            "VALUES ('promotion', 'm', '1', %s, %s, %s, %s, 'p', 'p', %s, 'e', 'r', %s, %s, 'test', 'test', %s) RETURNING release",
            (
                facts["adapter_uri"],
                facts["adapter_sha256"],
                base_model,
                facts["base_revision"],
                index["version"],
                *proof,
                name,
            ),
        ).fetchone()
    assert row is not None
    return int(row["release"])


def wait_for_rank(process: "subprocess.Popen[str]", rank: int) -> psutil.Process:
    """Return the process of a rank, as soon as there is one."""
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if f"--local_rank={rank}" in child.cmdline():
                    return child
            except psutil.Error:
                continue
        time.sleep(0.05)
    raise AssertionError(f"no rank {rank} within two minutes: {process.communicate()}")
