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
from tasks.errors import ManifestError, OptionError
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

    def stages(self, run: str | None = None, agree: int = 1, running: int = 0, **settings: Any) -> dict[str, Manifest]:
        """Run the three stages over the requests before and after the shift."""
        run = run or f"s3://{self.settings.s3_bucket}/runs/watch_drift/{uuid.uuid4()}"
        chosen = self.settings.model_copy(update=settings)
        options = {
            "collect_requests": {"since": SHIFT.isoformat()},
            "decide": {"agree": str(agree), "running": str(running)},
        }
        names = ("collect_requests", "report_drift", "decide")
        return {name: run_stage(load_stage(name), chosen, run, None, options.get(name, {})) for name in names}

    def correct(self, count: int) -> None:
        """Give accepted corrections."""
        with connect(self.url) as connection:
            for _ in range(count):
                connection.execute(
                    "INSERT INTO feedback (request_id, rating, correction, status, reviewed_by) VALUES (%s, 'down', 'so', 'accepted', 'r')",
                    (uuid.uuid4(),),
                )

    def age(self) -> None:
        """Let what was decided until now be about a week before."""
        with connect(self.url) as connection:
            connection.execute(
                "UPDATE decisions SET evidence = jsonb_set(evidence, '{window}', jsonb_build_object("
                "'since', (evidence->'window'->>'since')::timestamptz - interval '7 days', "
                "'until', (evidence->'window'->>'until')::timestamptz - interval '7 days'))"
            )

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        with connect(self.url) as connection:
            return connection.execute(query.encode(), values).fetchall()

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


def test_topics_that_the_documents_lack_start_a_training_on_the_corrections_once(watch: Watch) -> None:
    watch.index_everything()
    watch.correct(12)
    watch.ask(160, SHIFT - timedelta(hours=2), (0, 1, 2, 3), 1)
    watch.ask(160, SHIFT + timedelta(minutes=1), (0, 9, 10), 2, score=0.4)
    first = watch.stages()
    report, decision = first["report_drift"], first["decide"].facts
    assert report.facts["drifted"] == ["best_score", "no_good_hit", "question_embedding"]
    assert report.facts["harm"] == ["best_score", "no_good_hit"]
    assert report.facts["p_values"]["question_embedding"] < 0.01
    furthest = report.facts["new_topics"][:2]
    assert {text.rsplit(" ", 1)[1] for text in furthest} == {"9", "10"}
    assert (decision["action"], decision["cause"], decision["dag_id"]) == ("train_again", "knowledge", "fine_tune")
    assert "on 12 new accepted corrections" in decision["reason"] and "about topic 9" in decision["reason"]
    assert decision["dag_run_id"] == f"drift__{decision['decision']}"
    assert decision["conf"]["decision"] == str(decision["decision"])
    assert decision["conf"]["evidence"] == {
        "run": first["decide"].run,
        "cause": "knowledge",
        "detail": "answers_are_in_corrections",
        "report_uri": report.outputs["summary.html"].uri,
        "mlflow_url": report.facts["mlflow_url"],
    }

    run = first["decide"].run
    assert watch.stages(run)["decide"].facts == decision  # a repeated run decides nothing anew
    same = watch.stages()["decide"].facts
    assert (same["action"], same["held_by"], same["dag_id"]) == ("none", "same_evidence", "")

    watch.ask(20, SHIFT + timedelta(minutes=20), (9,), 3, score=0.4)
    mostly = watch.stages(drift_cooldown_hours=0.0)["decide"].facts
    assert mostly["held_by"] == "same_evidence"  # twenty more requests are no other evidence
    watch.age()
    held = watch.stages()["decide"].facts
    assert (held["action"], held["held_by"]) == ("none", "cooldown") and "72 hours" in held["reason"]
    free = watch.stages(drift_cooldown_hours=0.0)["decide"].facts
    assert free["action"] == "train_again" and free["decision"] > decision["decision"]
    rows = watch.rows("SELECT action, dag_run_id, window_id FROM decisions ORDER BY id")
    assert [row["action"] for row in rows] == ["train_again", "none", "none", "none", "train_again"]
    assert [row["dag_run_id"] is None for row in rows] == [False, True, True, True, False]
    assert all(row["window_id"] for row in rows)


def shifted(watch: Watch) -> None:
    """Record a shift that the documents do not answer, with corrections to learn from."""
    watch.index_everything()
    watch.correct(12)
    watch.ask(160, SHIFT - timedelta(hours=2), (0, 1), 1)
    watch.ask(160, SHIFT + timedelta(minutes=1), (9,), 2, score=0.4)


def test_one_window_alone_starts_nothing(watch: Watch) -> None:
    shifted(watch)
    alone = watch.stages(agree=0)["decide"].facts
    assert (alone["action"], alone["held_by"]) == ("none", "agreement") and "1 of the last 1 windows" in alone["reason"]
    again = watch.stages(agree=0)["decide"].facts  # the same requests a second time are no second window
    assert again["held_by"] == "agreement"
    # A night that began some seconds later than the one before it.
    before = {"since": (SHIFT - timedelta(days=1)).isoformat(), "until": (SHIFT + timedelta(seconds=9)).isoformat()}
    with connect(watch.url) as connection:
        connection.execute(
            "UPDATE decisions SET evidence = jsonb_set(evidence, '{window}', %s::jsonb) WHERE id = %s",
            (json.dumps(before), alone["decision"]),
        )
    agreed = watch.stages(agree=0)["decide"].facts
    assert (agreed["action"], agreed["held_by"]) == ("train_again", None)
    watch.age()
    watch.ask(5, SHIFT + timedelta(minutes=30), (9,), 3, score=0.4)
    spent = watch.stages(agree=0, drift_cooldown_hours=0.0)["decide"].facts
    assert spent["held_by"] == "agreement" and "1 of the last 1 windows" in spent["reason"]


def test_one_action_at_a_time(watch: Watch) -> None:
    shifted(watch)
    facts = watch.stages(running=1)["decide"].facts
    assert (facts["action"], facts["held_by"]) == ("none", "busy")


def test_a_budget_holds_trainings(watch: Watch) -> None:
    shifted(watch)
    assert watch.stages(drift_trainings=0)["decide"].facts["held_by"] == "budget"
    with connect(watch.url) as connection:
        connection.execute(
            "INSERT INTO stage_costs (run, stage, status, started_at, ended_at, resource_seconds, host) "
            "VALUES ('r', 'train', 'complete', now(), now(), '{\"gpu\": 36000}', 'h')"
        )
    facts = watch.stages(gpu_budget_hours=9.0)["decide"].facts
    assert facts["held_by"] == "budget" and "10.0 GPU hours were used" in facts["reason"]
    assert watch.stages(gpu_budget_hours=11.0)["decide"].facts["action"] == "train_again"


def test_after_two_trainings_without_another_model_a_person_is_asked_once(watch: Watch) -> None:
    shifted(watch)

    def night(number: int) -> dict[str, Any]:
        watch.age()
        watch.ask(5, SHIFT + timedelta(minutes=30), (9,), number, score=0.4)
        return watch.stages(drift_cooldown_hours=0.0)["decide"].facts

    first, second = night(51), night(52)
    assert first["action"] == second["action"] == "train_again"
    with connect(watch.url) as connection:
        connection.execute(
            "INSERT INTO stage_runs (run, stage, trace_id, host, started_at, ended_at, exit_code, verdict) "
            "VALUES (%s, 'gate', 't', 'h', now(), now(), 3, 'hold')",
            (f"s3://{watch.settings.s3_bucket}/runs/fine_tune/{first['dag_run_id']}",),
        )
    facts = night(53)
    assert (facts["action"], facts["held_by"], facts["dag_id"]) == ("alert", "losing_candidates", "")
    assert f"({second['dag_run_id']}: no verdict and {first['dag_run_id']}: hold)" in facts["reason"]
    watch.ask(5, SHIFT + timedelta(minutes=31), (9,), 54, score=0.4)
    assert watch.stages(drift_cooldown_hours=0.0)["decide"].facts["held_by"] == "same_evidence"


def test_a_corpus_that_has_nothing_is_read_once_more_and_then_a_person_is_asked(watch: Watch) -> None:
    watch.index_everything()
    watch.ask(160, SHIFT - timedelta(hours=2), (0, 1), 1)
    watch.ask(160, SHIFT + timedelta(minutes=1), (9,), 2, score=0.4)
    first = watch.stages()["decide"].facts
    assert (first["action"], first["detail"]) == ("refresh_knowledge", "topics_missing")
    watch.ask(5, SHIFT + timedelta(minutes=30), (9,), 3, score=0.4)
    second = watch.stages()["decide"].facts  # another action: nothing holds it
    assert (second["action"], second["detail"]) == ("alert", "documents_needed")
    assert "about topic 9" in second["reason"]


def test_worse_ratings_with_good_hits_train_again(watch: Watch) -> None:
    watch.index_everything()
    watch.correct(10)
    for at, seed, bad in ((SHIFT - timedelta(hours=2), 1, 10), (SHIFT + timedelta(minutes=1), 2, 2)):
        watch.ask(160, at, (0, 1), seed, kind="chat", answer="an answer")
        with connect(watch.url) as connection:
            connection.execute(
                "INSERT INTO feedback (request_id, rating) SELECT id, CASE WHEN row_number() OVER (ORDER BY id) %% %s = 0 "
                "THEN 'down' ELSE 'up' END FROM requests WHERE created_at >= %s",
                (bad, at),
            )
    facts = watch.stages()["decide"].facts
    assert (facts["action"], facts["cause"], facts["drifted"]) == ("train_again", "behaviour", ["negative"])


def test_what_one_client_did_is_an_alert(watch: Watch) -> None:
    watch.index_everything()
    for client in range(4):
        watch.ask(60, SHIFT - timedelta(hours=2), (0, 1), client, client=f"team {client}")
        watch.ask(40, SHIFT + timedelta(minutes=1), (0, 1), client + 10, client=f"team {client}")
    watch.ask(70, SHIFT + timedelta(minutes=9), (9,), 20, score=0.2, client="load test")
    facts = watch.stages()["decide"].facts
    assert (facts["action"], facts["cause"], facts["detail"]) == ("alert", "traffic", "one_source")
    assert "one client is 30% of the requests" in facts["reason"] and "load test" not in facts["reason"]


def test_the_reference_is_frozen_with_the_model_and_the_prompt(watch: Watch) -> None:
    start = SHIFT - timedelta(days=20)
    watch.ask(120, start, (0, 1), 1)
    watch.ask(120, start + timedelta(days=9), (5,), 2, score=0.1)  # after its week: no part of it
    watch.ask(120, SHIFT + timedelta(minutes=1), (0, 1), 3)
    first = watch.stages()
    collected = first["collect_requests"]
    assert collected.counts["reference"] == 120 and collected.facts["reference_frozen"].startswith(
        f"s3://{watch.settings.s3_bucket}/references/release-0/"
    )
    assert collected.facts["windows"]["reference"]["to"] < (start + timedelta(days=1)).isoformat()
    watch.ask(60, start + timedelta(hours=1), (5,), 4)  # late rows change nothing
    again = watch.stages()["collect_requests"]
    assert again.counts["reference"] == 120
    assert again.outputs["reference"].sha256 == collected.outputs["reference"].sha256
    [row] = watch.rows("SELECT release, rows FROM drift_references")
    assert (row["release"], row["rows"]) == (0, 120)


def test_somebody_may_say_that_the_usual_has_changed(watch: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    from tasks.monitoring.renew_reference import main

    watch.ask(120, SHIFT - timedelta(days=20), (0, 1), 1)
    watch.ask(120, SHIFT + timedelta(minutes=1), (5,), 2)
    assert watch.stages()["collect_requests"].facts["reference_frozen"]
    for wrong in ([], ["--by", "me"], ["--by", "me", "--reason", " "], ["--because", "x"]):
        with pytest.raises(OptionError):
            main(wrong)
    assert main(["--by", "ada", "--reason", "a new team"]) == 0 and "begins anew" in capsys.readouterr().out
    renewed = watch.stages()
    assert renewed["collect_requests"].counts["reference"] == 0
    assert renewed["decide"].facts["detail"] == "too_few_requests"
    assert watch.rows("SELECT by, reason FROM drift_beginnings") == [{"by": "ada", "reason": "a new team"}]


def test_a_frozen_reference_that_was_changed_is_refused(watch: Watch) -> None:
    watch.ask(120, SHIFT - timedelta(days=20), (0, 1), 1)
    watch.ask(120, SHIFT + timedelta(minutes=1), (0, 1), 3)
    uri = watch.stages()["collect_requests"].facts["reference_frozen"]
    watch.storage.put_bytes(uri, b"something else")
    with pytest.raises(ManifestError, match="sha256"):
        watch.stages()


def test_a_quiet_first_week_goes_on_until_there_is_enough(watch: Watch) -> None:
    watch.ask(60, SHIFT - timedelta(days=30), (0, 1), 1)
    watch.ask(60, SHIFT - timedelta(days=15), (0, 1), 2)
    watch.ask(120, SHIFT + timedelta(minutes=1), (0, 1), 3)
    collected = watch.stages()["collect_requests"]
    assert collected.counts["reference"] == 120 and collected.facts["reference_frozen"]


def test_a_frozen_sample_is_no_flood(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.monitoring import references

    monkeypatch.setattr(references, "MOST_ROWS", 110)
    for day in range(7):
        watch.ask(240, SHIFT - timedelta(days=20 - day), (0, 1), day)
    watch.ask(240, SHIFT + timedelta(minutes=1), (0, 1), 9)
    with connect(watch.url) as connection:  # spread over a day, so that a rate can be told
        connection.execute("UPDATE requests SET created_at = created_at - interval '20 hours' * random()")
    since = (SHIFT - timedelta(hours=22)).isoformat()
    run = f"s3://{watch.settings.s3_bucket}/runs/watch_drift/{uuid.uuid4()}"
    for _ in range(2):  # the night that freezes it, and the next
        run = f"s3://{watch.settings.s3_bucket}/runs/watch_drift/{uuid.uuid4()}"
        collected = run_stage(load_stage("collect_requests"), watch.settings, run, None, {"since": since})
        report = run_stage(load_stage("report_drift"), watch.settings, run, None, {})
        assert collected.counts["reference"] == 110 and 1500 < collected.counts["reference_total"] <= 1680
        assert report.facts["rate"] == pytest.approx(1.0, abs=0.6)


RELEASE = (
    "INSERT INTO releases (created_at, kind, model_name, model_version, adapter_sha256, base_model, base_revision, prompt_sha256, "
    "prompt, index_version, embedder, code_revision, evidence_uri, evidence_sha256, approved_by, reason, run) VALUES "
    "(%s, 'promotion', 'm', '1', %s, 'b', 'b', 'p', 'p', %s, 'e', 'c', 'u', 's', 'a', 'r', %s) RETURNING release"
)


def test_only_what_the_live_model_answered_is_compared(watch: Watch) -> None:
    """After a rollback, what the bad model answered says nothing of the one that is live again."""
    with connect(watch.url) as connection:
        index = connection.execute(
            "INSERT INTO index_versions (fingerprint, corpus, corpus_sha256, embedder, dimensions, table_name, status, run) "
            "VALUES ('f', 'default', 'c', 'e', 32, 'chunks_v1', 'current', 'r') RETURNING version"
        ).fetchone()
        assert index is not None
        numbers = []
        for day, adapter in ((20, "good"), (15, "good"), (3, "bad"), (1, "good")):
            at = SHIFT - timedelta(days=day)
            row = connection.execute(RELEASE.encode(), (at, adapter, index["version"], f"run {day}")).fetchone()
            assert row is not None
            numbers.append(row["release"])
        connection.execute(
            "INSERT INTO feedback (request_id, rating, correction, status, reviewed_by, created_at) "
            "SELECT gen_random_uuid(), 'down', 'so', 'accepted', 'r', %s FROM generate_series(1, 12)",
            (SHIFT - timedelta(hours=12),),
        )
    watch.ask(120, SHIFT - timedelta(days=19), (0, 1), 1, release=numbers[0])
    watch.ask(40, SHIFT - timedelta(days=14), (0, 1), 2, release=numbers[1])
    watch.ask(150, SHIFT + timedelta(minutes=1), (9,), 3, release=numbers[2], score=0.1)
    watch.ask(120, SHIFT + timedelta(minutes=9), (0, 1), 4, release=numbers[3])
    watch.ask(7, SHIFT + timedelta(minutes=12), (0, 1), 5, error="Busy")
    collected = watch.stages()["collect_requests"]
    assert (collected.counts["reference"], collected.counts["current"]) == (160, 127)
    from tasks.monitoring import references

    with connect(watch.url) as connection:
        of = references.lineage(connection)
    assert (of.root, of.releases, of.since) == (
        numbers[0],
        [numbers[0], numbers[1], numbers[3]],
        SHIFT - timedelta(days=1),
    )


def test_a_quiet_window_grows(watch: Watch) -> None:
    watch.ask(200, NOW - timedelta(days=6), (0,), 1)
    watch.ask(60, NOW - timedelta(days=2), (0,), 2)
    watch.ask(60, NOW - timedelta(hours=3), (0,), 3)
    run = f"s3://{watch.settings.s3_bucket}/runs/watch_drift/{uuid.uuid4()}"
    found = run_stage(load_stage("collect_requests"), watch.settings, run, None, {})
    assert found.counts["current"] == 120 and found.facts["hours"] == pytest.approx(96)
    short = watch.settings.model_copy(update={"drift_longest_days": 1.0})
    run = f"s3://{watch.settings.s3_bucket}/runs/watch_drift/{uuid.uuid4()}"
    assert run_stage(load_stage("collect_requests"), short, run, None, {}).counts["current"] == 60


def test_examples_hold_no_personal_data_and_no_markup(watch: Watch) -> None:
    watch.ask(160, SHIFT - timedelta(hours=2), (0, 1), 1)
    watch.ask(
        160,
        SHIFT + timedelta(minutes=1),
        (9,),
        2,
        question="<script>alert(1)</script> write to anna.huber@huber-und-sohn.at now",
    )
    manifests = watch.stages()
    page = watch.storage.get(manifests["report_drift"].outputs["summary.html"]).decode()
    everything = page + json.dumps(manifests["decide"].facts) + json.dumps(manifests["report_drift"].facts)
    assert "anna.huber@huber-und-sohn.at" not in everything
    assert "<script>alert" not in page and "&lt;script&gt;" in page


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
    assert names == {"report.html", "report.json", "summary.html", "tests.json"}


def test_an_index_that_is_behind_is_refreshed_first(watch: Watch) -> None:
    watch.index_everything()
    with connect(watch.url) as connection:
        connection.execute("DELETE FROM documents WHERE uri IN (SELECT uri FROM documents ORDER BY uri LIMIT 2)")
    watch.ask(120, SHIFT - timedelta(hours=2), (0, 1), 1)
    watch.ask(120, SHIFT + timedelta(minutes=1), (7,), 2, score=0.4)
    decision = watch.stages()["decide"].facts
    assert (decision["action"], decision["dag_id"]) == ("refresh_knowledge", "sync_knowledge")
    assert "2 documents that the index lacks" in decision["reason"]
    assert "missing or changed, among others: pydoc:topics/" in decision["reason"]


def test_the_same_kind_of_requests_is_no_drift(watch: Watch) -> None:
    watch.ask(150, SHIFT - timedelta(hours=2), (0, 1, 2, 3), 1)
    watch.ask(150, SHIFT + timedelta(minutes=1), (0, 1, 2, 3), 2)
    manifests = watch.stages()
    assert manifests["report_drift"].facts["drifted"] == []
    assert manifests["decide"].facts["detail"] == "no_drift"


def test_too_few_requests_are_not_judged(watch: Watch) -> None:
    watch.ask(150, SHIFT - timedelta(hours=2), (0,), 1)
    watch.ask(99, SHIFT + timedelta(minutes=1), (7,), 2)
    manifests = watch.stages()
    report = manifests["report_drift"].facts
    assert (report["enough"], report["drifted"], report["tests"]) == (False, [], {})
    assert manifests["decide"].facts["detail"] == "too_few_requests"


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
    from tasks.monitoring import collect_requests, references

    monkeypatch.setattr(collect_requests, "MOST_ROWS", 40)
    monkeypatch.setattr(references, "MOST_ROWS", 50)
    watch.ask(60, SHIFT - timedelta(hours=2), (0,), 1)
    watch.ask(90, SHIFT + timedelta(minutes=1), (0,), 2)
    counts = watch.stages()["collect_requests"].counts
    sampled = (counts["reference"], counts["reference_total"], counts["current"], counts["current_total"])
    assert sampled == (50, 60, 40, 90)


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
