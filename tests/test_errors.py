"""The error tree: exit codes, pickling, hints."""

import pickle

import pytest

from tasks import errors


def test_exit_codes_are_those_of_the_contract() -> None:
    assert errors.MillraceError.exit_code == 1
    assert errors.BadInput.exit_code == 2
    assert errors.GateRefused.exit_code == 3
    assert errors.TryAgain.exit_code == 75


@pytest.mark.parametrize(
    "name", ["SettingsError", "OptionError", "RecipeError", "CorpusError", "DataError", "ModelError"]
)
def test_bad_input_is_not_retried(name: str) -> None:
    assert getattr(errors, name)("text").exit_code == 2


@pytest.mark.parametrize("name", ["ServiceUnavailable", "Preempted"])
def test_outages_are_retried(name: str) -> None:
    assert getattr(errors, name)("text").exit_code == 75


def test_an_error_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(errors.ModelError("expected a, found b")))  # noqa: S301 - our own bytes
    assert type(copy) is errors.ModelError
    assert str(copy) == "expected a, found b"


def test_the_nearest_name_is_hinted() -> None:
    assert errors.nearest("learning_rat", ["learning_rate", "epochs"]) == " Did you mean 'learning_rate'?"
    assert errors.nearest("zzz", ["learning_rate"]) == ""
