"""Settings are strict: unknown names, missing values and malformed ones are told together."""

import pytest

from tasks.errors import SettingsError
from tasks.settings import load_settings, variable_names

LEAST = {
    "MILLRACE_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1/millrace",
    "MILLRACE_MLFLOW_TRACKING_URI": "http://m",
}


def test_the_least_environment_is_enough() -> None:
    found = load_settings(LEAST)
    assert found.launcher == "process"
    assert found.corpus == "pydoc:topics"


def test_an_unknown_name_is_an_error_with_the_nearest_right_one() -> None:
    with pytest.raises(
        SettingsError, match=r"MILLRACE_BASE_MODL is not a setting\. Did you mean 'MILLRACE_BASE_MODEL'"
    ):
        load_settings(LEAST | {"MILLRACE_BASE_MODL": "x"})


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"MILLRACE_LAUNCHER": "magic", "MILLRACE_CHUNK_TOKENS": "many", "MILLRACE_X": "1"})
    text = str(caught.value)
    for name in ("DATABASE_URL", "MLFLOW_TRACKING_URI", "LAUNCHER", "CHUNK_TOKENS", "MILLRACE_X"):
        assert name in text


def test_a_secret_is_never_in_a_message() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(LEAST | {"MILLRACE_LAUNCHER": "magic"})
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(load_settings(LEAST))


def test_names_of_the_embedded_stack_are_not_ours() -> None:
    assert load_settings(LEAST | {"MILLRACE_LOCAL_DIR": "x", "HOME": "y"}).s3_bucket == "millrace"


def test_the_process_environment_is_not_mixed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_S3_BUCKET", "other")
    assert load_settings(LEAST).s3_bucket == "millrace"


def test_every_setting_says_what_it_is() -> None:
    from tasks.settings import Settings

    assert all(field.description for field in Settings.model_fields.values())
    assert "MILLRACE_DATABASE_URL" in variable_names()
