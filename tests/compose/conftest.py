"""The Compose project that all tests of this folder share: built, started, and at the end gone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compose.project import Project, missing

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents and item.get_closest_marker("compose")]
    if ours and (reason := missing()):
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Project]:
    made = Project(tmp_path_factory.mktemp("compose"))
    made.compose("down", "--volumes", "--remove-orphans")  # of a session that was killed
    failures = request.session.testsfailed
    try:
        made.compose("up", "--build", "--wait", "--wait-timeout", "600", timeout=1800)
        yield made
    finally:
        if request.session.testsfailed > failures:
            print(made.compose("logs", "--no-color", "--tail", "60", check=False).stdout)
        made.compose("down", "--volumes", "--remove-orphans")
        assert made.left() == []
