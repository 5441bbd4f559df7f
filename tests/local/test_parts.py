"""The table: order, needs, and what a selection takes along."""

from pathlib import Path

import pytest

from local.environment import load_secrets, stage_environment, write_environment
from local.errors import LocalError
from local.parts import Part, select, table
from local.settings import LocalSettings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> LocalSettings:
    made = load_settings({"MILLRACE_LOCAL_DIR": str(tmp_path / "data"), "MILLRACE_LOCAL_PORT_BASE": "30000"})
    write_environment(made, stage_environment(made, {}, {})[0])
    return made


@pytest.fixture
def parts(settings: LocalSettings) -> list[Part]:
    return table(settings)


def names(parts: list[Part]) -> set[str]:
    return {part.name for part in parts}


def test_every_part_stands_after_what_it_needs(parts: list[Part]) -> None:
    seen: set[str] = set()
    for part in parts:
        assert set(part.needs) <= seen, part.name
        seen.add(part.name)


def test_a_selection_takes_what_it_needs(parts: list[Part]) -> None:
    chosen = names(select(parts, ("mlflow",)))
    assert chosen == {"initdb", "postgres", "s3", "databases", "bucket", "mlflow-migrate", "mlflow"}
    assert "databases" in names(select(parts, ("postgres",)))


def test_leaving_out_takes_dependents_along(parts: list[Part]) -> None:
    left = names(select(parts, (), ("airflow-migrate",)))
    assert not any(name.startswith("airflow") for name in left)
    assert {"mlflow", "assistant"} <= left


def test_an_unknown_part_is_named(parts: list[Part]) -> None:
    with pytest.raises(LocalError, match="found 'postgress'"):
        select(parts, (), ("postgress",))


def test_no_secret_is_on_a_command_line(settings: LocalSettings, parts: list[Part]) -> None:
    secrets = [value for name, value in load_secrets(settings.folder).items() if name != "created"]
    for part in parts:
        assert not any(secret in word for word in part.command for secret in secrets), part.name


def test_everything_listens_on_the_loopback_only(parts: list[Part]) -> None:
    commands = {part.name: " ".join(part.command) for part in parts}
    assert "listen_addresses=127.0.0.1" in commands["postgres"]
    assert "-ip.bind=127.0.0.1" in commands["s3"]
    assert "--skip-serve-logs" in commands["airflow-scheduler"]
    assert "--skip-serve-logs" in commands["airflow-triggerer"]


def test_the_fingerprint_follows_command_and_environment(settings: LocalSettings) -> None:
    def prints() -> dict[str, str]:
        return {part.name: part.fingerprint() for part in table(settings)}

    before = prints()
    assert prints() == before
    values, _ = stage_environment(settings, {"MILLRACE_CORPUS": "/elsewhere"}, {})
    write_environment(settings, values)
    changed = {name for name, value in prints().items() if value != before[name]}
    assert {"assistant", "airflow-scheduler"} <= changed
    assert not {"postgres", "s3", "mlflow"} & changed, "a change of a stage's setting must not restart the servers"
