"""Examples as token ids, with the loss on answers only, and batches of similar lengths.

Reads rows and a tokenizer; writes nothing. A row has `messages` (and for preferences the `rejected` answer to
the same conversation), or a `text` whose every token is learned. Training and evaluation both encode here, so
that they measure the same tokens. What does not fit is cut off the end and counted, never hidden. Fails
with `DataError` for an example that has no answer left, and with `ModelError` for a chat template that
does not keep the conversation before an answer as a prefix.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.errors import DataError, ModelError

IGNORED = -100  # the label that every loss of PyTorch and Transformers skips


@dataclass(frozen=True)
class Encoded:
    """One example: token ids, and labels that are IGNORED wherever the assistant does not speak."""

    id: str
    input_ids: list[int]
    labels: list[int]
    truncated: bool

    @property
    def answer_tokens(self) -> int:
        """How many tokens the loss is about."""
        return sum(label != IGNORED for label in self.labels[1:])  # nothing predicts the first token


@dataclass(frozen=True)
class Pair:
    """One preference: the better and the worse answer to the same conversation."""

    chosen: Encoded
    rejected: Encoded


def encode(tokenizer: Any, rows: Sequence[dict[str, Any]], system_prompt: str, max_tokens: int) -> list[Encoded]:
    """Return the rows encoded. Raises DataError, ModelError."""
    return [_encode_row(tokenizer, row, system_prompt, max_tokens) for row in rows]


def encode_pairs(tokenizer: Any, rows: Sequence[dict[str, Any]], system_prompt: str, max_tokens: int) -> list[Pair]:
    """Return preferences encoded. Raises DataError, ModelError."""
    pairs = []
    for row, chosen in zip(rows, encode(tokenizer, rows, system_prompt, max_tokens), strict=True):
        if not row.get("rejected") or not row.get("messages"):
            raise DataError(
                f"expected messages and a rejected answer in row {row['id']} for method dpo, found "
                f"{sorted(key for key, value in row.items() if value)}. Next: train it with a recipe of method sft."
            )
        worse = row | {"messages": [*row["messages"][:-1], {"role": "assistant", "content": row["rejected"]}]}
        (rejected,) = encode(tokenizer, [worse], system_prompt, max_tokens)
        if chosen.input_ids == rejected.input_ids:
            raise DataError(
                f"expected answers that differ within the first {max_tokens} tokens of row {row['id']}, found the same. "
                "Next: raise data.max_tokens in the recipe, or remove that row."
            )
        pairs.append(Pair(chosen, rejected))
    return pairs


def _encode_text(tokenizer: Any, row: dict[str, Any], max_tokens: int) -> Encoded:
    ids = list(tokenizer(row["text"])["input_ids"])
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)  # a model learns where a text ends, too
    kept = ids[:max_tokens]
    if len(kept) < 2:
        raise DataError(
            f"expected a text of at least two tokens in row {row['id']}, found {len(kept)}. Next: remove that row."
        )
    return Encoded(str(row["id"]), kept, kept, len(ids) > max_tokens)


def _encode_row(tokenizer: Any, row: dict[str, Any], system_prompt: str, max_tokens: int) -> Encoded:
    if row.get("text") is not None:
        return _encode_text(tokenizer, row, max_tokens)
    messages = list(row["messages"])
    if messages[0]["role"] != "system":
        # An empty system message too: without one, some templates add a greeting of their own.
        messages.insert(0, {"role": "system", "content": system_prompt})
    ids: list[int] = []
    labels: list[int] = []
    for position, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = _template(tokenizer, messages[:position], True)
        answered = _template(tokenizer, messages[: position + 1], False)
        if asked[: len(ids)] != ids or answered[: len(asked)] != asked:
            raise ModelError(
                "expected a chat template under which the question is a prefix of question and answer, found one that is "
                f"not (example {row['id']}). Next: use a model with another chat template."
            )
        labels += [IGNORED] * (len(asked) - len(ids)) + answered[len(asked) :]
        ids = answered
    kept, kept_labels = ids[:max_tokens], labels[:max_tokens]
    if all(label == IGNORED for label in kept_labels[1:]):
        raise DataError(
            f"expected an answer within the first {max_tokens} tokens of example {row['id']}, found none. "
            "Next: raise data.max_tokens in the recipe, or shorten the question."
        )
    return Encoded(str(row["id"]), kept, kept_labels, len(ids) > max_tokens)


def _template(tokenizer: Any, messages: list[dict[str, str]], ask: bool) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def training_order(lengths: Sequence[int], rows_per_step: int, epochs: int, seed: int) -> list[int]:
    """Return the order of rows for all epochs: steps hold rows of similar length, steps come in random order.

    Padding costs as much as work. Where the rows do not fill the last step, some are taken twice, so that every
    step has `rows_per_step` rows over all ranks. The number of ranks has no part in it: a step is the same set of
    rows on any number of them, so a training can go on with another.
    """
    order: list[int] = []
    for epoch in range(epochs):
        chance = random.Random(f"{seed}/{epoch}")
        rows = list(range(len(lengths)))
        chance.shuffle(rows)
        rows += (rows * rows_per_step)[: -len(rows) % rows_per_step]
        rows.sort(key=lambda row: lengths[row])
        groups = [rows[start : start + rows_per_step] for start in range(0, len(rows), rows_per_step)]
        chance.shuffle(groups)
        order += [row for group in groups for row in group]
    return order


def by_length(examples: Sequence[Encoded], rows_per_batch: int) -> list[list[int]]:
    """Return batches of row numbers, longest first: if memory runs out, it does so at once."""
    rows = sorted(range(len(examples)), key=lambda row: (-len(examples[row].input_ids), row))
    return [rows[start : start + rows_per_batch] for start in range(0, len(rows), rows_per_batch)]


def pad_id(tokenizer: Any) -> int:
    """Return the token that fills a batch; its attention is masked, so any will do where the model names none."""
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if found is not None:
            return int(found)
    return 0


def pad(examples: Sequence[Encoded], pad_id: int) -> dict[str, list[list[int]]]:
    """Return input ids, attention mask and labels of a batch, padded on the right to its longest row."""
    width = max(len(example.input_ids) for example in examples)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for example in examples:
        gap = width - len(example.input_ids)
        batch["input_ids"].append(example.input_ids + [pad_id] * gap)
        batch["attention_mask"].append([1] * len(example.input_ids) + [0] * gap)
        batch["labels"].append(example.labels + [IGNORED] * gap)
    return batch
