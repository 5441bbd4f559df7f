"""What all tests share: the embedded stack, started once a session for those marked `integration`."""

from collections.abc import Iterator

import pytest

from local.stack import EmbeddedStack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    """Postgres, S3 and MLflow on free ports in a temporary folder; no Airflow, no assistant.

    `stack.env` is what a stage runs with, `stack.database_url` the (empty) database `millrace`.
    """
    with EmbeddedStack(tmp_path_factory.mktemp("stack"), parts=("postgres", "s3", "mlflow"), ports="free") as started:
        yield started
