"""A database of the module's own, and a small corpus that is synced in this process."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tasks.database import migrate
from tasks.knowledge.embedders import openvino_runner
from tests.knowledge.syncing import ANIMALS, Sync, document, environment_of


@pytest.fixture(scope="module", autouse=True)
def models_are_compiled_once() -> Iterator[None]:
    """Every stage compiles its model, in a process of its own; here hundreds of stages run in one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_runner, "compiled", functools.cache(openvino_runner.compiled))
        yield


@pytest.fixture(scope="module")
def database(new_database: Any) -> str:
    """A database of our own in the stack's server, so that other tests' index versions do not meet ours."""
    return str(new_database("knowledge"))


@pytest.fixture(scope="module")
def environment(stack: Any, database: str) -> Iterator[dict[str, str]]:
    """The stack's environment with our database, in this process for as long as the module runs."""
    values = {**stack.env, "MILLRACE_DATABASE_URL": database, "MILLRACE_CODE_REVISION": "test"}
    with environment_of(values):
        yield values


@pytest.fixture
def sync(tmp_path: Path, environment: dict[str, str]) -> Sync:
    """Six good documents of several chunks, a golden question each; the database as after `migrate`."""
    with psycopg.connect(environment["MILLRACE_DATABASE_URL"], autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    migrate(environment["MILLRACE_DATABASE_URL"])
    made = Sync(tmp_path / "corpus", tmp_path / "golden.jsonl", environment)
    made.corpus.mkdir()
    lines = []
    for animal, prey in ANIMALS.items():
        made.write(f"{animal}.md", document(animal, prey))
        lines.append({"id": animal, "question": f"What does the {animal} hunt?", "documents": [f"file:{animal}.md"]})
    made.golden.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made
