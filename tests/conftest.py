"""What all tests share: the embedded stack, started once a session for those marked `integration`."""

import logging
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql

from local.stack import EmbeddedStack
from tests.hurry import hurry

# Files of minutes come first: one that came last would keep one worker busy while the others have nothing left to do.
LONGEST = (
    "end_to_end/test_loop.py",
    "training/test_fine_tune.py",
    "release/test_crash.py",
    "training/test_survival.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, the others in their order."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Name what failed at once: of a run that is stopped, the summary never comes."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nfailed: {report.nodeid} ({report.when})", file=sys.__stderr__, flush=True)


@pytest.fixture(autouse=True)
def handlers_end_with_the_test() -> Iterator[None]:
    """Take away what a command that ran in this process hung on the root logger: its stream is closed with the test."""
    root = logging.getLogger()
    before = [*root.handlers]
    yield
    for handler in [*root.handlers]:
        if type(handler) is logging.StreamHandler and handler not in before:
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    """Postgres, S3 and MLflow on free ports in a temporary folder; no Airflow, no assistant.

    `stack.env` is what a stage runs with, `stack.database_url` the (empty) database `millrace`.
    """
    folder = tmp_path_factory.mktemp("stack")
    with EmbeddedStack(folder, parts=("postgres", "s3", "mlflow"), ports="free") as started:
        hurry(started.database_url)
        yield started
    shutil.rmtree(folder)  # gigabytes, which pytest would keep for three runs


@pytest.fixture(scope="session")
def new_database(stack: EmbeddedStack) -> Callable[[str], str]:
    """Return the URL of a new, empty database whose name starts with a word: rows of other tests are not in it."""

    def create(word: str) -> str:
        name = f"{word}_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(stack.database_url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return stack.url_of(name)

    return create
