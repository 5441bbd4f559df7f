"""A Compose installation as the doctor sees it, by what a stand-in for `docker` says; tests/compose asks the real one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.doctor import compose
from tasks.doctor.examine import Check, Wanted, examine

from .conftest import one, settings

HEALTHY = {"Service": "postgres", "State": "running", "Health": "healthy", "ExitCode": 0}
Docker = Callable[[str], None]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    """Return a function that puts a shell script in the place of docker."""

    def put(script: str) -> None:
        fake = tmp_path / "docker"
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return put


def test_a_machine_without_docker_cannot_be_a_ground_for_compose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert one(compose.engine).found == "expected `docker` on the PATH, found none."
    assert one(compose.values).status == "skip"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [("Cannot connect to the Docker daemon", 75, 75), ("docker: 'compose' is not a docker command", 1, 2)],
)
def test_an_engine_that_does_not_answer_is_told(words: str, code: int, told: int, docker: Docker) -> None:
    docker(f'echo "{words}" >&2; exit {code}')
    found = one(compose.engine)
    assert words in found.found and found.code == told


def test_a_value_that_is_missing_is_told_with_how_to_make_it(docker: Docker) -> None:
    docker('echo "required variable S3_SECRET_KEY is missing a value" >&2; exit 1')
    found = one(compose.values)
    assert found.code == 2 and "S3_SECRET_KEY is missing" in found.found and "make_env.sh" in found.next


def test_each_container_has_a_line(docker: Docker) -> None:
    services = [
        HEALTHY,
        HEALTHY | {"Service": "s3", "Health": "unhealthy"},
        HEALTHY | {"Service": "prepare", "State": "exited", "Health": ""},
        HEALTHY | {"Service": "models", "State": "exited", "Health": "", "ExitCode": 75},
    ]
    docker("\n".join(f"echo '{json.dumps(service)}'" for service in services))
    found = {each.check: each for each in examine([Check("it", compose.containers)], settings(), Wanted())}
    assert {name: each.status for name, each in found.items()} == {
        "container postgres": "ok", "container prepare": "ok", "container s3": "mend", "container models": "mend",
    }  # fmt: skip
    assert found["container models"].next == "docker compose logs --tail 50 models"


def test_an_installation_that_was_not_started_was_not_checked(docker: Docker) -> None:
    docker("exit 0")
    assert one(compose.containers).status == "skip"


def test_what_the_doctor_says_inside_is_told_by_name(docker: Docker) -> None:
    finding = {"check": "bucket", "status": "mend", "found": "expected x", "next": "y", "code": 2, "seconds": 0.1}
    docker(f"echo '{json.dumps({'exit_code': 2, 'code_revision': 'abc', 'findings': [finding]})}'; exit 2")
    first, bucket = examine([Check("it", compose.inside)], settings(), Wanted())
    assert (first.status, bucket.check, bucket.code) == ("ok", "in it: bucket", 2)


def test_a_container_that_does_not_answer_is_away(docker: Docker) -> None:
    docker('echo "service airflow-scheduler is not running" >&2; exit 1')
    found = one(compose.inside)
    assert found.code == 75 and "is not running" in found.found
