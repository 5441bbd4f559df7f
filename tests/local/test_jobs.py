"""Jobs between the servers' starts, against the stack's real Postgres."""

import json
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from local import jobs

pytestmark = pytest.mark.integration


@pytest.fixture
def names(stack: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of databases in the place of Millrace's own, and the environment the job runs with."""
    url = urlsplit(stack.database_url)
    values = {"PGHOST": url.hostname, "PGPORT": str(url.port), "PGUSER": url.username, "PGPASSWORD": url.password}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    made = [f"job_{uuid.uuid4().hex[:10]}" for _ in range(2)]
    monkeypatch.setattr(jobs, "DATABASES", tuple(made))
    yield made
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        for name in made:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))


def login(role: str, password: str, database: str) -> str:
    """Return who one is after signing in; raises psycopg.OperationalError where one may not."""
    with psycopg.connect(dbname=database, user=role, password=password, connect_timeout=5) as connection:
        row = connection.execute("SELECT current_user").fetchone()
    assert row is not None
    return str(row[0])


def test_each_role_owns_its_database_and_enters_no_other(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = names
    monkeypatch.setenv("MILLRACE_JOB_ROLES", json.dumps({first: "one'quoted", second: "two"}))
    assert jobs.main(["roles", "roles"]) == 0  # safe to repeat
    assert login(first, "one'quoted", first) == first
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        login(first, "one'quoted", second)
    with psycopg.connect(dbname=first, user=first, password="one'quoted") as connection:
        connection.execute("CREATE TABLE mine (x int)")


def test_a_password_that_was_changed_is_the_one_that_counts(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for password in ("before", "after"):
        monkeypatch.setenv("MILLRACE_JOB_ROLES", json.dumps(dict.fromkeys(names, password)))
        assert jobs.main(["roles"]) == 0
    assert login(names[0], "after", names[0]) == names[0]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        login(names[0], "before", names[0])


def test_what_a_superuser_migrates_belongs_to_the_owner(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_JOB_ROLES", json.dumps(dict.fromkeys(names, "x")))
    assert jobs.main(["roles"]) == 0
    options = jobs.as_owner(names[0])["PGOPTIONS"]
    with psycopg.connect(dbname=names[0], options=options) as connection:
        connection.execute("CREATE TABLE migrated (x int)")
        row = connection.execute("SELECT tableowner FROM pg_tables WHERE tablename = 'migrated'").fetchone()
    assert row == (names[0],)


def test_jobs_that_do_not_exist_are_refused_before_any_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs.main(["databases", "database"]) == 2
    assert jobs.main([]) == 2
    assert "expected some of" in capsys.readouterr().err
