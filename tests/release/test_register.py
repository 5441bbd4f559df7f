"""Registration against a real MLflow: what a version says of itself, and what a rival or an absent server does to it."""

import multiprocessing
from typing import Any

import pytest
from pydantic import SecretStr

from tasks import tracking
from tasks.errors import ReleaseError, ServiceUnavailable
from tasks.release.signing_keys import make_pair
from tasks.stage import code_revision

pytestmark = pytest.mark.integration


def versions(house: Any) -> list[Any]:
    return list(house.mlflow().search_model_versions(f"name = '{house.settings.model_name}'"))


class Rival:
    """A client before whose first call of `method` somebody else does the same."""

    def __init__(self, client: Any, method: str) -> None:
        self._client, self._method = client, method

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._client, name)
        if name != self._method:
            return real

        def call(*arguments: Any, **named: Any) -> Any:
            self._method = ""
            real(*arguments, **named)
            return real(*arguments, **named)

        return call


def test_two_processes_at_once_end_with_one_version(house: Any) -> None:
    runs = [house.tuned(b"one"), house.tuned(b"one")]
    fork = multiprocessing.get_context("fork")  # what is imported here need not be imported twice
    processes = [fork.Process(target=house.stage, args=("register", run)) for run in runs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    made = [house.storage.require_manifest(run, "register").facts for run in runs]
    assert [facts["model_version"] for facts in made] == ["1", "1"]
    assert sorted(facts["new_version"] for facts in made) == [False, True]
    assert [version.version for version in versions(house)] == ["1"]


@pytest.mark.parametrize("method", ["create_registered_model", "create_model_version"])
def test_a_rival_that_our_lock_does_not_hold_makes_no_second_version(
    house: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Somebody else makes the same between our look and our call: MLflow answers "already exists", or makes two."""
    real = tracking.client
    monkeypatch.setattr(tracking, "client", lambda settings: Rival(real(settings), method))
    facts = house.candidate(b"one").facts
    assert (facts["model_version"], facts["new_version"]) == ("1", method == "create_registered_model")
    assert [version.version for version in versions(house)] == ["1"]


def test_already_exists_without_a_version_is_tried_again(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS

    def refuses(*_arguments: Any, **_named: Any) -> Any:
        raise MlflowException("it already exists", RESOURCE_ALREADY_EXISTS)

    from mlflow import MlflowClient

    monkeypatch.setattr(MlflowClient, "create_model_version", refuses)
    with pytest.raises(ServiceUnavailable, match="which MLflow says exists, found none") as caught:
        house.candidate(b"one")
    assert caught.value.exit_code == 75 and versions(house) == []


def test_a_name_that_is_a_prompts_is_refused(house: Any) -> None:
    house.mlflow().register_prompt(house.settings.model_name, "Answer {{question}}.")
    with pytest.raises(ReleaseError, match="Next: set MILLRACE_MODEL_NAME"):
        house.candidate(b"one")


def test_an_mlflow_that_is_away_is_tried_again(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = house.tuned(b"one")
    away = house.with_settings(mlflow_tracking_uri="http://127.0.0.1:9")
    with pytest.raises(ServiceUnavailable, match="expected MLflow to answer") as caught:
        away.stage("register", run)
    assert caught.value.exit_code == 75
    assert house.storage.read_manifest(f"{run}/register/manifest.json") is None
    assert house.stage("register", run).facts["new_version"] is True  # the same run, once it is back


def test_a_version_says_what_it_was_made_of(house: Any) -> None:
    run = house.tuned(b"one")
    facts = house.stage("register", run).facts
    (version,) = versions(house)
    assert (
        version.tags
        | {
            "dataset_sha256": house.storage.require_manifest(run, "validate_dataset").facts["dataset_sha256"],
            "trained_from": "package:tests/base",
            "base_model": "package:tests/base",
            "base_revision": "b" * 40,
            "recipe": "test",
            "adapter_sha256": facts["adapter_sha256"],
            "evidence": f"{run}/gate/manifest.json",
            "evidence_sha256": facts["evidence_sha256"],
            "manifest": f"{run}/register/manifest.json",
            "code_revision": code_revision(house.settings),
            "training_code_revision": house.storage.require_manifest(run, "train").code_revision,
        }
        == version.tags
    )


def test_what_nobody_signed_is_registered_again_once_there_is_a_key(house: Any) -> None:
    run = house.tuned(b"one")
    bare = house.stage("register", run)
    assert "endorsement" not in bare.facts and house.stage("register", run) == bare
    private, _public = make_pair()
    signed = house.with_settings(signing_key=SecretStr(private)).stage("register", run)
    assert signed.facts["endorsement"] and signed.facts["model_version"] == bare.facts["model_version"]
