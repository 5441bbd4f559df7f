"""An installation to back up: databases and a bucket of this test's own, filled by the real stages of a release."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from psycopg import sql

from tasks.backup import catalogue
from tasks.backup.contract import Backup
from tasks.backup.make import make_backup
from tasks.backup.targets import FolderTarget
from tasks.contracts import digest_of
from tasks.database import connect, migrate
from tasks.release import evidence as proofs
from tasks.release import ledger
from tasks.settings import REPOSITORY, load_settings
from tasks.settings import settings as process_settings
from tasks.storage import Storage
from tests.release.conftest import House

AIRFLOW = "CREATE TABLE dag_run (id int PRIMARY KEY, dag_id text, run_id text, state text)"


class Place(House):
    """An installation, and its backups in a folder."""

    target: FolderTarget
    environment: dict[str, str]

    def backup(self) -> Backup:
        return make_backup(self.settings, self.target)

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run `python -m tasks` in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "tasks", *arguments],
            cwd=REPOSITORY,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def python(self, code: str) -> "subprocess.CompletedProcess[str]":
        """Run Python code with this installation's environment."""
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            env=os.environ | self.environment | {"TARGET": self.target.name},
            capture_output=True,
            text=True,
            check=False,
        )

    def uris(self) -> set[str]:
        return {uri for uri, _size, _etag in self.storage.list(f"s3://{self.settings.s3_bucket}/")}

    def held(self, backup: Backup) -> dict[str, Any]:
        return {item.uri: item for item in catalogue.objects(self.target, backup)}

    def contents(self) -> set[str]:
        return set(self.target.keys("objects/"))

    def put(self, key: str, body: bytes) -> str:
        return self.storage.put_bytes(f"s3://{self.settings.s3_bucket}/{key}", body).uri

    def rows(self, query: str, database: str | None = None) -> list[Any]:
        url = self.url if database is None else self.url.rsplit("/", 1)[0] + f"/{database}"
        with connect(url, vectors=False) as connection:
            return [tuple(row.values()) for row in connection.execute(query.encode()).fetchall()]

    def databases(self) -> set[str]:
        return {row[0] for row in self.rows("SELECT datname FROM pg_database")}

    def release(self, weights: bytes) -> int:
        """Promote a new candidate upon a new index; return the release."""
        live = self.rows("SELECT max(release) FROM releases")[0][0]
        candidate = self.candidate(weights, champion=live)
        self.index()
        return int(self.promote(candidate=candidate.uri).facts["release"])

    def quick_release(self) -> int:
        """Add a release whose evidence and weights are real objects, without MLflow's part of it; return its number."""
        bucket = f"s3://{self.settings.s3_bucket}"
        folder = f"{bucket}/models/{uuid.uuid4().hex}/adapter"
        files = {
            name: self.storage.put_bytes(f"{folder}/{name}", name.encode()) for name in ("a.safetensors", "b.json")
        }
        evidence = proofs.keep(
            self.storage, bucket, {"adapter": {name: file.model_dump() for name, file in files.items()}}
        )
        with connect(self.url) as connection:
            made = ledger.append(
                connection,
                ledger.Parts(
                    self.settings.model_name, "1", folder, digest_of(files), "b", "r", "p", "p", self.index(), "e", None,
                    "c", evidence.uri, evidence.sha256,
                ),
                kind="promotion", approved_by="Ada", reason="r", run=self.run("promote_release"),
                expected_live=(live.release if (live := ledger.live(connection)) else None),
            )  # fmt: skip
        return made.release


def make_place(environment: dict[str, str], target: Path) -> Place:
    """Return an installation in what `environment` names, which is made by the caller."""
    settings = load_settings(environment)
    place = Place(settings, Storage(settings.s3_endpoint_url))
    place.target, place.environment = FolderTarget(target), environment
    return place


@pytest.fixture
def place(
    stack: Any, new_database: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    url, airflow, bucket = new_database("mill"), new_database("air"), f"b-{uuid.uuid4().hex[:12]}"
    environment = stack.env | {
        "MILLRACE_DATABASE_URL": url,
        "MILLRACE_AIRFLOW_DATABASE_URL": airflow,
        "MILLRACE_S3_BUCKET": bucket,
        "MILLRACE_MODEL_NAME": url.rsplit("/", 1)[1],
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    process_settings.cache_clear()
    boto3.session.Session().client("s3", endpoint_url=environment["MILLRACE_S3_ENDPOINT_URL"]).create_bucket(
        Bucket=bucket
    )
    migrate(url)
    with psycopg.connect(airflow, autocommit=True) as connection:
        connection.execute(AIRFLOW)
        connection.execute("INSERT INTO dag_run VALUES (1, 'fine_tune', 'one', 'success')")
    yield make_place(environment, tmp_path / "backups")
    process_settings.cache_clear()
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        for name in (url.rsplit("/", 1)[1], airflow.rsplit("/", 1)[1]):
            found = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", (name + "%",))
            for row in found.fetchall():
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(row[0])))
