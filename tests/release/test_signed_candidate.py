"""A registered version is what was signed when it was registered; with a key set, a shadow takes no other."""

import json
from typing import Any

import pytest

from tasks.errors import SignatureError
from tasks.release.signed_candidate import TAG, signed
from tasks.release.signing_keys import make_pair
from tasks.serving import candidate
from tests.release.test_signing_keys import with_keys

TAGS = {
    "weights": "adapter", "adapter_sha256": "a" * 64, "adapter_uri": "s3://b/models/f/adapter", "base_model": "hub:o/b",
    "base_revision": "b" * 40, "dataset_sha256": "d" * 64, "training_fingerprint": "f", "evidence": "s3://b/runs/1",
}  # fmt: skip
OWN = with_keys(*make_pair())


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The tags of the version in MLflow, as `register` writes them."""
    tags = signed(OWN, "m", TAGS)

    class Http:
        def __init__(self, uri: str) -> None:
            pass

        def model_version(self, name: str, version: str) -> dict[str, str]:
            return tags

        def close(self) -> None:
            pass

    monkeypatch.setattr(candidate, "MlflowHttp", Http)
    return tags


def test_what_was_registered_is_taken(registry: dict[str, str]) -> None:
    registry["evidence"] = "s3://b/runs/2"  # registered again: a newer proof about the same bytes
    assert candidate.registered(OWN, "m", "3").adapter_sha256 == "a" * 64
    assert candidate.registered(with_keys(None, None), "m", "3").model_version == "3"


@pytest.mark.parametrize(
    "tag", ["adapter_sha256", "adapter_uri", "base_model", "base_revision", "dataset_sha256", "weights"]
)
def test_another_value_of_a_signed_tag_is_refused(registry: dict[str, str], tag: str) -> None:
    registry[tag] += "x"
    with pytest.raises(SignatureError, match="the signature of something else"):
        candidate.registered(OWN, "m", "3")


def test_no_signature_another_model_s_or_another_key_s_is_refused(registry: dict[str, str]) -> None:
    with pytest.raises(SignatureError, match="the signature of something else"):
        candidate.registered(OWN, "another", "3")
    with pytest.raises(SignatureError, match="no signature of them"):
        candidate.registered(with_keys(*make_pair()), "m", "3")
    for worthless in ("", "{}", json.dumps({"payload": ""})):
        registry[TAG] = worthless
        with pytest.raises(SignatureError, match="no signature of them"):
            candidate.registered(OWN, "m", "3")


def test_without_a_key_the_tags_stay_as_they_are() -> None:
    unsigned: Any = signed(with_keys(None, None), "m", TAGS)
    assert unsigned == TAGS
