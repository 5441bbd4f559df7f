"""Fixtures of tests that train: a bench with a database of its own, and a model made on the spot."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.database import migrate
from tasks.storage import Storage
from tests.tiny_model import make_model
from tests.training.bench import Bench, validate_new


@pytest.fixture(scope="module")
def bench(stack: Any, new_database: Any) -> Iterator[Bench]:
    database = new_database("training")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (stack.env | {"MILLRACE_DATABASE_URL": database}).items():
            patch.setenv(name, value)
        migrate(database)
        yield Bench(stack, database, Storage(stack.env["MILLRACE_S3_ENDPOINT_URL"]))


@pytest.fixture(scope="module")
def tiny(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model made on the spot, in S3."""
    reference = f"{bench.bucket}/tiny/{uuid.uuid4().hex}"
    bench.storage.put_folder(reference, make_model(tmp_path_factory.mktemp("tiny")))
    return reference


@pytest.fixture
def validated(bench: Bench, tmp_path: Path) -> str:
    """A run folder with a validated dataset of its own."""
    return validate_new(bench, tmp_path)
