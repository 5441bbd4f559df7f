"""`rollback_time`: how long the way back takes, from the command to the row of the ledger and MLflow's aliases.

Has a Postgres, S3 and MLflow of its own (the embedded stack's) with its keys, as `make up` has them, no Airflow. In the ledger
stand a signed release with an adapter of 20 MB and one with a whole model of 270 MB (SmolLM2-135M's size), each with an
index version of 5,000 chunks. The figure is the slowest of `python -m tasks rollback --to N` to either, measured from outside:
start of the process, imports, reading and digesting every byte of the weights, counting the chunks, proving the signature, the
row, signing it, the mirror, the manifest, the announcement (no channel is set). Not in it: Airflow's own work, and until an
assistant has loaded the release. It grows with the model, whose bytes are all read.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.result import Result

ADAPTER, MODEL, CHUNKS, DIMENSIONS, ROUNDS = 20_000_000, 270_000_000, 5_000, 384, 3
SECONDS = 10.0
_NAMES = {1: f"adapter of {ADAPTER / 1e6:.0f} MB", 2: f"whole model of {MODEL / 1e6:.0f} MB"}


def rollback_time() -> Result:
    """Seconds of `python -m tasks rollback`, to an adapter and to a whole model."""
    from local.settings import read_environment_file
    from local.stack import EmbeddedStack

    with (
        tempfile.TemporaryDirectory() as place,
        EmbeddedStack(Path(place) / "stack", parts=("postgres", "s3", "mlflow"), ports="free") as stack,
    ):
        os.environ.update(read_environment_file(stack.folder / "env"))  # stack.env leaves out the keys
        environment = {**os.environ, "MILLRACE_CODE_REVISION": "benchmark"}
        _tasks(environment, "migrate")
        _fill()
        taken: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
        for _ in range(ROUNDS):
            for release in taken:
                taken[release].append(
                    _tasks(environment, "rollback", f"--to={release}", "--reason=benchmark", "--by=bench")
                )
        shown = json.loads(_output(environment, "releases", "--json"))
        _require_signed(2 + 2 * ROUNDS)
    assert len(shown) == 2 + 2 * ROUNDS and shown[0]["live"] and all(row["mirrored"] for row in shown)
    slowest = max(wall for times in taken.values() for wall, _ in times)
    return Result(
        figure=f"{slowest:.1f} s to a model of {MODEL / 1e6:.0f} MB or an adapter of {ADAPTER / 1e6:.0f} MB, signed",
        bound=f"{SECONDS:g} s",
        holds=slowest < SECONDS,
        details=[
            f"{ROUNDS} rollbacks to each, by turns; index versions of {CHUNKS} chunks with vectors of {DIMENSIONS}; no Airflow",
            *(
                f"to a release with an {_NAMES[release]}: ".replace("an whole", "a whole")
                + ", ".join(f"{wall:.1f} s ({cpu:.1f} s of processor)" for wall, cpu in times)
                for release, times in taken.items()
            ),
            f"load of the machine at the end: {os.getloadavg()[0]:.1f}",
        ],
    )


def _tasks(environment: dict[str, str], *command: str) -> tuple[float, float]:
    """Run a command of `tasks`; return its seconds, and those of the processor."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "tasks", *command], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - begun, usage.ru_utime + usage.ru_stime


def _output(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tasks", *command], env=environment, stdout=subprocess.PIPE, check=True
    )
    return done.stdout.decode()


def _fill() -> None:
    """Put two releases into the ledger, with bytes of their own in S3 and versions in MLflow."""
    from tasks import tracking
    from tasks.release import ledger
    from tasks.release.mirror import reconcile_mirrors
    from tasks.release.signing import seal
    from tasks.settings import load_settings
    from tasks.storage import Storage

    settings = load_settings()
    storage, bucket = Storage(settings.s3_endpoint_url), f"s3://{settings.s3_bucket}"
    with tracking.answering(settings) as client:
        client.create_registered_model(settings.model_name)
    for number, (kind, size) in enumerate((("adapter", ADAPTER), ("model", MODEL)), start=1):
        parts = _parts(storage, bucket, kind, size, settings.model_name, number)
        with tracking.answering(settings) as client:
            client.create_model_version(settings.model_name, source=parts["adapter_uri"] or parts["base_model"])
        with ledger.ledger(settings) as connection:
            parts["index_version"] = _index(connection, number)
            live = ledger.live(connection)
            made = ledger.append(
                connection, ledger.Parts(**parts), kind="promotion", approved_by="bench", reason="benchmark",
                run=f"{bucket}/runs/promote_release/{number}", expected_live=live.release if live else None,
            )  # fmt: skip
            seal(settings, storage, connection, made, by="promote")
    reconcile_mirrors(settings)


def _require_signed(releases: int) -> None:
    """Every release of the ledger is signed, or something else was measured. Raises AssertionError."""
    from tasks.release import ledger
    from tasks.settings import load_settings

    with ledger.ledger(load_settings()) as connection:
        counted = connection.execute("SELECT count(DISTINCT release) AS signed FROM release_signatures").fetchone()
    assert counted is not None and counted["signed"] == releases, (
        f"expected {releases} signed releases, found {counted}"
    )


def _parts(storage: Any, bucket: str, kind: str, size: int, name: str, number: int) -> dict[str, Any]:
    """Upload weights and their evidence; return the columns of a release, but for its index version."""
    from tasks.contracts import Artifact
    from tasks.release import evidence
    from tasks.release.weights import Weights

    folder = f"{bucket}/models/benchmark{number}/{kind}"
    file = "adapter_model.safetensors" if kind == "adapter" else "model.safetensors"
    files: dict[str, Artifact] = {
        file: _upload(storage, f"{folder}/{file}", size),
        "config.json": storage.put_json(f"{folder}/config.json", {"r": 8}),
    }
    weights = Weights("adapter" if kind == "adapter" else "model", folder, files)
    content = {kind: {key: one.model_dump(mode="json") for key, one in files.items()}, "manifests": _manifests()}
    kept = evidence.keep(storage, bucket, content)
    model = (
        {
            "adapter_uri": folder,
            "adapter_sha256": weights.sha256,
            "base_model": "package:base",
            "base_revision": "b" * 40,
        }
        if kind == "adapter"
        else {"adapter_uri": None, "adapter_sha256": None, "base_model": folder, "base_revision": weights.revision}
    )
    prompt = f"Answer. {number}"
    return model | {
        "model_name": name, "model_version": str(number), "prompt": prompt,
        "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(), "embedder": "benchmark", "dataset_sha256": None,
        "code_revision": "benchmark", "evidence_uri": kept.uri, "evidence_sha256": kept.sha256,
    }  # fmt: skip


def _manifests() -> dict[str, Any]:
    """Return what a bill of materials reads of the training."""
    from tasks.contracts import Manifest

    now = datetime.now(UTC)
    place = {"run": "benchmark", "fingerprint": "f", "code_revision": "benchmark", "host": "benchmark"}
    train = Manifest(
        stage="train", status="complete", started_at=now, ended_at=now, **place,
        facts={"base_model": "package:base", "base_revision": "b" * 40},
    )  # fmt: skip
    dataset = Manifest(stage="validate_dataset", status="complete", started_at=now, ended_at=now, **place)
    return {one.stage: one.model_dump(mode="json") for one in (train, dataset)}


def _upload(storage: Any, uri: str, size: int) -> Any:
    """Put so many random bytes at `uri`, in parts as a training does."""
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(size // 1_000_000):
            file.write(os.urandom(1_000_000))
        file.flush()
        return storage.put_file(uri, Path(file.name))


def _index(connection: Any, number: int) -> int:
    """Make an index version that served; its vectors are random."""
    status = "current" if number == 2 else "former"
    row = connection.execute(
        "INSERT INTO index_versions (fingerprint, corpus, corpus_sha256, embedder, dimensions, table_name, status, documents, "
        "chunks, run) VALUES ('f', 'default', 'c', 'benchmark', %s, %s, %s, 100, %s, %s) RETURNING version",
        (DIMENSIONS, f"chunks_v{number}", status, CHUNKS, f"benchmark {number}"),
    ).fetchone()
    connection.execute(
        f"CREATE TABLE chunks_v{number} (chunk_id text PRIMARY KEY, document_uri text, text text, embedding vector({DIMENSIONS}))"
    )
    connection.execute(
        f"INSERT INTO chunks_v{number} SELECT n::text, 'document ' || n / 50, repeat('word ', 100), "
        f"(SELECT array_agg(random() + n * 0 + m * 0) FROM generate_series(1, {DIMENSIONS}) m)::vector FROM generate_series(1, {CHUNKS}) n"
    )
    return int(row["version"])
