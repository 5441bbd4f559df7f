"""Base model and adapters: the right bytes, attached beside each other, one generation at a time."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tasks.errors import ReleaseError
from tasks.serving.adapters import WEIGHTS, folder_digest
from tasks.serving.language_model import LanguageModel, Sampling
from tasks.serving.transformers_model import TransformersModel

GREEDY = Sampling(max_tokens=12)
IDS = [5, 80, 33, 121, 64]


def said(model: LanguageModel, adapter: str | None) -> str:
    """Return what the model says with an adapter."""
    return model.generate(adapter, IDS, GREEDY).result().text


def test_adapters_change_the_answer_and_leave_the_base_as_it_was(model: LanguageModel, tiny_loras: list[Path]) -> None:
    base = said(model, None)
    model.attach("release_1", tiny_loras[0])
    model.attach("release_2", tiny_loras[1])
    one, two = said(model, "release_1"), said(model, "release_2")
    assert len({base, one, two}) == 3
    assert (said(model, "release_1"), said(model, None), said(model, "release_2")) == (one, base, two)
    model.detach("release_1")
    assert said(model, "release_2") == two
    model.detach("release_2")
    assert said(model, None) == base
    model.attach("release_3", tiny_loras[0])
    assert said(model, "release_3") == one


def test_an_adapter_of_another_model_is_refused_and_harms_nothing(
    model: LanguageModel, tiny_loras: list[Path], tmp_path: Path
) -> None:
    base = said(model, None)
    broken = shutil.copytree(tiny_loras[0], tmp_path / "broken")
    matrices = load_file(broken / WEIGHTS)
    save_file({key: value[:, :-1].contiguous() for key, value in matrices.items()}, broken / WEIGHTS)
    with pytest.raises(ReleaseError, match="in_features"):
        model.attach("release_1", broken)
    save_file({key.replace("layers.1", "layers.9"): value for key, value in matrices.items()}, broken / WEIGHTS)
    with pytest.raises(ReleaseError, match=r"layers\.9.*no such layer"):
        model.attach("release_1", broken)
    save_file({"something.weight": matrices[next(iter(matrices))]}, broken / WEIGHTS)
    with pytest.raises(ReleaseError, match="no.*LoRA|found none"):
        model.attach("release_1", broken)
    assert said(model, None) == base
    model.attach("release_1", tiny_loras[0])
    assert said(model, "release_1") != base


def test_the_digest_is_the_one_of_the_artifacts(tiny_loras: list[Path]) -> None:
    from tasks.contracts import Artifact, digest_of
    from tasks.storage import file_digest

    artifacts = {
        str(path.relative_to(tiny_loras[0])): Artifact(uri="s3://a/b", sha256=file_digest(path), bytes=1)
        for path in tiny_loras[0].iterdir()
    }
    assert folder_digest(tiny_loras[0]) == digest_of(artifacts) != folder_digest(tiny_loras[1])


def test_sampling_is_repeatable_by_its_seed(model: LanguageModel) -> None:
    hot = [model.generate(None, IDS, Sampling(24, 1.5, 0.9, seed)).result().text for seed in (3, 3, 4)]
    assert hot[0] == hot[1] != hot[2]


def test_a_penalty_keeps_the_answer_from_going_round_in_circles(model: LanguageModel) -> None:
    def words(penalty: float) -> list[str]:
        sampling = Sampling(max_tokens=60, repetition_penalty=penalty)
        return list(model.generate(None, IDS, sampling).result().text)

    assert len(set(words(2.0))) > len(set(words(1.0)))


def test_max_tokens_is_kept_and_told(model: LanguageModel) -> None:
    generated = model.generate(None, IDS, Sampling(max_tokens=3)).result()
    assert generated.completion_tokens <= 3 and generated.prompt_tokens == len(IDS)
    assert generated.finish_reason == ("length" if generated.completion_tokens == 3 else "stop")


def test_a_tokenizer_without_a_template_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    from tasks.errors import ModelError

    bare = shutil.copytree(tiny_llama, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    configuration = json.loads((bare / "tokenizer_config.json").read_text())
    configuration.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(configuration))
    with pytest.raises(ModelError, match="chat template"):
        TransformersModel("test:bare", "0", bare, threads=1)
