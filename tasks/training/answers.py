"""Loss on answers, and only on answers: the trainer and collator of a worker.

Imported by `tasks.training.worker` alone, inside a function: it needs torch and Transformers when it is
imported. Reads nothing. Writes weights where it is told to: an adapter, or the whole model when all of it is trained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from tasks.training.encoding import IGNORED, Encoded, pad

Batch = dict[str, torch.Tensor]


class Collator:
    """Turn encoded examples into a padded batch of tensors."""

    def __init__(self, fill: int) -> None:
        self.fill = fill

    def __call__(self, examples: Sequence[Encoded]) -> Batch:
        return {name: torch.tensor(rows) for name, rows in pad(examples, self.fill).items()}


def answer_losses(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the negative log-likelihood of every answer token, the row each belongs to, and the logits used.

    The vocabulary is wide: logits are made only where some row of the batch has an answer token next. A batch of
    packs has positions in place of an attention mask (see `tasks.training.packing`).
    """
    labels = batch["labels"][:, 1:]
    columns = (labels != IGNORED).any(dim=0).nonzero().flatten()
    # A model that lies on several devices is read where its last block is: numbers can be used there, a tensor of here not.
    keep = columns.tolist() if getattr(model, "hf_device_map", None) else columns
    output = model(
        **{name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch},
        logits_to_keep=keep,
        use_cache=False,
    )
    wanted = labels[:, columns]
    mask = wanted != IGNORED
    logits = output.logits[mask].float()
    losses = torch.nn.functional.cross_entropy(logits, wanted[mask], reduction="none")
    return losses, mask.nonzero()[:, 0], logits


class AnswerTrainer(Trainer):  # type: ignore[misc]
    """Transformers' trainer with the loss of `answer_losses`, weighted by token over all ranks.

    `validation` are the items of the validation loss, in the form of the training items.
    """

    def __init__(self, *arguments: Any, validation: Sequence[Any] = (), **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.validation = validation
        # The loss below takes the number of answer tokens of the whole step, over parts and ranks.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the loss of one part of a step. DeepSpeed averages over ranks, hence the factor."""
        losses = self.batch_losses(model, inputs)
        if num_items_in_batch is None:
            return losses.mean()
        return losses.sum() / num_items_in_batch * self.accelerator.num_processes

    def batch_losses(self, model: Any, inputs: Batch) -> torch.Tensor:
        """Return every loss of a batch, one for each of what the training's loss is the mean of."""
        losses, _rows, _logits = answer_losses(model, inputs)
        return losses

    def mean_loss(self, items: Sequence[Any]) -> float:
        """Return the loss on items, over all ranks; the weights stay as they are. All ranks must call it alike."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        size = self.args.per_device_train_batch_size
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        model = self.model_wrapped  # DeepSpeed's engine: under ZeRO-3 only it can gather the weights
        was_training = model.training
        model.eval()
        total = torch.zeros(2, dtype=torch.float64)
        # Gathering needs every rank, so each does as many batches; where they do not divide, the last count nothing.
        for first in range(0, len(batches), world):
            batch = self.data_collator(batches[min(first + rank, len(batches) - 1)])
            with torch.no_grad():
                losses = self.batch_losses(model, {name: item.to(self.args.device) for name, item in batch.items()})
            if first + rank < len(batches):
                total += torch.tensor([losses.sum().item(), losses.numel()], dtype=torch.float64)
        model.train(was_training)
        total = total.to(self.args.device)
        torch.distributed.all_reduce(total)
        return float(total[0] / total[1])

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return the validation loss, and tell the callbacks; Transformers would weigh it by batch, not by token."""
        metrics = {"eval_loss": self.mean_loss(self.validation)}
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_weights(self, folder: Path) -> None:
        """Save the adapter, or the model where it has none, as safetensors on rank 0. All ranks must call it."""
        model = self.accelerator.unwrap_model(self.model)
        adapter = hasattr(model, "peft_config")
        state = None
        if self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            state = self.model_wrapped._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=adapter)
        if self.args.should_save:
            # A frozen adapter beside the trained one is what preferences are measured against, and no result.
            chosen = {"selected_adapters": ["default"]} if adapter else {}
            model.save_pretrained(folder, state_dict=state, **chosen)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save nothing of its own in a checkpoint: DeepSpeed's files there hold all weights that are trained."""
        if not _internal_call:
            self.save_weights(Path(output_dir or self.args.output_dir))
