"""The loss of preferences is equation 7 of Rafailov et al., and its reference is the model before training."""

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.errors import DataError
from tasks.training.encoding import IGNORED, Encoded, encode_pairs
from tasks.training.preference_loss import (
    REFERENCE,
    PairCollator,
    log_likelihoods,
    preference_losses,
    reference_of,
)
from tests.tiny_model import make_adapter, make_model, pair


def made_row(better: str = "So it is.", worse: str = "No!") -> dict[str, object]:
    return pair("a", "Why?", better) | {"rejected": worse}


def test_the_equation() -> None:
    policy, reference = torch.tensor([-3.0, -8.0, -5.0, -6.0]), torch.tensor([-4.0, -7.0, -4.5, -6.0])
    # Pairs are (0, 2) and (1, 3): the margins are 1 + 0.5 and -1 - 0.
    wanted = [math.log(1 + math.exp(-0.1 * 1.5)), math.log(1 + math.exp(0.1 * 1.0))]
    assert preference_losses(policy, reference, 0.1).tolist() == pytest.approx(wanted)
    assert preference_losses(policy, policy, 0.5).tolist() == pytest.approx([math.log(2)] * 2)


def by_hand(model: torch.nn.Module, example: Encoded) -> float:
    """The log-likelihood of an answer from all logits of one example alone, token by token."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([example.input_ids])).logits[0].double()
    found = [
        logits[place - 1].log_softmax(-1)[label].item()
        for place, label in enumerate(example.labels)
        if label != IGNORED
    ]
    return sum(found)


def test_likelihoods_of_a_padded_batch_are_those_of_each_answer_alone(tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    rows = [made_row(), made_row("A much longer answer, and right.", "Short.")]
    pairs = encode_pairs(AutoTokenizer.from_pretrained(folder), rows, "", 200)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = log_likelihoods(model, PairCollator(0)(pairs)).tolist()
    wanted = [by_hand(model, one.chosen) for one in pairs] + [by_hand(model, one.rejected) for one in pairs]
    assert found == pytest.approx(wanted, abs=1e-3)


def test_the_reference_is_the_model_before_training(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    tokens = {"input_ids": torch.arange(5, 25)[None]}
    plain = AutoModelForCausalLM.from_pretrained(base).eval()(**tokens).logits
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter, is_trainable=True).eval()
    trained = model(**tokens).logits
    with torch.no_grad(), reference_of(model):
        assert torch.allclose(model(**tokens).logits, plain, atol=1e-5)
    model.load_adapter(adapter, REFERENCE, is_trainable=False)
    model.set_adapter("default")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.default" in name:
                parameter.zero_()
        assert torch.allclose(model(**tokens).logits, plain, atol=1e-5)
        with reference_of(model):
            assert torch.allclose(model(**tokens).logits, trained, atol=1e-5)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning
    assert all(".default." in name for name in learning), "the reference must not learn"


def test_a_row_without_a_worse_answer(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_model(tmp_path))
    with pytest.raises(DataError, match="expected messages and a rejected answer"):
        encode_pairs(tokenizer, [pair("a", "Why?", "So.")], "", 100)
    with pytest.raises(DataError, match="expected answers that differ"):
        encode_pairs(tokenizer, [made_row("Yes", "Yes")], "", 100)
