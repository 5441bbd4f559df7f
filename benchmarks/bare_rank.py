"""One rank of Transformers' own trainer, for comparison: its loss and its loop, nothing of ours beside it.

Started like `tasks.training.worker` and fed by the same job folder. Where the job says `defaults` the trainer keeps
its defaults (batches of 8 rows in random order, padded to the longest, no DeepSpeed) and the model gets the recipe's
LoRA; otherwise model, rows, batches and arguments are those that the worker builds. Writes a line a step.

Where `turns.json` lies in the folder, it names job folders and who trains each: the worker and the bare trainer then
take turns in this one process, minutes apart at most, so that what else the machine does hits both.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tasks.training import worker
from tasks.training.encoding import Encoded, encode, pad, pad_id
from tasks.training.launcher import leave_out
from tasks.training.recipes import Recipe


def main(arguments: list[str]) -> int:
    """`python -m benchmarks.bare_rank --local_rank=N FOLDER`."""
    leave_out()
    folder = Path(arguments[-1])
    if not (folder / "turns.json").is_file():
        _train(folder)
        return 0
    for name, ours in json.loads((folder / "turns.json").read_text(encoding="utf-8")):
        _forget_deepspeed()
        if ours:
            worker.main([str(folder / name)])
        else:
            _train(folder / name)
    return 0


def _train(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    recipe = Recipe.model_validate(job["recipe"])
    trainer = _defaults(folder, job, recipe) if job["defaults"] else _as_the_worker(folder, job, recipe)
    trainer.add_callback(_lines(folder / f"events.rank{os.environ['RANK']}.jsonl", trainer.data_collator))
    trainer.train()


def _forget_deepspeed() -> None:
    """Accelerate keeps the DeepSpeed of the first trainer for the whole process; the next one has its own."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


def _as_the_worker(folder: Path, job: dict[str, Any], recipe: Recipe) -> Any:
    from transformers import Trainer

    if recipe.distribution.accelerator == "cpu":
        worker.skip_compiled_communication()
    ours = worker.build(folder, job, recipe, int(os.environ["WORLD_SIZE"]))[0]
    _forget_deepspeed()
    return Trainer(
        model=ours.model,
        args=ours.args,
        train_dataset=ours.train_dataset,
        data_collator=_Counting(ours.data_collator),
    )


def _defaults(folder: Path, job: dict[str, Any], recipe: Recipe) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    lora, bf16, cpu = recipe.lora, recipe.optimisation.precision == "bf16", recipe.distribution.accelerator == "cpu"
    assert lora is not None
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    with (folder / "train.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16 if bf16 else torch.float32)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )
    return Trainer(
        model=get_peft_model(model, config),
        args=TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=recipe.optimisation.epochs,
            bf16=bf16,
            use_cpu=cpu,
            ddp_backend="gloo" if cpu else None,
            remove_unused_columns=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=encode(tokenizer, rows, recipe.data.system_prompt, recipe.data.max_tokens),
        data_collator=_Counting(_Padded(pad_id(tokenizer))),
    )


class _Padded:
    """Pads a batch to its longest row."""

    def __init__(self, fill: int) -> None:
        self.fill = fill

    def __call__(self, examples: list[Encoded]) -> dict[str, Any]:
        import torch

        return {name: torch.tensor(rows) for name, rows in pad(examples, self.fill).items()}


class _Counting:
    """A collator that remembers the tokens of each batch it made."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate
        self.tokens: list[int] = []

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        self.tokens.append(sum(len(example.input_ids) for example in examples))
        batch: dict[str, Any] = self.collate(examples)
        return batch


def _lines(path: Path, collator: _Counting) -> Any:
    """Return the callback that writes a line a step."""
    import torch
    from transformers import TrainerCallback

    class Lines(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # The loader is ahead of the steps: the batches of this one are found by its number.
            batches, end = args.gradient_accumulation_steps, state.global_step * args.gradient_accumulation_steps
            tokens = sum(collator.tokens[end - batches : end]) * args.world_size
            line: dict[str, Any] = {"step": state.global_step, "at": time.time(), "tokens": tokens}
            if torch.cuda.is_available():
                line["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    return Lines()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
