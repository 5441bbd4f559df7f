"""A database of its own for each test, and fine-tunes whose stages are small but whose manifests are real."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from psycopg import sql

from tasks.contracts import Manifest, digest, digest_of
from tasks.database import connect, migrate
from tasks.errors import ServiceUnavailable
from tasks.knowledge.index_tables import current
from tasks.registry import load_stage
from tasks.release import evidence as proofs
from tasks.release.evidence import LETS_ON
from tasks.release.propose import read_prompt
from tasks.release.register import facts_of
from tasks.release.signed_candidate import endorsed
from tasks.serving.prompt import prompt_digest
from tasks.settings import Settings, load_settings
from tasks.settings import settings as process_settings
from tasks.stage import Stage, StageContext, StageOptions, StageResult, run_stage
from tasks.storage import Storage


class Training(StageOptions):
    """The one option of `train` that a release reads."""

    base_model: str = "package:tests/base"


class NoOptions(StageOptions):
    """None."""


@dataclass
class House:
    """The stack with an empty database of this test's own, and helpers to make what a release needs."""

    settings: Settings
    storage: Storage
    runs: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.settings.database_url.get_secret_value()

    def stage(self, stage: Stage[Any] | str, run: str, **options: str) -> Manifest:
        """Run a stage as `python -m tasks` would."""
        return run_stage(load_stage(stage) if isinstance(stage, str) else stage, self.settings, run, None, options)

    def run(self, dag: str) -> str:
        """Return a new run folder."""
        return f"s3://{self.settings.s3_bucket}/runs/{dag}/{uuid.uuid4()}"

    def tuned(
        self,
        weights: bytes,
        *,
        verdict: str = "promote",
        champion: int | None = None,
        held_out: str = "one",
        gate_facts: dict[str, Any] | None = None,
        kind: str = "adapter",
        measured: dict[str, Any] | None = None,
        run: str = "",
    ) -> str:
        """Return the run folder of a fine-tune up to its gate; what it trained, of that kind, is `weights`."""
        run = run or self.run("fine_tune")
        prefix, stem = ("adapter", "adapter_") if kind == "adapter" else ("model", "")
        folder = f"s3://{self.settings.s3_bucket}/models/{digest(weights.hex())}/{prefix}"
        mlflow_run = self.mlflow_run()

        def dataset(context: StageContext, options: NoOptions) -> StageResult:
            parts = {
                name: context.storage.put_rows(f"{context.folder}/{name}.jsonl", [{"id": f"{name} {held_out}"}])
                for name in ("train", "held_out")
            }
            return StageResult(outputs=parts, facts={"dataset_sha256": digest_of(parts)})

        def train(context: StageContext, options: Training) -> StageResult:
            files = {
                f"{stem}model.safetensors": context.storage.put_bytes(f"{folder}/{stem}model.safetensors", weights),
                f"{stem}config.json": context.storage.put_json(f"{folder}/{stem}config.json", {"r": 8}),
            }
            facts = {
                "weights": prefix,
                f"{prefix}_uri": folder,
                f"{prefix}_sha256": digest_of(files),
                "training_fingerprint": digest(weights.hex()),
                "mlflow_run_id": mlflow_run,
                "recipe": "test",
                "base_model": options.base_model,
                "base_revision": "b" * 40,
                "reused": False,
            }
            outputs = {f"{prefix}/{name}": artifact for name, artifact in files.items()}
            return StageResult(outputs=outputs, facts=facts, counts={"steps": 8, "rows": 64}, base_model="b" * 40)

        def evaluate(context: StageContext, options: NoOptions) -> StageResult:
            metrics = {"base_loss": 3.5, "candidate_loss": 3.0, "difference": -0.5}
            bounds = {f"{name}_low": value - 0.1 for name, value in metrics.items()}
            bounds |= {f"{name}_high": value + 0.1 for name, value in metrics.items()}
            facts = {
                "champion_release": champion,
                "weights_sha256": context.inputs["train"].facts[f"{prefix}_sha256"],
                "held_out_sha256": context.input("validate_dataset", "held_out").sha256,
                "output_changed": True,
                "rows": 40,
                "sets": {"held_out": {"sha256": context.input("validate_dataset", "held_out").sha256, "rows": 1}},
                "left_out": dict.fromkeys(("golden", "safety", "format"), "none asked"),
                "prompt_sha256": prompt_digest(read_prompt(self.settings)),
                "index_version": self.current_index(),
            } | (measured or {})
            report = context.storage.put_json(f"{context.folder}/report.json", metrics)
            return StageResult(outputs={"report": report}, metrics=metrics | bounds, facts=facts)

        def gate(context: StageContext, options: NoOptions) -> StageResult:
            found = context.inputs["evaluate"].facts
            facts = {"verdict": verdict, "reason": "the interval is below zero"} | {
                name: found[name] for name in ("weights_sha256", "held_out_sha256", "champion_release", "sets")
            }
            refused = verdict not in LETS_ON
            return StageResult(facts=facts | (gate_facts or {}), status="refused" if refused else "complete")

        self.stage(Stage("validate_dataset", NoOptions, dataset), run)
        self.stage(Stage("train", Training, train, needs=("validate_dataset",)), run)
        self.stage(Stage("evaluate", NoOptions, evaluate, needs=("validate_dataset", "train")), run)
        self.stage(Stage("gate", NoOptions, gate, needs=("train", "evaluate", "validate_dataset")), run)
        return run

    def candidate(self, weights: bytes, **arguments: Any) -> Manifest:
        """Return the manifest of a registered candidate."""
        return self.stage("register", self.tuned(weights, **arguments))

    def registered(self, weights: bytes, *, run: str = "", **arguments: Any) -> Manifest:
        """Return a candidate's manifest as `register` would write it, without MLflow; its number is that of its weights."""

        def register(context: StageContext, options: NoOptions) -> StageResult:
            evidence = proofs.load(context.storage, context.run)
            tags = {"trained_from": "base", "dataset_sha256": "d" * 64, "recipe": "test"}
            known = {"model_name": "m", "model_version": str(len(weights)), "mlflow_url": ""}
            return StageResult(facts=endorsed(context.settings, facts_of(evidence, tags) | known))

        needs = ("validate_dataset", "train", "evaluate", "gate")
        return self.stage(Stage("register", NoOptions, register, needs=needs), run or self.tuned(weights, **arguments))

    def current_index(self) -> int | None:
        """Return the number of the index version that is current, as `evaluate` would name it."""
        with connect(self.url) as connection:
            found = current(connection)
        return found.version if found else None

    def index(self, chunks: int = 3) -> int:
        """Make an index version with a few chunks current; return its number."""
        with connect(self.url) as connection:
            connection.execute("UPDATE index_versions SET status = 'former' WHERE status = 'current'")
            row = connection.execute(
                "INSERT INTO index_versions (fingerprint, corpus, corpus_sha256, embedder, dimensions, table_name, status, "
                "documents, chunks, metrics, run) VALUES ('f', 'default', 'c', 'test embedder', 2, "
                "'chunks_v' || currval(pg_get_serial_sequence('index_versions', 'version')), 'current', 1, %s, %s::jsonb, %s) "
                "RETURNING version, table_name",
                (
                    chunks,
                    json.dumps({"recall_at_5": 0.9, "ndcg_at_10": 0.8, "questions": 60}),
                    self.run("sync_knowledge"),
                ),
            ).fetchone()
            assert row is not None
            table = sql.Identifier(row["table_name"])
            connection.execute(sql.SQL("CREATE TABLE {} (chunk_id text, embedding vector(2))").format(table))
            for number in range(chunks):
                connection.execute(sql.SQL("INSERT INTO {} VALUES (%s, '[1,0]')").format(table), (str(number),))
        return int(row["version"])

    def promote(
        self, candidate: str = "", index: str = "", approved_by: str = "Ada", reason: str = "better"
    ) -> Manifest:
        """Propose and promote in one new run."""
        run = self.run("promote_release")
        self.stage("propose", run, candidate=candidate, index=index)
        return self.stage("promote", run, approved_by=approved_by, reason=reason)

    def mlflow(self) -> Any:
        import mlflow

        return mlflow.MlflowClient(tracking_uri=self.settings.mlflow_tracking_uri)

    def mlflow_run(self) -> str:
        if self.settings.mlflow_tracking_uri.endswith(":9"):
            return "away"
        from tasks import tracking

        with tracking.answering(self.settings) as client:
            return tracking.run_for(client, str(uuid.uuid4()), {}, "tests")

    def with_settings(self, **changes: Any) -> "House":
        """Return this house with other settings."""
        return House(self.settings.model_copy(update=changes), self.storage)


@pytest.fixture
def house(stack: Any, new_database: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """A house with an empty ledger and a model name of its own."""
    url = new_database("release")
    name = url.rsplit("/", 1)[1]
    for variable, value in (stack.env | {"MILLRACE_DATABASE_URL": url, "MILLRACE_MODEL_NAME": name}).items():
        monkeypatch.setenv(variable, value)
    process_settings.cache_clear()
    migrate(url)
    yield House(load_settings(), Storage(stack.env["MILLRACE_S3_ENDPOINT_URL"]))
    process_settings.cache_clear()


@pytest.fixture
def quick(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """The house with MLflow away, for what is not about the registry: it takes most of the time."""

    @contextmanager
    def away(_settings: Settings) -> Iterator[None]:
        raise ServiceUnavailable("expected MLflow to answer, found that it is away")
        yield

    monkeypatch.setattr("tasks.release.mirror.tracking", SimpleNamespace(tried_once=nullcontext, answering=away))
    monkeypatch.setattr("tasks.release.propose._prompt_version", lambda *_: {"prompt_version": None})
    return house.with_settings(mlflow_tracking_uri="http://127.0.0.1:9")
