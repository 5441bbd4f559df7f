"""A migrated database of its own for each test that wants one."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tasks.database import migrate
from tasks.settings import Settings, load_settings


@pytest.fixture
def database(new_database: Callable[[str], str]) -> str:
    """URL of a new database with all migrations."""
    url = new_database("observability")
    migrate(url)
    return url


@pytest.fixture
def configured(stack: Any, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The settings of the stack, with that database; boto3 finds its credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        if name in stack.env:
            monkeypatch.setenv(name, stack.env[name])
    ours = {name: value for name, value in stack.env.items() if name.startswith("MILLRACE_")}
    yield load_settings(ours | {"MILLRACE_DATABASE_URL": database, "MILLRACE_GPU_BUDGET_HOURS": "10"})
