"""Migrations against a real Postgres: once, in order, never changed afterwards; the ledger is final."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tasks import database
from tasks.errors import ServiceUnavailable, SettingsError

pytestmark = pytest.mark.integration


@pytest.fixture
def url(stack: Any) -> Iterator[str]:
    """An empty database of its own."""
    base = stack.env["MILLRACE_DATABASE_URL"]
    name = "migration_test"
    with psycopg.connect(base, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
        connection.execute(f"CREATE DATABASE {name}".encode())
    yield base.rsplit("/", 1)[0] + f"/{name}"
    with psycopg.connect(base, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def test_migrations_are_applied_once(url: str) -> None:
    assert database.migrate(url) == sorted(path.name for path in database.SQL_FOLDER.glob("[0-9]*.sql"))
    assert database.migrate(url) == []


def test_a_changed_migration_is_told(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "001_a.sql").write_text("CREATE EXTENSION IF NOT EXISTS vector; CREATE TABLE a (x int);")
    monkeypatch.setattr(database, "SQL_FOLDER", tmp_path)
    database.migrate(url)
    (tmp_path / "001_a.sql").write_text("CREATE TABLE a (y int);")
    with pytest.raises(SettingsError, match="expected migration 001_a.sql as it was applied"):
        database.migrate(url)


def test_a_failed_migration_leaves_nothing_half_made(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "001_a.sql").write_text("CREATE TABLE a (x int);")
    (tmp_path / "002_b.sql").write_text("CREATE TABLE b (x int); SELECT 1 / 0;")
    monkeypatch.setattr(database, "SQL_FOLDER", tmp_path)
    with pytest.raises(psycopg.errors.DivisionByZero):
        database.migrate(url)
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert rows == []


def test_a_server_that_is_away_is_to_be_tried_again() -> None:
    with (
        pytest.raises(ServiceUnavailable, match="expected Postgres to answer"),
        database.connect("postgresql://127.0.0.1:9/x"),
    ):
        pass
