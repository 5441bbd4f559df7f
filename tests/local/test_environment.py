"""The environment files: stable, private, overridable, and silent about secrets."""

import json
import subprocess
from pathlib import Path

import pytest

from local.environment import (
    inherited,
    is_secret,
    load_secrets,
    overrides,
    shell_lines,
    stage_environment,
    write_environment,
)
from local.errors import LocalError
from local.settings import LocalSettings, load_settings, read_environment_file
from tasks.release.signing_keys import key_id, signing_key, verify_keys
from tasks.settings import load_settings as load_stage_settings


@pytest.fixture
def settings(tmp_path: Path) -> LocalSettings:
    return load_settings({"MILLRACE_LOCAL_DIR": str(tmp_path / "data"), "MILLRACE_LOCAL_PORT_BASE": "30000"})


def test_written_twice_it_is_the_same_and_only_the_owner_reads_it(settings: LocalSettings) -> None:
    write_environment(settings, stage_environment(settings, {}, {})[0])
    names = ("env", "airflow.env", "secrets.json", "airflow/passwords.json")
    before = {name: (settings.folder / name).read_bytes() for name in names}
    write_environment(settings, stage_environment(settings, {}, {})[0])
    assert before == {name: (settings.folder / name).read_bytes() for name in names}
    assert {(settings.folder / name).stat().st_mode & 0o777 for name in names} == {0o600}


def test_a_shell_reads_back_what_was_written(settings: LocalSettings) -> None:
    write_environment(settings, {"A": "it's $HOME", "B": "two words"})
    command = f'set -a; . "{settings.folder}/env"; printf "%s|%s" "$A" "$B"'
    assert subprocess.check_output(["sh", "-c", command], text=True) == "it's $HOME|two words"


def test_the_stages_accept_it(settings: LocalSettings) -> None:
    values, _ = stage_environment(settings, {}, {})
    assert load_stage_settings(values).launcher == "process"


def test_a_new_stack_signs_its_releases_and_an_older_one_goes_on_without(settings: LocalSettings) -> None:
    own = load_stage_settings(stage_environment(settings, {}, {})[0])
    private = signing_key(own)
    assert private is not None and list(verify_keys(own)) == [key_id(private.public_key())]
    kept = load_secrets(settings.folder)
    older = {name: value for name, value in kept.items() if name not in {"signing_key", "verify_key"}}
    (settings.folder / "secrets.json").write_text(json.dumps(older))
    assert not {"MILLRACE_SIGNING_KEY", "MILLRACE_VERIFY_KEY"} & set(stage_environment(settings, {}, {})[0])


def test_two_stacks_share_no_secret(settings: LocalSettings, tmp_path: Path) -> None:
    one, other = load_secrets(settings.folder), load_secrets(tmp_path / "other")
    assert not {one[name] for name in one if name != "created"} & set(other.values())


def test_what_the_user_set_wins_and_its_origin_is_known(settings: LocalSettings) -> None:
    environment = {"MILLRACE_CORPUS": "/mine", "AWS_ACCESS_KEY_ID": "real account", "MILLRACE_LOCAL_DIR": "/x"}
    dotenv = {"MILLRACE_CORPUS": "/theirs", "AWS_REGION": "eu-central-1"}
    values, origins = stage_environment(settings, environment, dotenv)
    assert (values["MILLRACE_CORPUS"], origins["MILLRACE_CORPUS"]) == ("/mine", "your environment")
    assert (values["AWS_REGION"], origins["AWS_REGION"]) == ("eu-central-1", ".env")
    assert values["AWS_ACCESS_KEY_ID"] != "real account"
    assert "MILLRACE_LOCAL_DIR" not in overrides(environment, dotenv)


def test_parts_inherit_no_other_account_or_airflow() -> None:
    kept = inherited({"PATH": "/bin", "AWS_PROFILE": "x", "AIRFLOW_HOME": "x", "PGHOST": "x", "MILLRACE_CORPUS": "x"})
    assert kept["PATH"] == "/bin"
    assert not {"AWS_PROFILE", "AIRFLOW_HOME", "PGHOST", "MILLRACE_CORPUS"} & set(kept)


def test_every_generated_secret_is_known_as_one(settings: LocalSettings) -> None:
    kept = load_secrets(settings.folder)
    values, _ = stage_environment(settings, {}, {})
    for name, value in values.items():
        holds = any(secret in value for key, secret in kept.items() if key != "created")
        assert is_secret(name, value) == holds, name


def test_damaged_secrets_are_not_replaced_in_silence(settings: LocalSettings) -> None:
    settings.folder.mkdir()
    (settings.folder / "secrets.json").write_text("{half")
    with pytest.raises(LocalError, match="expected the secrets"):
        load_secrets(settings.folder)


def test_shell_lines_round_trip(tmp_path: Path) -> None:
    values = {"A": "a b", "B": "", "C": "x'y\"z"}
    (tmp_path / "env").write_text(shell_lines(values))
    assert read_environment_file(tmp_path / "env") == values
