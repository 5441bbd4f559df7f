"""One rank of a training. Started by DeepSpeed's launcher, which `tasks.training.launch` starts; never by hand.

Reads `job.json` (what to train), `train.jsonl` and `validation.jsonl` (frozen rows) and the base model's folder.
Writes, all in the job's folder on the local disk: what `tasks.training.control` says, `adapter/` (`model/` when all
weights are trained; the best ones where there is a validation loss), and last `done.rankN.json`, without which the
rank did not end well, whatever its exit code. When a file `stop` appears, all ranks save a checkpoint after the step
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

from tasks.training import flops
from tasks.training.batches import Reading, read
from tasks.training.encoding import pad_id
from tasks.training.flops import Shape
from tasks.training.launcher import FOUR_BITS, leave_out
from tasks.training.recipes import Recipe

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from tasks.training.answers import AnswerTrainer

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """`python -m tasks.training.worker --local_rank=N JOB_FOLDER`: train one rank."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a rank must not outlive its launcher
    leave_out()
    folder = Path(arguments[-1])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    recipe = Recipe.model_validate(job["recipe"])
    if recipe.tuning != "qlora":
        leave_out(FOUR_BITS)
    if recipe.distribution.accelerator == "cpu":
        skip_compiled_communication()
    shape = model_shape(job["model"])
    trainer, reading = build(folder, job, recipe, world)
    from tasks.training.control import Control

    save_best = trainer.save_weights if reading.validation else None
    callback = Control(folder, recipe, rank, world, speed_facts(trainer, recipe, reading, shape), save_best)
    trainer.add_callback(callback)
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=job["resume"])
    facts = reading.counts | {
        "outcome": callback.outcome,
        "reason": callback.reason,
        "rank": rank,
        "world": world,
        "step": int(trainer.state.global_step),
        "steps": int(trainer.state.max_steps),
        "train_seconds": round(time.monotonic() - started, 3),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    if callback.outcome in {"complete", "early_stop"}:
        # Steps hold different rows, so the last step's loss says little beside the first one's; these are the same rows.
        first_rows = reading.items[: recipe.optimisation.rows_per_step]
        facts["first_rows_loss"] = round(trainer.mean_loss(first_rows), 6)
        keep_result(trainer, recipe, folder, callback.best)
    leave_the_group()
    _write(folder / f"done.rank{rank}.json", facts)
    return 0


def leave_the_group() -> None:
    """Take this rank out of its process group: threads of one that still stands can abort the interpreter at its end."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def keep_result(trainer: "AnswerTrainer", recipe: Recipe, folder: Path, best: Path | None) -> None:
    """Put the result in its place: the best weights where the validation loss named them, else the last."""
    place = folder / ("model" if recipe.tuning == "full" else "adapter")
    if best is None:
        trainer.save_weights(place)
    elif trainer.args.should_save:
        best.rename(place)
    if recipe.tuning == "full" and trainer.args.should_save:
        trainer.processing_class.save_pretrained(place)


def model_shape(base: str) -> Shape:
    """Return the shape of the base model. Before `build`: with a ZeRO-3 configuration no model can be made without weights."""
    from transformers import AutoConfig

    return flops.shape(AutoConfig.from_pretrained(base))


def speed_facts(trainer: "AnswerTrainer", recipe: Recipe, reading: Reading, found: Shape) -> dict[str, Any]:
    """Return what `Control` needs to tell how fast the training is, and how much of the machine it uses."""
    import torch

    counts = reading.counts
    answered = counts["answer_tokens"] / counts["tokens"]  # the output layer is computed for answers only
    work = flops.token_flops(found, recipe, reading.context, answered)
    dtype = torch.float32 if recipe.distribution.accelerator == "cpu" else torch.bfloat16
    return {
        "step_tokens": reading.step_tokens,
        "flops_per_token": work,
        "peak_flops": flops.peak(trainer.args.device, dtype),
    }


def skip_compiled_communication() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce when the process group is made.

    That operator serves inference only (`inference_all_reduce`); training never calls it. Compiling it takes a
    C++ compiler and half a minute at the first step. DeepSpeed asks this table whether an operator can be used.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}


def build(folder: Path, job: dict[str, Any], recipe: Recipe, world: int) -> "tuple[AnswerTrainer, Reading]":
    """Return the trainer, and what it will read."""
    from transformers import AutoTokenizer, set_seed
    from transformers.utils import logging as transformers_logging

    from tasks.training.answers import AnswerTrainer
    from tasks.training.loading import attention, fused_kernels, load_model
    from tasks.training.preference_loss import PreferenceTrainer

    transformers_logging.disable_progress_bar()
    set_seed(recipe.optimisation.seed)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    reading = read(folder, tokenizer, recipe)
    # Before the model is loaded: while these stand, Transformers cuts weights into parts as ZeRO-3 wants them.
    settings = trainer_settings(folder, recipe, job, reading.steps, recipe.accumulation(world))
    model = load_model(job["model"], job["adapter"], recipe, job["deepspeed"]["zero_optimization"]["stage"])
    if settings.process_index == 0:
        kernels = "liger" if fused_kernels(recipe) else "none"
        print(f"attention={attention(recipe)} fused_kernels={kernels} method={recipe.method} tuning={recipe.tuning}")
    named: dict[str, Any] = {
        "model": model,
        "args": settings,
        "train_dataset": reading.items,
        "data_collator": collator(recipe, pad_id(tokenizer)),
        "processing_class": tokenizer,
        "validation": reading.validation,
    }
    if recipe.optimisation.beta is not None:
        return PreferenceTrainer(beta=recipe.optimisation.beta, **named), reading
    return AnswerTrainer(**named), reading


def collator(recipe: Recipe, fill: int) -> Any:
    """Return what makes batches of the recipe's items."""
    from tasks.training import answers, packing, preference_loss
    from tasks.training.loading import attention

    if recipe.method == "dpo":
        return preference_loss.PairCollator(fill)
    if recipe.optimisation.packing:
        return packing.Collator(fill, flat=attention(recipe) == "flash_attention_2")
    return answers.Collator(fill)


def trainer_settings(
    folder: Path, recipe: Recipe, job: dict[str, Any], steps: int, accumulation: int
) -> "TrainingArguments":
    """Return the recipe as the trainer's arguments, for `steps` steps of `accumulation` batches on each rank."""
    from transformers import TrainingArguments

    from tasks.training.loading import fused_kernels, reentrant

    stage = job["deepspeed"]["zero_optimization"]["stage"]
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
        optim="adamw_torch" if cpu else "adamw_torch_fused",
        gradient_checkpointing=how.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant(stage)},
        use_liger_kernel=fused_kernels(recipe),
        # Our loss makes logits for answers only, and takes them as they are.
        liger_kernel_config={"cross_entropy": False, "fused_linear_cross_entropy": False},
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


def _write(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value), encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
