"""The loss of a model, and of adapters upon it, on each held-out row; of preferences, on each pair.

Reads a model's folder and adapter folders. Writes nothing. One model is in memory, its adapters are
switched on it. Fails with `ModelError` when an adapter does not belong to the model, and with `RecipeError` when the GPUs
do not hold the model.
"""

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import RecipeError
from tasks.evaluation.measures import BASE
from tasks.evaluation.paired import Score
from tasks.training.adapters import require_loaded
from tasks.training.encoding import Encoded, by_length, encode, encode_pairs, pad, pad_id
from tasks.training.recipes import Recipe

_PROBED = 32  # answer positions at which logits are compared


@dataclass(frozen=True)
class Scored:
    """The scores of one model, and its logits at some answer positions of the first batch.

    Of preferences the scores are those of all better answers, then those of all worse ones in the same order.
    """

    scores: list[Score]
    probe: Any


def score(
    folder: Path,
    names: Mapping[str, Path | None],
    rows: Sequence[dict[str, Any]],
    recipe: Recipe,
    tokenizer_folder: Path | None = None,
    places: str | dict[str, Any] | None = None,
) -> Iterator[tuple[str, Scored]]:
    """Yield (name, scores) of the model in `folder` under each name: with that adapter, or without where it is None.

    The rows are read with the model's own tokenizer, or with that of `tokenizer_folder`. Raises ModelError, RecipeError.
    """
    patient_threads()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder or folder)
    examples = encoded(tokenizer, rows, recipe)
    for name, model in switched(folder, names, recipe, places):
        yield name, score_rows(model, examples, recipe.evaluation.rows_per_batch, pad_id(tokenizer))


def switched(
    folder: Path, names: Mapping[str, Path | None], recipe: Recipe, places: str | dict[str, Any] | None = None
) -> Iterator[tuple[str, Any]]:
    """Yield (name, model) of the model in `folder` under each name: with that adapter, or without where it is None.

    It is one model: what was yielded before has changed when the next name comes. `places` says where it lies, as
    Accelerate's `device_map` does: by default on the CPU, or spread over all GPUs. Raises ModelError, RecipeError.
    """
    patient_threads()
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    accelerator = recipe.distribution.accelerator
    # The CPU computes in float32: it is faster there than bfloat16 where matrix units are missing, and exact.
    places = places or ("auto" if accelerator == "cuda" else None)
    dtype = torch.bfloat16 if accelerator == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, device_map=places).eval()
    if accelerator == "cuda":
        require_room(model.hf_device_map, recipe)
    # Without an adapter first: PEFT changes the model's layers in place.
    for name, adapter in sorted(names.items(), key=lambda item: item[1] is not None):
        if adapter is not None:
            if isinstance(model, PeftModel):
                model.load_adapter(str(adapter), adapter_name=name)
                model.set_adapter(name)
            else:
                model = PeftModel.from_pretrained(model, str(adapter), adapter_name=name)
            require_loaded(model, name, adapter)
        yield name, model.eval()


def let_go() -> None:
    """Give the memory of models that nobody holds any more back, also that of GPUs: the next one needs it."""
    import torch

    gc.collect()  # modules and PEFT's layers refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def patient_threads() -> None:
    """Let threads that wait sleep, on a machine that does other things too. To be called before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def preferences(scored: Mapping[str, Scored], beta: float) -> dict[str, list[Score]]:
    """Return under each name the loss of each pair: how sure the model is that the better answer is the better one.

    That is the loss of direct preference optimisation (Rafailov et al. 2023, equation 7), as in training, but with the base
    model as the reference of all, so that candidate and champion are measured alike. The base model itself has log 2, which is
    to know nothing. Pairs weigh alike: each counts as one token.
    """
    import numpy

    def halves(name: str) -> tuple[Any, Any]:
        better, worse = numpy.split(numpy.array([score.loss for score in scored[name].scores]), 2)
        return better, worse

    first, second = halves(BASE)
    found = {}
    for name, result in scored.items():
        better, worse = halves(name)
        losses = numpy.logaddexp(0.0, -beta * ((first - better) - (second - worse)))
        found[name] = [Score(score.id, float(loss), 1) for score, loss in zip(result.scores, losses, strict=False)]
    return found


def encoded(tokenizer: Any, rows: Sequence[dict[str, Any]], recipe: Recipe) -> list[Encoded]:
    """Return the rows as token ids; of preferences all better answers, then all worse ones."""
    prompt, limit = recipe.data.system_prompt, recipe.data.max_tokens
    if recipe.method != "dpo":
        return encode(tokenizer, rows, prompt, limit)
    pairs = encode_pairs(tokenizer, rows, prompt, limit)
    return [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]


def require_room(places: Mapping[str, Any], recipe: Recipe) -> None:
    """Prove that the whole model lies on GPUs. Accelerate would put the rest into memory, and be slow in silence. Raises RecipeError."""
    elsewhere = [part for part, place in places.items() if place in {"cpu", "disk"}]
    if elsewhere:
        raise RecipeError(
            f"expected the base model on {recipe.evaluation.gpus} GPUs (evaluation.gpus), found {len(elsewhere)} of {len(places)} "
            "parts that do not fit there. Next: raise evaluation.gpus in the recipe (2 GB for a billion weights)."
        )


def score_rows(model: Any, examples: list[Encoded], rows_per_batch: int, fill: int) -> Scored:
    """Return the loss of each example under a model, as it is now."""
    import torch

    from tasks.training.answers import answer_losses

    found: dict[int, Score] = {}
    probe = None
    with torch.inference_mode():
        for batch in by_length(examples, rows_per_batch):
            padded = pad([examples[row] for row in batch], fill)
            tensors = {name: torch.tensor(values, device=model.device) for name, values in padded.items()}
            losses, owners, logits = answer_losses(model, tensors)
            sums = torch.zeros(len(batch), dtype=torch.float64).index_add_(0, owners.cpu(), losses.double().cpu())
            if probe is None:
                probe = logits[:_PROBED].cpu()
            for place, row in enumerate(batch):
                tokens = sum(label != -100 for label in examples[row].labels[1:])
                found[row] = Score(examples[row].id, float(sums[place]), tokens)
    return Scored([found[row] for row in range(len(examples))], probe)
