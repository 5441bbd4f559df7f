"""Which trained weights a manifest of `train` names, of either kind, and what a release of them is."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tasks import models
from tasks.contracts import Artifact, Manifest
from tasks.errors import ManifestError
from tasks.release.weights import release_columns, trained

PLACE = "s3://b/models/f"


def artifact(uri: str, body: bytes = b"x") -> Artifact:
    return Artifact(uri=uri, sha256=hashlib.sha256(body).hexdigest(), bytes=len(body))


def train(files: dict[str, bytes], **facts: Any) -> Manifest:
    now = datetime(2026, 1, 31, tzinfo=UTC)
    base = {"base_model": "hub:a/b@1234567", "base_revision": "1234567"}
    return Manifest(
        stage="train", run="s3://b/runs/fine_tune/r", status="complete", fingerprint="f", code_revision="c", host="h",
        started_at=now, ended_at=now, facts=base | facts,
        outputs={name: artifact(f"{PLACE}/{name}", body) for name, body in files.items()},
    )  # fmt: skip


ADAPTER = {"adapter/adapter_model.safetensors": b"a", "adapter/adapter_config.json": b"{}", "loss_curve": b""}
MODEL = {
    "model/model-2.safetensors": b"2",
    "model/model-10.safetensors": b"10",
    "model/config.json": b"{}",
    "recipe": b"",
}


@pytest.mark.parametrize("facts", [{"weights": "adapter"}, {}], ids=["named", "before kinds were named"])
def test_a_release_of_an_adapter_answers_upon_its_base(facts: dict[str, Any]) -> None:
    manifest = train(ADAPTER, adapter_uri=f"{PLACE}/adapter", **facts)
    weights = trained(manifest)
    assert (weights.kind, sorted(weights.files)) == ("adapter", ["adapter_config.json", "adapter_model.safetensors"])
    assert release_columns(weights, manifest) == {
        "adapter_uri": f"{PLACE}/adapter", "adapter_sha256": weights.sha256,
        "base_model": "hub:a/b@1234567", "base_revision": "1234567",
    }  # fmt: skip


def test_a_release_of_a_whole_model_is_its_own_base(tmp_path: Path) -> None:
    manifest = train(MODEL, weights="model", model_uri=f"{PLACE}/model/")
    columns = release_columns(trained(manifest), manifest)
    for name, body in MODEL.items():
        if name.startswith("model/"):
            (tmp_path / name.removeprefix("model/")).write_bytes(body)
    assert columns == {
        "adapter_uri": None, "adapter_sha256": None, "base_model": f"{PLACE}/model",
        "base_revision": models.revision(f"{PLACE}/model", tmp_path),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "facts", "told"),
    [
        (ADAPTER | MODEL, {"weights": "model", "model_uri": f"{PLACE}/model"}, "found those of adapter and model"),
        (ADAPTER, {"weights": "model", "adapter_uri": f"{PLACE}/adapter"}, "found those of adapter"),
        (MODEL, {"model_uri": f"{PLACE}/model"}, "one kind, adapter"),
        (MODEL, {"weights": "both"}, "one kind, both"),
        ({"recipe": b""}, {"weights": "model"}, "found those of none"),
        (MODEL, {"weights": "model", "model_uri": "s3://b/models/other"}, "below s3://b/models/other"),
        (MODEL, {"weights": "model"}, "below None"),
        ({"model/config.json": b""}, {"weights": "model", "model_uri": f"{PLACE}/model"}, "expected safetensors"),
    ],
)
def test_weights_that_are_not_of_one_kind_in_one_folder_are_none(
    files: dict[str, bytes], facts: dict[str, Any], told: str
) -> None:
    with pytest.raises(ManifestError, match=told):
        trained(train(files, **facts))
