"""What is retired and, above all, what is not: rules on their own, then on a real Postgres and S3."""

import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks import mlflow_http
from tasks.database import connect, migrate
from tasks.errors import ServiceUnavailable
from tasks.housekeeping import STAGE, Known, old_folders, old_versions
from tasks.mlflow_http import MlflowHttp
from tasks.release import evidence
from tasks.serving.spans import EXPERIMENT, SERVICE
from tasks.settings import Settings, load_settings
from tasks.settings import settings as process_settings
from tasks.stage import run_stage
from tasks.storage import Storage

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def known(version: int, status: str, hours: float = 100, corpus: str = "default") -> Known:
    return Known(version, status, f"chunks_v{version}", NOW - timedelta(hours=hours), corpus)


def retired(versions: list[Known], released: set[int], keep: int) -> list[int]:
    return [item.version for item in old_versions(versions, released, keep, NOW)]


def test_former_versions_beyond_the_kept_ones_go_oldest_first() -> None:
    versions = [known(number, "former") for number in range(1, 6)] + [known(6, "current")]
    assert retired(versions, set(), 3) == [1, 2]


def test_current_and_released_versions_stay_and_do_not_use_up_the_kept_ones() -> None:
    versions = [known(1, "former"), known(2, "former"), known(3, "current"), known(4, "former"), known(5, "former")]
    assert retired(versions, {1, 5}, 1) == [2]


def test_a_build_has_a_day() -> None:
    versions = [known(1, "building", 30), known(2, "building", 2), known(3, "checked", 2), known(4, "refused", 1)]
    assert retired(versions, set(), 0) == [1]


def test_refused_versions_take_no_place_of_those_to_go_back_to() -> None:
    refused = [known(number, "refused", 30) for number in range(4, 8)]
    assert retired([known(1, "former"), known(2, "former"), known(3, "current"), *refused], set(), 2) == [4, 5, 6, 7]


def test_every_corpus_keeps_versions_of_its_own() -> None:
    versions = [known(1, "former", corpus="handbook"), *(known(number, "former") for number in range(2, 6))]
    assert retired(versions, set(), 2) == [2, 3]


def test_what_was_tuned_has_a_day_and_takes_no_place() -> None:
    tuned = [known(5, "building", 25, "tuning"), known(6, "building", 23, "tuning")]
    assert retired([known(1, "former"), known(2, "former"), *tuned], set(), 2) == [5]
    assert retired([known(1, "former"), known(2, "former"), *tuned], set(), 1) == [1, 5]


def test_a_version_stays_as_long_as_another_stands_on_its_table() -> None:
    base, later = known(1, "former"), replace(known(4, "current"), base_table="chunks_v1")
    between = replace(known(3, "former"), base_table="chunks_v1")
    assert retired([base, known(2, "former"), between, later], set(), 0) == [2, 3]
    gone = replace(later, status="retired")
    assert retired([base, known(2, "former"), gone, known(5, "current")], set(), 0) == [1, 2]


def test_retired_versions_are_not_retired_again() -> None:
    assert retired([known(1, "retired"), known(2, "former")], set(), 0) == [2]


def test_a_folder_is_as_old_as_its_newest_object() -> None:
    old, new = NOW - timedelta(days=40), NOW - timedelta(days=2)
    objects = [
        ("s3://b/runs/d/one/train/manifest.json", old),
        ("s3://b/runs/d/one/train/rows.jsonl", old),
        ("s3://b/runs/d/two/train/manifest.json", old),
        ("s3://b/runs/d/two/gate/manifest.json", new),
        ("s3://b/runs/d/own/retire/manifest.json", old),
        ("s3://b/runs/d/stray", old),
    ]
    assert old_folders(objects, NOW - timedelta(days=30), "s3://b/runs/d/own") == [("s3://b/runs/d/one/", 2)]


def test_of_a_released_run_only_what_it_was_judged_by_stays() -> None:
    old, run = NOW - timedelta(days=40), "s3://b/runs/fine_tune/one"
    names = ("evaluate/scores.parquet", "evaluate/sets/golden.jsonl", "gate/verdict.json", "register/manifest.json")
    gone = (
        "evaluate/sets/hits.jsonl",
        "train/checkpoints/step-1/a",
        "train/manifest.json",
        "build_dataset/candidates.jsonl",
    )
    objects = [(f"{place}/{name}", old) for place in (run, "s3://b/runs/fine_tune/two") for name in names + gone]
    limit, own = NOW - timedelta(days=30), "s3://b/runs/d/own"
    assert old_folders(objects, limit, own, {run}) == [
        (f"{run}/build_dataset/", 1), (f"{run}/evaluate/sets/hits.jsonl", 1), (f"{run}/train/", 2),
        ("s3://b/runs/fine_tune/two/", 8),
    ]  # fmt: skip
    assert old_folders([*objects, (f"{run}/gate/late", NOW)], limit, own, {run}) == [("s3://b/runs/fine_tune/two/", 8)]
    assert old_folders([(f"{run}/{name}", old) for name in names], limit, own, {run}) == []


@pytest.fixture
def settings(stack: Any, new_database: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    url = new_database("house")
    for variable, value in (stack.env | {"MILLRACE_DATABASE_URL": url}).items():
        monkeypatch.setenv(variable, value)
    process_settings.cache_clear()
    migrate(url)
    yield load_settings()
    process_settings.cache_clear()


def release(settings: Settings, uri: str, sha256: str) -> None:
    """Make a release whose evidence is there; it has the first index version, which is made where there is none."""
    with connect(settings.database_url.get_secret_value()) as connection:
        connection.execute(
            "INSERT INTO index_versions (fingerprint, corpus, corpus_sha256, embedder, dimensions, table_name, status, run) "
            "SELECT 'f', 'c', 'c', 'e', 2, 'chunks_v1', 'current', '1' WHERE NOT EXISTS (SELECT 1 FROM index_versions)"
        )
        connection.execute(
            "INSERT INTO releases (kind, model_name, model_version, base_model, base_revision, prompt_sha256, prompt, "
            "index_version, embedder, code_revision, evidence_uri, evidence_sha256, approved_by, reason, run) "
            "VALUES ('promotion', 'm', '1', 'b', 'r', 'p', 'p', 1, 'e', 'c', %s, %s, 'Ada', 'r', 'run')",
            (uri, sha256),
        )


@pytest.mark.integration
def test_it_drops_what_it_names_and_nothing_else(settings: Settings) -> None:
    storage = Storage(settings.s3_endpoint_url)
    url = settings.database_url.get_secret_value()
    with connect(url) as connection:
        for number, status in enumerate(("former", "former", "former", "former", "current"), start=1):
            connection.execute(
                "INSERT INTO index_versions (fingerprint, corpus, corpus_sha256, embedder, dimensions, table_name, status, run) "
                "VALUES ('f', 'c', 'c', 'e', 2, %s, %s, %s)",
                (f"chunks_v{number}", status, str(number)),
            )
            connection.execute(f"CREATE TABLE chunks_v{number} (x int)".encode())
    bucket = f"s3://{settings.s3_bucket}"
    release(settings, f"{bucket}/releases/gone/evidence.json", "s")
    kept = [
        storage.put_bytes(f"{bucket}/{place}/{uuid.uuid4()}/x", b"x") for place in ("models", "datasets", "releases")
    ]
    run = storage.put_bytes(f"{bucket}/runs/some_dag/{uuid.uuid4()}/stage/manifest.json", b"x")
    own = f"{bucket}/runs/housekeeping/{uuid.uuid4()}"
    chosen = settings.model_copy(update={"keep_index_versions": 1})

    listed = run_stage(STAGE, chosen, f"{own}-dry", None, {"dry_run": "yes"})
    assert listed.facts["index_versions"] == [2, 3] and tables(url) == {1, 2, 3, 4, 5}

    done = run_stage(STAGE, chosen, own, None, {})
    assert done.counts["index_versions"] == 2 and tables(url) == {1, 4, 5}
    rows = list(storage.get_rows(done.outputs["retired"]))
    assert [row["name"] for row in rows if row["kind"] == "index_version"] == ["chunks_v2", "chunks_v3"]
    for artifact in (*kept, run):
        storage.verify(artifact)


@pytest.mark.integration
def test_what_a_killed_tune_index_left_goes_after_a_day(settings: Settings) -> None:
    url = settings.database_url.get_secret_value()
    names = ("old", "young")
    with connect(url) as connection:
        for number, (name, hours) in enumerate(zip(names, (30, 2), strict=True), start=1):
            connection.execute(
                "INSERT INTO index_versions (fingerprint, corpus, corpus_sha256, embedder, dimensions, table_name, status, run, created_at) "
                "VALUES ('f', 'tuning', 'c', 'e', 2, %s, 'building', %s, now() - %s)",
                (f"chunks_v{number}", name, timedelta(hours=hours)),
            )
            connection.execute(f"CREATE TABLE chunks_v{number} (x int)".encode())
            for embedder in ("e", "scratch e"):
                connection.execute(
                    "INSERT INTO embedding_cache (chunk_sha256, embedder, embedding, created_at) VALUES (%s, %s, '[1]', now() - %s)",
                    (name, embedder, timedelta(hours=hours)),
                )
    place = f"s3://{settings.s3_bucket}/runs/housekeeping/{uuid.uuid4()}"
    assert run_stage(STAGE, settings, f"{place}-dry", None, {"dry_run": "yes"}).counts["tuning_vectors"] == 1
    assert cached(url) == {(name, embedder) for name in names for embedder in ("e", "scratch e")}
    done = run_stage(STAGE, settings, place, None, {})
    assert done.facts["index_versions"] == [1] and tables(url) == {2}
    assert cached(url) == {("old", "e"), ("young", "e"), ("young", "scratch e")}


def write_traces(settings: Settings, *days_ago: int) -> list[str]:
    """Write a trace that began so many days ago, each; return their ids."""
    ids = []
    with closing(MlflowHttp(settings.mlflow_tracking_uri)) as http:
        experiment = http.experiment(EXPERIMENT)
        for days in days_ago:
            trace, began = uuid.uuid4().hex, int((datetime.now(UTC) - timedelta(days=days)).timestamp()) * 10**9
            span = {"traceId": trace, "spanId": trace[:16], "name": "request", "kind": 1, "status": {"code": 1}}
            times = {"startTimeUnixNano": str(began), "endTimeUnixNano": str(began + 10**9)}
            http.write_spans(experiment, [span | times], SERVICE)
            ids.append(f"tr-{trace}")
    return ids


@pytest.mark.integration
def test_traces_go_with_the_days_of_their_requests(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_http, "_OF_AGE", 2)  # so that three take two requests
    client = MlflowClient(tracking_uri=settings.mlflow_tracking_uri)
    *old, young = write_traces(settings, 40, 33, 32, 29)
    chosen = settings.model_copy(update={"keep_request_days": 30})
    place = f"s3://{settings.s3_bucket}/runs/housekeeping/{uuid.uuid4()}"
    listed = run_stage(STAGE, chosen, f"{place}-dry", None, {"dry_run": "yes"})
    assert listed.counts["traces"] == 3 and client.get_trace(old[0]).info.trace_id == old[0]
    done = run_stage(STAGE, chosen, place, None, {})
    rows = list(Storage(settings.s3_endpoint_url).get_rows(done.outputs["retired"]))
    assert [(row["name"], row["rows"]) for row in rows if row["kind"] == "traces"] == [(EXPERIMENT, 3)]
    for gone in old:
        with pytest.raises(MlflowException, match="not found"):
            client.get_trace(gone)
    assert client.get_trace(young).info.trace_id == young
    assert run_stage(STAGE, chosen, f"{place}-again", None, {}).counts["traces"] == 0


@pytest.mark.integration
def test_nothing_goes_while_mlflow_is_away(settings: Settings) -> None:
    with connect(settings.database_url.get_secret_value()) as connection:
        connection.execute(
            "INSERT INTO index_versions (fingerprint, corpus, corpus_sha256, embedder, dimensions, table_name, status, run, created_at) "
            "VALUES ('f', 'c', 'c', 'e', 2, 'chunks_v1', 'refused', '1', now() - interval '3 days')"
        )
        connection.execute("CREATE TABLE chunks_v1 (x int)")
    away = settings.model_copy(update={"mlflow_tracking_uri": "http://127.0.0.1:9"})
    with pytest.raises(ServiceUnavailable, match="expected MLflow to answer"):
        run_stage(STAGE, away, f"s3://{settings.s3_bucket}/runs/housekeeping/{uuid.uuid4()}", None, {})
    assert tables(settings.database_url.get_secret_value()) == {1}


def cached(url: str) -> set[tuple[str, str]]:
    with connect(url) as connection:
        rows = connection.execute("SELECT chunk_sha256, embedder FROM embedding_cache")
        return {(row["chunk_sha256"], row["embedder"]) for row in rows}


def tables(url: str) -> set[int]:
    with connect(url) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE 'chunks_v%'")
        return {int(row["tablename"].removeprefix("chunks_v")) for row in rows}


@pytest.mark.integration
def test_old_run_folders_go_and_models_stay(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(settings.s3_endpoint_url)
    bucket = f"s3://{settings.s3_bucket}"
    name = str(uuid.uuid4())
    model = storage.put_bytes(f"{bucket}/models/{name}/x", b"x")
    judged = f"{bucket}/runs/fine_tune/{name}"
    scores = storage.put_bytes(f"{judged}/evaluate/scores.parquet", b"x")
    rows_of_people = storage.put_bytes(f"{judged}/build_dataset/candidates.jsonl", b"x")
    proof = evidence.keep(storage, bucket, {"manifests": {"gate": {"run": judged}}})
    release(settings, proof.uri, proof.sha256)
    run = storage.put_bytes(f"{bucket}/runs/old_dag/{name}/stage/manifest.json", b"x")
    real = Storage.list_modified

    def aged(self: Storage, prefix: str) -> Iterator[tuple[str, datetime]]:
        """S3 sets the moments itself, so the folder of this test is aged while it is listed; others stay young."""
        for uri, modified in real(self, prefix):
            yield uri, modified - timedelta(days=400) if name in uri else modified

    monkeypatch.setattr(Storage, "list_modified", aged)
    done = run_stage(STAGE, settings, f"{bucket}/runs/housekeeping/{uuid.uuid4()}", None, {})
    rows = list(storage.get_rows(done.outputs["retired"]))
    assert rows == [
        {"kind": "run_folder", "name": f"{judged}/build_dataset/", "objects": 1},
        {"kind": "run_folder", "name": f"{bucket}/runs/old_dag/{name}/", "objects": 1},
    ]
    for artifact in (model, scores):
        storage.verify(artifact)
    assert not storage.exists(run.uri) and not storage.exists(rows_of_people.uri)


@pytest.mark.integration
def test_old_days_of_requests_are_listed_then_dropped(settings: Settings) -> None:
    url = settings.database_url.get_secret_value()
    with connect(url) as connection:
        for days in (40, 40, 2):
            connection.execute(
                "INSERT INTO requests (id, created_at, kind, question, latency_ms) VALUES (%s, now() - %s, 'chat', 'q', 1)",
                (uuid.uuid4(), timedelta(days=days)),
            )
    chosen = settings.model_copy(update={"keep_request_days": 30})
    own = f"s3://{settings.s3_bucket}/runs/housekeeping/{uuid.uuid4()}"
    listed = run_stage(STAGE, chosen, f"{own}-dry", None, {"dry_run": "yes"})
    assert (listed.counts["requests"], listed.counts["request_days"], requests_left(url)) == (2, 0, 3)
    storage = Storage(settings.s3_endpoint_url)
    done = run_stage(STAGE, chosen, own, None, {})
    assert (done.counts["requests"], requests_left(url)) == (2, 1)
    assert [row["name"] for row in storage.get_rows(done.outputs["retired"])] == ["requests_default"]
    later = chosen.model_copy(update={"keep_request_days": 1})
    last = run_stage(STAGE, later, f"{own}-later", None, {})
    assert (last.counts["requests"], last.counts["request_days"], requests_left(url)) == (1, 1, 0)


def requests_left(url: str) -> int:
    with connect(url) as connection:
        row = connection.execute("SELECT count(*) AS n FROM requests").fetchone()
        return int(row["n"]) if row else 0
