"""Prompts in MLflow's own registry: one version a text, to the byte."""

import json
from typing import Any

import pytest

from tasks.errors import ReleaseError, ServiceUnavailable
from tasks.release.prompts import prompt_name, register_prompt
from tasks.settings import repository_path

pytestmark = pytest.mark.integration

ODD = "---\nname: odd\nversion: 3\nsystem: 'a | b'\n---\n{context}\r\n {{ question }} {question} ünï \u2028 {% if %}\n\n \t\n"


def test_a_text_has_one_version_and_comes_back_to_the_byte(house: Any) -> None:
    file = repository_path(house.settings.prompt).read_text(encoding="utf-8")
    one, again = register_prompt(house.settings, file), register_prompt(house.settings, file)
    odd, plain = register_prompt(house.settings, ODD), register_prompt(house.settings, "Answer in one word.")
    assert (one.version, one.new, again.version, again.new) == ("1", True, "1", False)
    assert (odd.version, plain.version) == ("2", "3")
    assert register_prompt(house.settings, file).uri == f"prompts:/{prompt_name(house.settings)}/1"
    client = house.mlflow()
    for text, prompt in ((file, one), (ODD, odd), ("Answer in one word.", plain)):
        kept = client.get_prompt_version(prompt.name, prompt.version)
        assert kept.template == text and kept.tags["sha256"] == prompt.sha256
    front = json.loads(client.get_prompt_version(odd.name, odd.version).tags["front_matter"])
    assert (front["name"], front["version"], front["system"], front["documents"]) == ("odd", 3, "a | b", 3)
    assert client.get_prompt_version(plain.name, plain.version).tags["front_matter"] == "null"

    client.set_prompt_version_tag(plain.name, plain.version, "mlflow.prompt.text", "Answer in two words.")
    with pytest.raises(ReleaseError, match="Next: find out who changed it"):
        register_prompt(house.settings, "Answer in one word.")
    with pytest.raises(ReleaseError, match="expected a prompt that MLflow can keep"):
        register_prompt(house.settings, "x" * 100_001)


def test_a_models_name_and_an_absent_server_are_told(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    house.mlflow().create_registered_model(prompt_name(house.settings))
    with pytest.raises(ReleaseError, match="found a model of that name"):
        register_prompt(house.settings, "Answer.")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ServiceUnavailable, match="expected MLflow to answer"):
        register_prompt(house.with_settings(mlflow_tracking_uri="http://127.0.0.1:9").settings, "Answer.")


def test_a_proposal_names_the_version_of_its_prompt(house: Any) -> None:
    house.index()
    proposal = house.stage("propose", house.run("promote_release"), candidate=house.candidate(b"one").uri)
    kept = house.mlflow().load_prompt(proposal.facts["prompt_version"])
    assert kept.template == house.storage.get(proposal.outputs["prompt"]).decode()
