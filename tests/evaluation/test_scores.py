"""Scores of a tiny model and of adapters switched upon it."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.errors import ModelError, RecipeError
from tasks.evaluation.measures import BASE
from tasks.evaluation.scores import Scored, preferences, require_room, score
from tasks.training.adapters import WEIGHTS
from tasks.training.encoding import encode
from tasks.training.recipes import load_recipe
from tests.tiny_model import make_adapter, make_model, pair

RECIPE = load_recipe("smoke_cpu")
RECIPE = RECIPE.model_copy(
    update={
        "data": RECIPE.data.model_copy(update={"system_prompt": "", "max_tokens": 200}),
        "evaluation": RECIPE.evaluation.model_copy(update={"rows_per_batch": 3}),
    }
)
ROWS = [pair(str(n), f"What is {n}?", "It is " + "very " * n + "good.") for n in range(7)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"))


def test_each_row_has_its_own_loss_in_its_own_place(base: Path) -> None:
    ((_name, found),) = score(base, {BASE: None}, ROWS, RECIPE)
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    for row, one in zip(encode(tokenizer, ROWS, "", 200), found.scores, strict=True):
        with torch.no_grad():
            mean = model(torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss
        assert one.id == row.id
        assert one.tokens == row.answer_tokens
        assert one.loss == pytest.approx(float(mean) * one.tokens, rel=1e-4)


def test_adapters_are_switched_not_mixed(base: Path, tmp_path: Path) -> None:
    first, second = (make_adapter(base, tmp_path / str(seed), seed) for seed in (2, 3))
    both = dict(score(base, {"a": first, "b": second, BASE: None}, ROWS, RECIPE))
    alone = dict(score(base, {BASE: None, "b": second}, ROWS, RECIPE))
    assert [s.loss for s in both["b"].scores] == pytest.approx([s.loss for s in alone["b"].scores], rel=1e-5)
    assert [s.loss for s in both["base"].scores] == pytest.approx([s.loss for s in alone["base"].scores], rel=1e-5)
    assert float((both["a"].probe - both["base"].probe).abs().max()) > 1e-3
    assert float((both["a"].probe - both["b"].probe).abs().max()) > 1e-3


def test_a_model_in_several_places_has_the_same_scores(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on several GPUs, which this machine lacks: Accelerate's hooks move what each block reads, here from the disk."""
    monkeypatch.chdir(tmp_path)  # what lies "on disk" is written below the folder one is in
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    ((_name, here),) = score(base, {BASE: None}, ROWS, RECIPE)
    ((_name, spread),) = score(base, {BASE: None}, ROWS, RECIPE, places=places)
    assert [one.loss for one in spread.scores] == pytest.approx([one.loss for one in here.scores], rel=1e-5)


def test_a_model_that_the_gpus_do_not_hold_is_bad_input() -> None:
    require_room({"model.layers.0": 0, "model.layers.1": 1, "lm_head": 1}, RECIPE)
    with pytest.raises(RecipeError, match="2 of 3 parts .* Next: raise evaluation.gpus"):
        require_room({"model.layers.0": 0, "model.layers.1": "cpu", "lm_head": "disk"}, RECIPE)


def test_preferences_are_scored_as_they_are_trained(base: Path, tmp_path: Path) -> None:
    from tasks.training.preference_loss import preference_losses

    recipe = RECIPE.model_copy(update={"method": "dpo"})
    rows = [row | {"rejected": "It is " + "rather " * n + "bad."} for n, row in enumerate(ROWS)]
    scored = dict(score(base, {BASE: None, "a": make_adapter(base, tmp_path)}, rows, recipe))
    found = preferences(scored, 0.3)
    policy, reference = (-torch.tensor([one.loss for one in scored[name].scores]) for name in ("a", BASE))
    expected = preference_losses(policy, reference, 0.3)
    assert [one.loss for one in found["a"]] == pytest.approx(expected.tolist(), rel=1e-4)
    assert [one.loss for one in found[BASE]] == pytest.approx([math.log(2)] * len(ROWS))
    assert [(one.id, one.tokens) for one in found["a"]] == [(row["id"], 1) for row in rows]
    # The better answers stand first: exchanged, the margin has the other sign.
    swapped = {name: Scored([*r.scores[len(ROWS) :], *r.scores[: len(ROWS)]], r.probe) for name, r in scored.items()}
    margins = [-math.log(math.expm1(one.loss)) for one in found["a"]]
    assert [-math.log(math.expm1(one.loss)) for one in preferences(swapped, 0.3)["a"]] == pytest.approx(
        [-margin for margin in margins], abs=1e-6
    )


def test_an_untrained_adapter_changes_no_logit(base: Path, tmp_path: Path) -> None:
    found = dict(score(base, {BASE: None, "a": make_adapter(base, tmp_path, trained=False)}, ROWS, RECIPE))
    assert float((found["a"].probe - found["base"].probe).abs().max()) == 0


def test_an_adapter_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    weights = make_adapter(base, tmp_path) / WEIGHTS
    save_file({name.replace("layers.1", "layers.5"): value for name, value in load_file(weights).items()}, weights)
    with pytest.raises(ModelError, match="fit"):
        dict(score(base, {"a": tmp_path}, ROWS, RECIPE))


def test_a_whole_model_is_scored_on_its_own_with_the_tokens_of_its_base(base: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path, seed=7)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).unlink()
    of_base = dict(score(base, {BASE: None}, ROWS, RECIPE))[BASE]
    found = dict(score(other, {"candidate": None}, ROWS, RECIPE, base))["candidate"]
    assert [(s.id, s.tokens) for s in found.scores] == [(s.id, s.tokens) for s in of_base.scores]
    assert float((found.probe - of_base.probe).abs().max()) > 1e-3


def test_a_text_counts_every_token(base: Path) -> None:
    text = {"id": "t", "source": "m", "origin": "corpus", "text": "A list is a sequence."}
    ((_name, found),) = score(base, {BASE: None}, [text], RECIPE)
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    ids = torch.tensor([[*tokenizer(text["text"])["input_ids"], tokenizer.eos_token_id]])
    with torch.no_grad():
        mean = model(ids, labels=ids).loss
    assert found.scores[0].tokens == ids.shape[1] - 1
    assert found.scores[0].loss == pytest.approx(float(mean) * found.scores[0].tokens, rel=1e-4)
