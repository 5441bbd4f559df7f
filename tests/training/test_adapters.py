"""Adapters: the same training gives the same bytes, and nothing untrained gets through."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.errors import ModelError
from tasks.training.adapters import CONFIG, WEIGHTS, check, finish
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
