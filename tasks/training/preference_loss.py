"""Learning from preferences: the trainer of method dpo.

Direct preference optimisation (Rafailov et al. 2023, equation 7): the better answer is made more likely than the worse
one, both measured against the model as it was before. That reference needs no second model: it is the same one
without its adapter, or with the adapter that training started from. Imported by `tasks.training.worker` alone, inside
a function: it needs torch. Reads and writes nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tasks.training.answers import AnswerTrainer, Batch, Collator, answer_losses
from tasks.training.encoding import Pair

REFERENCE = "reference"  # the name of a frozen copy of the adapter that training started from
TRAINED = "default"


class PairCollator:
    """Turn pairs into one padded batch: the better answers of all pairs, then the worse ones in the same order."""

    def __init__(self, fill: int) -> None:
        self.rows = Collator(fill)

    def __call__(self, pairs: Sequence[Pair]) -> Batch:
        return self.rows([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])


def log_likelihoods(model: Any, batch: Batch) -> torch.Tensor:
    """Return for each row of the batch the log-likelihood of its answer."""
    losses, rows, _logits = answer_losses(model, batch)
    return -losses.new_zeros(len(batch["input_ids"])).index_add(0, rows, losses)


def preference_losses(policy: torch.Tensor, reference: torch.Tensor, beta: float) -> torch.Tensor:
    """Return the loss of each pair from the log-likelihoods of better answers, then worse ones."""
    better, worse = (policy - reference).chunk(2)
    return -torch.nn.functional.logsigmoid(beta * (better - worse))


@contextmanager
def reference_of(model: Any) -> Iterator[None]:
    """Inside it the model with adapters is what it was before training."""
    if REFERENCE in model.peft_config:
        model.set_adapter(REFERENCE, inference_mode=True)
        try:
            yield
        finally:
            model.set_adapter(TRAINED)
    else:
        with model.disable_adapter():
            yield


class PreferenceTrainer(AnswerTrainer):
    """The trainer with the loss of preferences. Pairs weigh alike, whatever the length of their answers."""

    def __init__(self, *arguments: Any, beta: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.beta = beta
        # Batches are of one size: the mean over them is the mean over pairs, and the trainer counts no answer tokens.
        self.model_accepts_loss_kwargs = False

    def batch_losses(self, model: Any, inputs: Batch) -> torch.Tensor:
        """Return the loss of each pair. The reference comes first: its answers must not be in the policy's graph."""
        with torch.no_grad(), reference_of(self.accelerator.unwrap_model(model)):
            was_training = model.training
            model.eval()  # dropout has no place in what others are measured against
            reference = log_likelihoods(model, inputs)
            model.train(was_training)
        return preference_losses(log_likelihoods(model, inputs), reference, self.beta)
