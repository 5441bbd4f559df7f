"""One rank of a training. Started by DeepSpeed's launcher, which `tasks.training.launch` starts; never by hand.

Reads `job.json` (what to train), `train.jsonl` (frozen rows) and the base model's folder. Writes, all in the
job's folder on the local disk: `events.rankN.jsonl` (a line a step, a line a checkpoint; the parent reads
them while they grow), `checkpoint-N/`, `adapter/`, and last `done.rankN.json`, without which the rank did
not end well, whatever its exit code. When a file `stop` appears, all ranks save a checkpoint after the step
they are in, and end. Needs no credentials and speaks to no server. Fails with any exception: the launcher
then ends the other ranks.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.training.encoding import Encoded, encode, pad_id, training_order
from tasks.training.launcher import leave_out_unused
from tasks.training.recipes import Recipe

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """`python -m tasks.training.worker --local_rank=N JOB_FOLDER`: train one rank."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a rank must not outlive its launcher
    leave_out_unused()
    folder = Path(arguments[-1])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    recipe = Recipe.model_validate(job["recipe"])
    if recipe.distribution.accelerator == "cpu":
        skip_compiled_communication()
    trainer, facts = build(folder, job, recipe, world)
    from tasks.training.control import Control

    callback = Control(folder, recipe, rank, world, speed_facts(trainer, recipe, facts))
    trainer.add_callback(callback)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=job["resume"])
    facts |= {
        "outcome": callback.outcome,
        "reason": callback.reason,
        "rank": rank,
        "world": world,
        "step": int(trainer.state.global_step),
        "steps": int(trainer.state.max_steps),
        "train_seconds": round(time.monotonic() - started, 3),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    if facts["outcome"] in {"complete", "early_stop"}:
        facts["first_rows_loss"] = first_rows_loss(trainer, recipe.optimisation.rows_per_step, rank, world)
        if rank == 0:
            trainer.save_model(str(folder / "adapter"))
    _write(folder / f"done.rank{rank}.json", facts)
    return 0


def speed_facts(trainer: "Trainer", recipe: Recipe, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what `Control` needs to tell how fast the training is, and how much of the machine it uses."""
    from tasks.training import flops

    config = trainer.model.config
    # Under ZeRO-3 a parameter is empty here, and knows its size.
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters())
    mean = facts["tokens"] / max(1, len(trainer.train_dataset))
    frozen = recipe.tuning != "full"
    return {
        "step_tokens": facts.pop("step_tokens"),
        "flops_per_token": flops.per_token(parameters, config.num_hidden_layers, config.hidden_size, mean, frozen),
        "peak_flops": flops.peak(trainer.args.device, next(trainer.model.parameters()).dtype),
    }


def first_rows_loss(trainer: "Trainer", rows_per_step: int, rank: int, world: int) -> float:
    """Return the trained model's loss on the rows of the first step, over all ranks.

    Steps hold different rows, so the last step's loss says little beside the first one's; on the same rows they
    can be compared.
    """
    import torch

    from tasks.training.answers import answer_losses

    rows = [trainer.train_dataset[row] for row in range(rank, rows_per_step, world)]
    batch = {name: tensor.to(trainer.args.device) for name, tensor in trainer.data_collator(rows).items()}
    model = trainer.model_wrapped  # DeepSpeed's engine: under ZeRO-3 only it can gather the weights
    model.eval()
    with torch.no_grad():
        losses, _rows, _logits = answer_losses(model, batch)
    total = torch.tensor([losses.sum().item(), float(losses.numel())], device=trainer.args.device)
    torch.distributed.all_reduce(total)
    return round(float(total[0] / total[1]), 6)


def skip_compiled_communication() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce when the process group is made.

    That operator serves inference only (`inference_all_reduce`); training never calls it. Compiling it takes a
    C++ compiler and half a minute at the first step. DeepSpeed asks this table whether an operator can be used.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}


def build(folder: Path, job: dict[str, Any], recipe: Recipe, world: int) -> "tuple[Trainer, dict[str, Any]]":
    """Return the trainer, and counts of what it will read."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from transformers.utils import logging as transformers_logging

    from tasks.training.answers import AnswerTrainer, Collator

    transformers_logging.disable_progress_bar()
    how = recipe.optimisation
    set_seed(how.seed)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    with (folder / "train.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    examples = encode(tokenizer, rows, recipe.data.system_prompt, recipe.data.max_tokens)
    order = training_order([len(example.input_ids) for example in examples], how.rows_per_step, how.epochs, how.seed)
    settings = trainer_settings(folder, recipe, job, len(order) // how.rows_per_step, recipe.accumulation(world))
    dtype = torch.bfloat16 if how.precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    if how.gradient_checkpointing:
        model.enable_input_require_grads()
    trainer = AnswerTrainer(
        model=get_peft_model(model, _lora(recipe, model.config.num_hidden_layers)),
        args=settings,
        train_dataset=[examples[row] for row in order],
        data_collator=Collator(pad_id(tokenizer)),
    )
    return trainer, _counts(examples, order, how.rows_per_batch) | {
        "step_tokens": _step_tokens(examples, order, how.rows_per_step)
    }


def trainer_settings(
    folder: Path, recipe: Recipe, job: dict[str, Any], steps: int, accumulation: int
) -> "TrainingArguments":
    """Return the recipe as the trainer's arguments, for `steps` steps of `accumulation` batches on each rank."""
    from transformers import TrainingArguments

    how, cpu = recipe.optimisation, recipe.distribution.accelerator == "cpu"
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,  # the rows come in the order of all epochs
        per_device_train_batch_size=how.rows_per_batch,
        gradient_accumulation_steps=accumulation,
        train_sampling_strategy="sequential",
        learning_rate=how.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=-(-int(how.warmup_share * 1000 * steps) // 1000),
        weight_decay=how.weight_decay,
        max_grad_norm=how.max_grad_norm,
        optim="adamw_torch",
        gradient_checkpointing=how.gradient_checkpointing,
        bf16=how.precision == "bf16",
        seed=how.seed,
        deepspeed=job["deepspeed"],
        use_cpu=cpu,
        ddp_backend="gloo" if cpu else None,
        dataloader_pin_memory=not cpu,
        remove_unused_columns=False,
        logging_steps=1,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="no",  # tasks.training.control decides
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def _lora(recipe: Recipe, blocks: int) -> Any:
    from peft import LoraConfig

    assert recipe.lora is not None
    last = recipe.lora.last_layers
    return LoraConfig(
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=list(recipe.lora.targets),
        layers_to_transform=list(range(max(0, blocks - last), blocks)) if last else None,
        task_type="CAUSAL_LM",
    )


def _step_tokens(examples: list[Encoded], order: list[int], rows_per_step: int) -> list[int]:
    lengths = [len(examples[row].input_ids) for row in order]
    return [sum(lengths[start : start + rows_per_step]) for start in range(0, len(lengths), rows_per_step)]


def _counts(examples: list[Encoded], order: list[int], rows_per_batch: int) -> dict[str, int | float]:
    """Return what the training reads in all: `padded_tokens` is the work done, `tokens` the useful part of it."""
    lengths = [len(examples[row].input_ids) for row in order]
    batches = [lengths[start : start + rows_per_batch] for start in range(0, len(lengths), rows_per_batch)]
    return {
        "rows": len(examples),
        "truncated": sum(example.truncated for example in examples),
        "tokens": sum(lengths),
        "padded_tokens": sum(max(batch) * len(batch) for batch in batches),
        "answer_tokens": sum(examples[row].answer_tokens for row in order),
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value), encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
