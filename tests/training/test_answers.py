"""The loss on answers is the loss that Transformers computes from all logits."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.training.answers import Collator, answer_losses
from tasks.training.encoding import encode
from tests.tiny_model import make_model, pair


def test_it_is_the_loss_of_the_model_itself(tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [pair("a", "Why?", "So."), pair("b", "A much longer question?", "An answer that is longer, too.")]
    batch = Collator(tokenizer.pad_token_id)(encode(tokenizer, rows, "", 200))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    losses, owners, _logits = answer_losses(model, batch)
    whole = model(**batch).loss
    assert torch.allclose(losses.mean(), whole, atol=1e-5)
    for number in range(2):
        one = {name: tensor[number : number + 1] for name, tensor in batch.items()}
        assert torch.allclose(losses[owners == number].mean(), model(**one).loss, atol=1e-5)
