"""Settings of the embedded stack: strict names, ports, the `.env` file."""

import re
from pathlib import Path

import pytest

from local.errors import LocalError
from local.settings import (
    BASE_OFFSETS,
    DEFAULT_PORTS,
    REPOSITORY,
    VARIABLES,
    load_settings,
    merged_environment,
    read_environment_file,
)
from tasks.settings import variable_names


def test_defaults() -> None:
    settings = load_settings({})
    assert settings.ports == DEFAULT_PORTS
    assert settings.folder == REPOSITORY / ".millrace"


def test_an_unknown_name_is_named_with_the_nearest_right_one() -> None:
    with pytest.raises(LocalError, match="MILLRACE_LOCAL_S3_PROT is not a setting.*'MILLRACE_LOCAL_S3_PORT'") as found:
        load_settings({"MILLRACE_LOCAL_S3_PROT": "1", "MILLRACE_LOCAL_MLFLOW_PORT": "many"})
    assert "MILLRACE_LOCAL_MLFLOW_PORT: expected a number" in str(found.value), "all problems come at once"
    assert found.value.exit_code == 2


def test_a_port_base_moves_every_port_and_one_port_can_still_be_set() -> None:
    settings = load_settings({"MILLRACE_LOCAL_PORT_BASE": "30000", "MILLRACE_LOCAL_AIRFLOW_PORT": "31000"})
    assert settings.ports == {part: 30000 + offset for part, offset in BASE_OFFSETS.items()} | {"airflow": 31000}
    every = [*settings.s3_ports().values(), *(port for part, port in settings.ports.items() if part != "s3")]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("port", ["0", "-1", "65536", "nan", "60000"])
def test_a_port_that_cannot_be(port: str) -> None:
    with pytest.raises(LocalError, match="MILLRACE_LOCAL_S3_PORT"):
        load_settings({"MILLRACE_LOCAL_S3_PORT": port})


def test_environment_file(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# comment\n\nexport A='with space'\nB=plain # why\nC=\n", encoding="utf-8")
    assert read_environment_file(path) == {"A": "with space", "B": "plain", "C": ""}
    assert read_environment_file(tmp_path / "none") == {}


@pytest.mark.parametrize("line", ["A = b", "no equals", "A='open", "9A=x"])
def test_a_line_that_is_no_assignment(tmp_path: Path, line: str) -> None:
    (tmp_path / ".env").write_text(f"GOOD=1\n{line}\n", encoding="utf-8")
    with pytest.raises(LocalError, match="line 2: expected NAME=value"):
        read_environment_file(tmp_path / ".env")


def test_the_environment_wins_over_the_file() -> None:
    assert merged_environment({"A": "environment"}, {"A": "file", "B": "file"}) == {"A": "environment", "B": "file"}


def test_env_example_lists_every_setting_once() -> None:
    text = (REPOSITORY / ".env.example").read_text(encoding="utf-8")
    named = re.findall(r"^#(MILLRACE_\w+)=", text, re.MULTILINE)
    known = {*variable_names(), *VARIABLES}
    assert known - set(named) == set(), "not in .env.example"
    assert set(named) - known == set(), "no setting (any more)"
    assert len(named) == len(set(named))
    for before, line in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        assert not line.startswith("#MILLRACE_") or before.startswith("# "), f"no comment above {line}"
