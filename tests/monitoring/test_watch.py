"""The drift check end to end, on a real Postgres, S3 and MLflow: collect, report, decide."""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy
import pytest
from psycopg import sql

from tasks.contracts import Manifest
from tasks.database import connect, migrate
from tasks.errors import OptionError
from tasks.registry import load_stage
from tasks.settings import Settings, load_settings
from tasks.settings import settings as process_settings
from tasks.stage import run_stage
from tasks.storage import Storage

pytestmark = pytest.mark.integration

TOPICS = numpy.random.default_rng(0).standard_normal((12, 32))
NOW = datetime.now(UTC)
SHIFT = NOW - timedelta(hours=1)


@dataclass
class Watch:
    """A database of requests of its own, and the three stages over it."""

    settings: Settings
    storage: Storage

    @property
    def url(self) -> str:
        return self.settings.database_url.get_secret_value()

    def ask(
        self, rows: int, at: datetime, topics: tuple[int, ...], seed: int, score: float = 0.6, **values: Any
    ) -> None:
        """Record requests about some of the topics."""
        random = numpy.random.default_rng(seed)
        with connect(self.url) as connection:
            for number in range(rows):
                topic = int(random.choice(topics))
                vector = TOPICS[topic] + 0.3 * random.standard_normal(TOPICS.shape[1])
                row = {
                    "id": uuid.UUID(int=int(random.integers(0, 2**62))),
                    "created_at": at + timedelta(seconds=number),
                    "kind": "search",
                    "question": f"question {number} about topic {topic}",
                    "best_score": float(score + 0.05 * random.standard_normal()),
                    "latency_ms": float(random.gamma(4, 5)),
                    "embedding": (vector / numpy.linalg.norm(vector)).astype(numpy.float32),
                } | values
                names = sql.SQL(", ").join(map(sql.Identifier, row))
                places = sql.SQL(", ").join(map(sql.Placeholder, row))
                connection.execute(sql.SQL("INSERT INTO requests ({}) VALUES ({})").format(names, places), row)

    def stages(self, run: str | None = None, **settings: Any) -> dict[str, Manifest]:
        """Run the three stages over the requests before and after the shift."""
        run = run or f"s3://{self.settings.s3_bucket}/runs/watch_drift/{uuid.uuid4()}"
        chosen = self.settings.model_copy(update=settings)
        given = {"collect_requests": {"since": SHIFT.isoformat()}}
        names = ("collect_requests", "report_drift", "decide")
        return {name: run_stage(load_stage(name), chosen, run, None, given.get(name, {})) for name in names}

    def index_everything(self) -> None:
        """Fill `documents` as a sync of the corpus would."""
        from tasks.knowledge.sources import open_source

        with connect(self.url) as connection:
            for item in open_source(self.settings.corpus, self.storage).list():
                connection.execute(
                    "INSERT INTO documents (uri, corpus, title, content_sha256, text_sha256, bytes, chunks, stamp) "
                    "VALUES (%s, 'default', '', '', '', %s, 1, %s)",
                    (item.uri, item.bytes, item.stamp),
                )


@pytest.fixture
def watch(stack: Any, new_database: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    url = new_database("watch")
    for variable, value in (stack.env | {"MILLRACE_DATABASE_URL": url}).items():
        monkeypatch.setenv(variable, value)
    process_settings.cache_clear()
    migrate(url)
    yield Watch(load_settings(), Storage(stack.env["MILLRACE_S3_ENDPOINT_URL"]))
    process_settings.cache_clear()


def test_new_topics_start_a_training_once(watch: Watch) -> None:
    watch.index_everything()
    watch.ask(160, SHIFT - timedelta(hours=2), (0, 1, 2, 3), 1)
    watch.ask(160, SHIFT + timedelta(minutes=1), (0, 9, 10), 2, score=0.4)
    first = watch.stages()
    report, decision = first["report_drift"], first["decide"].facts
    assert report.facts["drifted"] == ["best_score", "question_embedding"]
    assert report.facts["p_values"]["question_embedding"] < 0.01
    furthest = report.facts["new_topics"][:2]
    assert {text.rsplit(" ", 1)[1] for text in furthest} == {"9", "10"}
    assert (decision["action"], decision["dag_id"]) == ("train_again", "fine_tune")
    assert decision["dag_run_id"] == f"drift__{decision['decision']}"
    assert decision["conf"] == {"decision": str(decision["decision"])}

    run = first["decide"].run
    assert watch.stages(run)["decide"].facts == decision  # a repeated run decides nothing anew
    same = watch.stages()["decide"].facts
    assert (same["action"], same["cause"], same["dag_id"]) == ("none", "same_evidence", "")

    watch.ask(20, SHIFT + timedelta(minutes=20), (9,), 3, score=0.4)
    held = watch.stages()["decide"].facts
    assert (held["action"], held["cause"]) == ("none", "cooldown") and "20 hours" in held["reason"]
    free = watch.stages(drift_cooldown_hours=0.0)["decide"].facts
    assert free["action"] == "train_again" and free["decision"] > decision["decision"]
    with connect(watch.url) as connection:
        rows = list(connection.execute("SELECT action, dag_run_id, window_id FROM decisions ORDER BY id"))
    assert [row["action"] for row in rows] == ["train_again", "none", "none", "train_again"]
    assert [row["dag_run_id"] is None for row in rows] == [False, True, True, False]
    assert all(row["window_id"] for row in rows)


def test_the_report_is_kept_and_shown_in_mlflow(watch: Watch) -> None:
    import mlflow

    watch.ask(120, SHIFT - timedelta(hours=2), (0, 1), 1)
    watch.ask(120, SHIFT + timedelta(minutes=1), (7,), 2)
    report = watch.stages()["report_drift"]
    html = watch.storage.get(report.outputs["report.html"])
    assert b"question_novelty" in html and b"best_score" in html
    body = watch.storage.get_json(report.outputs["report.json"])
    assert body["question_embedding"]["p_value"] < 0.001 and body["evidently"]["metrics"]
    client = mlflow.MlflowClient(tracking_uri=watch.settings.mlflow_tracking_uri)
    shown = client.get_run(report.facts["mlflow_run_id"])
    assert shown.data.metrics["question_embedding_drifted"] == 1.0
    names = {item.path for item in client.list_artifacts(shown.info.run_id)}
    assert names == {"report.html", "report.json", "tests.json"}


def test_an_index_that_is_behind_is_refreshed_first(watch: Watch) -> None:
    watch.index_everything()
    with connect(watch.url) as connection:
        connection.execute("DELETE FROM documents WHERE uri IN (SELECT uri FROM documents ORDER BY uri LIMIT 2)")
    watch.ask(120, SHIFT - timedelta(hours=2), (0, 1), 1)
    watch.ask(120, SHIFT + timedelta(minutes=1), (7,), 2, score=0.4)
    decision = watch.stages()["decide"].facts
    assert (decision["action"], decision["dag_id"]) == ("refresh_knowledge", "sync_knowledge")
    assert "2 documents that the index lacks" in decision["reason"]


def test_the_same_kind_of_requests_is_no_drift(watch: Watch) -> None:
    watch.ask(150, SHIFT - timedelta(hours=2), (0, 1, 2, 3), 1)
    watch.ask(150, SHIFT + timedelta(minutes=1), (0, 1, 2, 3), 2)
    manifests = watch.stages()
    assert manifests["report_drift"].facts["drifted"] == []
    assert manifests["decide"].facts["cause"] == "no_drift"


def test_too_few_requests_are_not_judged(watch: Watch) -> None:
    watch.ask(150, SHIFT - timedelta(hours=2), (0,), 1)
    watch.ask(99, SHIFT + timedelta(minutes=1), (7,), 2)
    manifests = watch.stages()
    report = manifests["report_drift"].facts
    assert (report["enough"], report["drifted"], report["tests"]) == (False, [], {})
    assert manifests["decide"].facts["cause"] == "too_few_requests"


def test_requests_without_a_vector_are_counted_and_left_out_of_that_test(watch: Watch) -> None:
    watch.ask(150, SHIFT - timedelta(hours=2), (0,), 1)
    watch.ask(60, SHIFT + timedelta(minutes=1), (7,), 2)
    watch.ask(70, SHIFT + timedelta(minutes=9), (7,), 3, embedding=None)
    manifests = watch.stages()
    assert manifests["collect_requests"].counts["current_vectors_left_out"] == 70
    report = manifests["report_drift"].facts
    assert "60 vectors" in report["not_tested"]["question_embedding"] and "best_score" in report["tests"]


def test_bad_rows_are_quarantined_with_a_reason(watch: Watch) -> None:
    watch.ask(30, SHIFT - timedelta(hours=2), (0,), 1)
    watch.ask(1, SHIFT + timedelta(minutes=1), (0,), 2, question="???")
    watch.ask(1, SHIFT + timedelta(minutes=2), (0,), 3, latency_ms=-1.0)
    watch.ask(1, SHIFT + timedelta(minutes=3), (0,), 4, embedding=numpy.full(32, 0.5, numpy.float32))
    collected = watch.stages()["collect_requests"]
    rules = {"embedding_is_normal": 1, "latency_is_possible": 1, "question_has_a_word": 1}
    assert collected.facts["quarantined_by_rule"] == rules
    assert (collected.counts["current"], collected.counts["quarantined"]) == (0, 3)
    with connect(watch.url) as connection:
        rows = list(connection.execute("SELECT rule, reason FROM quarantine WHERE kind = 'request' ORDER BY rule"))
    assert [row["rule"] for row in rows] == sorted(rules) and "found '???'" in rows[2]["reason"]


def test_a_window_of_more_rows_is_sampled_and_counted(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.monitoring import collect_requests

    monkeypatch.setattr(collect_requests, "MOST_ROWS", 40)
    watch.ask(60, SHIFT - timedelta(hours=2), (0,), 1)
    watch.ask(90, SHIFT + timedelta(minutes=1), (0,), 2)
    collected = watch.stages()["collect_requests"]
    counts = collected.counts
    assert (counts["reference"], counts["reference_total"], counts["current"], counts["current_total"]) == (
        40,
        60,
        40,
        90,
    )
    rows = list(watch.storage.get_rows(collected.outputs["reference"]))
    assert rows[0]["question"].startswith("question 20 ")  # the newest of the reference


@pytest.mark.parametrize("since", ["yesterday", "2999-01-01T00:00:00+00:00"])
def test_a_wrong_since_is_told(watch: Watch, since: str) -> None:
    run = f"s3://{watch.settings.s3_bucket}/runs/watch_drift/{uuid.uuid4()}"
    with pytest.raises(OptionError, match="--since"):
        run_stage(load_stage("collect_requests"), watch.settings, run, None, {"since": since})


def test_references_stay_small(watch: Watch) -> None:
    watch.ask(120, SHIFT - timedelta(hours=2), (0,), 1, question="x" * 7_000)
    watch.ask(120, SHIFT + timedelta(minutes=1), (7,), 2, question="y" * 7_000)
    for manifest in watch.stages().values():
        assert len(json.dumps(manifest.reference())) < 8_000
