"""What a rank reads, in the order it reads it: the items of a training, and counts of them.

Reads `train.jsonl`, and `validation.jsonl` where it stands beside it. Writes nothing. An item is an encoded example,
a pack of examples, or a pair of answers, as the recipe says; the order of all epochs is made here and is the same on
any number of ranks. Fails with `DataError` when a row does not fit the method, or when the recipe asks for a validation
loss without rows for it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import DataError
from tasks.training import flops
from tasks.training.encoding import Encoded, Pair, encode, encode_pairs, training_order
from tasks.training.packing import join, pack
from tasks.training.recipes import Recipe

Counts = dict[str, int | float]


@dataclass(frozen=True)
class Reading:
    """`items` in the order of all epochs, and what is known of them."""

    items: list[Any]
    validation: list[Any]
    steps: int
    step_tokens: list[int]  # useful tokens of every step, over all ranks
    context: float  # mean length of the example that a token stands in
    counts: Counts


def read(folder: Path, tokenizer: Any, recipe: Recipe) -> Reading:
    """Return what a training of the rows in `folder` reads. Raises DataError, ModelError."""
    how = recipe.optimisation
    rows = _rows(folder / "train.jsonl")
    pairs = encode_all(tokenizer, rows, recipe) if recipe.method == "dpo" else []
    examples = [] if pairs else encode(tokenizer, rows, recipe.data.system_prompt, recipe.data.max_tokens)
    lengths = [len(example.input_ids) for example in examples]
    items: list[Any] = pairs or examples
    if how.packing:
        items = list(join(examples, pack(lengths, recipe.data.max_tokens)))
    order = training_order([width(item) for item in items], how.rows_per_step, how.epochs, how.seed)
    ordered = [items[row] for row in order]
    halves = [half for pair in pairs for half in (pair.chosen, pair.rejected)]
    used = [tokens(item) for item in ordered]
    return Reading(
        items=ordered,
        validation=_validation(folder, tokenizer, recipe),
        steps=len(order) // how.rows_per_step,
        step_tokens=[sum(used[start : start + how.rows_per_step]) for start in range(0, len(used), how.rows_per_step)],
        context=flops.context(lengths or [len(half.input_ids) for half in halves]),
        counts={
            "rows": len(rows),
            "truncated": sum(example.truncated for example in examples)
            + sum(pair.chosen.truncated or pair.rejected.truncated for pair in pairs),
            "tokens": sum(used),
            "padded_tokens": padded(ordered, how.rows_per_batch),
            "answer_tokens": sum(answer_tokens(item) for item in ordered),
        },
    )


def encode_all(tokenizer: Any, rows: Sequence[dict[str, Any]], recipe: Recipe) -> list[Any]:
    """Return rows as the recipe's method learns from them, each for itself. Raises DataError, ModelError."""
    make = encode_pairs if recipe.method == "dpo" else encode
    return list(make(tokenizer, rows, recipe.data.system_prompt, recipe.data.max_tokens))


def parts(item: Any) -> tuple[Any, ...]:
    """Return the rows of tokens that an item makes in a batch."""
    return (item.chosen, item.rejected) if isinstance(item, Pair) else (item,)


def width(item: Any) -> int:
    """Return how wide the item makes its batch."""
    return max(len(part.input_ids) for part in parts(item))


def tokens(item: Any) -> int:
    """Return the tokens of an item."""
    return sum(len(part.input_ids) for part in parts(item))


def answer_tokens(item: Any) -> int:
    """Return the tokens of an item that the loss is about."""
    return sum(part.answer_tokens for part in parts(item))


def padded(items: Sequence[Any], rows_per_batch: int) -> int:
    """Return the tokens that are computed: each batch is as wide as its widest item."""
    batches = [items[start : start + rows_per_batch] for start in range(0, len(items), rows_per_batch)]
    return sum(max(map(width, batch)) * sum(len(parts(item)) for item in batch) for batch in batches)


def _validation(folder: Path, tokenizer: Any, recipe: Recipe) -> list[Any]:
    """Return the items of the validation loss, longest first; a pack of one each where packs are trained."""
    path = folder / "validation.jsonl"
    if not path.is_file():
        if recipe.stopping.evaluate_every_steps is not None:
            raise DataError(
                "expected validation rows, for the recipe has stopping.evaluate_every_steps, found no validation.jsonl. "
                "Next: see what validate_dataset kept of data.validation_rows."
            )
        return []
    items = encode_all(tokenizer, _rows(path), recipe)
    if recipe.optimisation.packing:
        examples: list[Encoded] = items
        items = list(join(examples, pack([len(one.input_ids) for one in examples], recipe.data.max_tokens)))
    return sorted(items, key=width, reverse=True)


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
