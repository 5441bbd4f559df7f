"""Adapters: the same training gives the same bytes, and nothing untrained gets through."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.errors import ModelError
from tasks.training.adapters import CONFIG, WEIGHTS, check, check_model, finish, finish_model
from tests.tiny_model import make_adapter, make_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"))


def test_no_path_of_this_machine_is_left(base: Path, tmp_path: Path) -> None:
    done = finish(make_adapter(base, tmp_path / "saved"), tmp_path / "done", "hub:org/name@abcdef1")
    config = json.loads((done / CONFIG).read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "hub:org/name@abcdef1"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert str(base) not in (done / CONFIG).read_text(encoding="utf-8")
    assert sorted(path.name for path in done.iterdir()) == [CONFIG, WEIGHTS]


def test_an_adapter_as_it_began_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="all zero"):
        check(make_adapter(base, tmp_path, trained=False) / WEIGHTS)


def test_weights_that_are_not_finite_are_refused(base: Path, tmp_path: Path) -> None:
    weights = make_adapter(base, tmp_path) / WEIGHTS
    tensors = load_file(weights)
    tensors[sorted(tensors)[0]].view(-1)[0] = torch.nan
    save_file(tensors, weights)
    with pytest.raises(ModelError, match="finite"):
        check(weights)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="found none"):
        check(tmp_path / WEIGHTS)


def test_an_adapter_as_it_was_taken_over_is_refused(base: Path, tmp_path: Path) -> None:
    start, other = make_adapter(base, tmp_path / "start"), make_adapter(base, tmp_path / "other", seed=3)
    check(other / WEIGHTS, start / WEIGHTS)
    with pytest.raises(ModelError, match="those of the adapter it started from"):
        check(start / WEIGHTS, start / WEIGHTS)


def change(folder: Path, name: str, value: float) -> Path:
    """Set one number of one matrix; `name` may be a part of its name."""
    tensors = load_file(folder / "model.safetensors")
    (found,) = [one for one in tensors if name in one]
    tensors[found].view(-1)[0] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_trained_model_differs_from_its_base_and_is_finite(base: Path, tmp_path: Path) -> None:
    trained = change(make_model(tmp_path / "trained"), "layers.0.mlp.up_proj", 1.5)
    assert finish_model(trained, base) == trained
    with pytest.raises(ModelError, match="those of its base model"):
        check_model(make_model(tmp_path / "same"), base)
    with pytest.raises(ModelError, match="finite weights"):
        check_model(change(make_model(tmp_path / "broken"), "model.norm", torch.nan), base)


def test_a_model_with_a_matrix_less_is_refused(base: Path, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "part")
    tensors = load_file(folder / "model.safetensors")
    del tensors[sorted(tensors)[0]]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="on one side only"):
        check_model(folder, base)


def test_a_tied_model_may_lack_its_output_matrix(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", tied=True)
    check_model(change(make_model(tmp_path / "trained", tied=True), "model.norm", 2.0), base)
