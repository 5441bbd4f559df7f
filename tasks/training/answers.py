"""Loss on answers, and only on answers: the trainer and collator of a worker.

Imported by `tasks.training.worker` alone, inside a function: it needs torch and Transformers when it is
imported. Reads and writes nothing.
"""

from typing import Any

import torch
from transformers import Trainer

from tasks.training.encoding import IGNORED, Encoded, pad


class Collator:
    """Turn encoded examples into a padded batch of tensors."""

    def __init__(self, fill: int) -> None:
        self.fill = fill

    def __call__(self, examples: list[Encoded]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor(rows) for name, rows in pad(examples, self.fill).items()}


def answer_losses(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the negative log-likelihood of every answer token, the row each belongs to, and the logits used.

    The vocabulary is wide: logits are made only where some row of the batch has an answer token next.
    """
    labels = batch["labels"][:, 1:]
    columns = (labels != IGNORED).any(dim=0).nonzero().flatten()
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        logits_to_keep=columns,
        use_cache=False,
    )
    wanted = labels[:, columns]
    mask = wanted != IGNORED
    logits = output.logits[mask].float()
    losses = torch.nn.functional.cross_entropy(logits, wanted[mask], reduction="none")
    return losses, mask.nonzero()[:, 0], logits


class AnswerTrainer(Trainer):  # type: ignore[misc]
    """Transformers' trainer with the loss of `answer_losses`, weighted by token over all ranks; saves adapters only."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        # The loss below takes the number of answer tokens of the whole step, over parts and ranks.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the loss of one part of a step. DeepSpeed averages over ranks, hence the factor."""
        losses, _rows, _logits = answer_losses(model, inputs)
        if num_items_in_batch is None:
            return losses.mean()
        return losses.sum() / num_items_in_batch * self.accelerator.num_processes

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter as safetensors; the base model is known by its revision."""
        if self.args.should_save:
            self.accelerator.unwrap_model(self.model).save_pretrained(output_dir or self.args.output_dir)
