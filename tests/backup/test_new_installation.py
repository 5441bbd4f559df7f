"""The loss of everything: a backup restored into an empty second stack, and its keys changed afterwards."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest

from local.client import down, up
from local.environment import load_secrets
from local.stack import EmbeddedStack
from local.state import write_private
from tasks.settings import settings as process_settings
from tests.backup.conftest import make_place

pytestmark = [pytest.mark.integration, pytest.mark.long]
CONNECTION = "from airflow.models import Connection; from airflow.utils.session import create_session\n"
ADD = CONNECTION + (
    "from airflow.utils.db import upgradedb; upgradedb()  # what `airflow db migrate` does\n"
    "with create_session() as s:\n"
    "    s.add(Connection(conn_id='store', conn_type='http', host='h', login='u', password='kept secret'))"
)
SHOW = CONNECTION + (
    "with create_session() as s:\n    print('password:', s.query(Connection).filter_by(conn_id='store').one().password)"
)
QUERIES = (
    "SELECT * FROM releases ORDER BY release",
    "SELECT * FROM index_versions ORDER BY version",
    "SELECT * FROM stage_costs ORDER BY id",
    "SELECT chunk_sha256, embedding::text FROM embedding_cache",
)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    """An empty stack: Postgres and S3, nothing in them."""
    with EmbeddedStack(tmp_path_factory.mktemp("second"), parts=("postgres", "s3"), ports="free") as stack:
        yield stack


def fernet_key() -> str:
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


def airflow(folder: Path, url: str, key: str, *command: str) -> "subprocess.CompletedProcess[str]":
    """Run Python with Airflow's environment upon a database."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")} | {
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__FERNET_KEY": key,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url.replace("postgresql://", "postgresql+psycopg2://"),
    }
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


def test_everything_is_there_again_and_its_secrets_can_be_changed(
    place: Any, second: EmbeddedStack, new_database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, url = fernet_key(), new_database("air")
    place.environment["MILLRACE_AIRFLOW_DATABASE_URL"] = url
    assert airflow(tmp_path, url, key, "-c", ADD).returncode == 0
    place.release(b"one")
    queries = [*QUERIES, big_index(place)]
    place.promote()
    made = place.command("backup", "--to", place.target.name, "--verify")
    assert made.returncode == 0, made.stderr
    expected = [place.rows(query) for query in queries]
    assert all(expected)
    registered = models(place)

    # The new installation has ports and passwords of its own; its bucket has the name that the backup knows.
    names = ("MILLRACE_S3_BUCKET", "MILLRACE_MODEL_NAME")
    airflow_url = second.url_of("airflow")
    environment = second.env | {name: place.environment[name] for name in names}
    for name, value in (environment | {"MILLRACE_AIRFLOW_DATABASE_URL": airflow_url}).items():
        monkeypatch.setenv(name, value)
    process_settings.cache_clear()
    boto3.session.Session().client("s3", endpoint_url=environment["MILLRACE_S3_ENDPOINT_URL"]).create_bucket(
        Bucket=environment["MILLRACE_S3_BUCKET"]
    )
    there = make_place(environment, Path(place.target.name))
    done = there.command("restore", "--from", place.target.name)
    assert (done.returncode, "airflow, millrace, mlflow" in done.stdout) == (0, True), done.stdout + done.stderr

    assert [there.rows(query) for query in queries] == expected
    plan = str(there.rows("EXPLAIN " + queries[-1]))
    assert "Index Scan" in plan, plan
    second.parts = ("postgres", "s3", "mlflow")
    second.start()
    there = make_place(second.env | {name: place.environment[name] for name in names}, Path(place.target.name))
    for name, value in there.environment.items():
        monkeypatch.setenv(name, value)
    process_settings.cache_clear()
    shown = there.command("reconcile")
    assert (shown.returncode, "release 2" in shown.stdout) == (0, True), shown.stderr
    assert models(there) == registered
    # The next release stage works upon what came back: it reads every byte of the weights.
    back = there.stage("roll_back", there.run("roll_back"), approved_by="Ada", reason="r")
    assert (back.facts["release"], back.facts["restores"], back.facts["mirror_problem"]) == (3, 1, None)

    rotate_fernet(tmp_path, second.url_of("airflow"), key)
    rotate_postgres(second)


def big_index(place: Any) -> str:
    """Make an index version with an HNSW index and something cached; return a search in it."""
    version = place.index()
    table = f"chunks_v{version}_big"
    with psycopg.connect(place.url) as connection:
        for statement in (
            f"CREATE TABLE {table} (number int, embedding vector(3))",
            f"INSERT INTO {table} SELECT n, ARRAY[sin(n), cos(n), sin(n * 7)]::vector FROM generate_series(1, 5000) n",
            f"CREATE INDEX ON {table} USING hnsw (embedding vector_cosine_ops)",
            "INSERT INTO embedding_cache VALUES ('c', 'e', '[1,2,3]')",
        ):
            connection.execute(statement.encode())
    return f"SELECT number FROM {table} ORDER BY embedding <=> '[0.3,0.7,0.1]' LIMIT 5"


def models(place: Any) -> list[Any]:
    found = place.mlflow().search_model_versions(f"name = '{place.settings.model_name}'")
    assert found
    aliases = place.mlflow().get_registered_model(place.settings.model_name).aliases
    assert "champion" in aliases
    return [aliases, *sorted((item.version, item.source, sorted(item.tags.items())) for item in found)]


def rotate_fernet(folder: Path, url: str, old: str) -> None:
    """docs/runbooks/secret-rotation.md: both keys, the new one first; then rotate; then the new one alone."""
    new = fernet_key()

    def reads(key: str) -> bool:
        return "password: kept secret" in airflow(folder, url, key, "-c", SHOW).stdout

    assert reads(f"{new},{old}")
    assert airflow(folder, url, f"{new},{old}", "-m", "airflow", "rotate-fernet-key").returncode == 0
    assert reads(new)
    assert not reads(old)


def rotate_postgres(stack: EmbeddedStack) -> None:
    """The same runbook: the role's password, then secrets.json, then down and up."""
    old = stack.database_url
    kept = load_secrets(stack.folder)
    kept["postgres_password"] = hashlib.sha256(b"new").hexdigest()[:32]
    with psycopg.connect(old, autocommit=True) as connection:
        connection.execute(f"ALTER ROLE millrace PASSWORD '{kept['postgres_password']}'".encode())
    write_private(stack.folder / "secrets.json", json.dumps(kept, indent=1))
    down(stack.folder, lambda _text: None)
    up(stack.settings, {}, {}, lambda _text: None, stack.parts)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(old)
    with psycopg.connect(stack.database_url) as connection:
        assert connection.execute("SELECT count(*) > 0 FROM releases").fetchone() == (True,)
    assert stack.healthy()
