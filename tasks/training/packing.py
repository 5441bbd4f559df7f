"""Several examples in one row of tokens, so that almost no token of a batch is padding.

Reads encoded examples; writes nothing. `pack` says which examples go together (best-fit decreasing), `join` lays
one pack out, `Collator` makes the tensors of a batch. Attention stays inside each example by the positions, which
start again at 0 with every example: Transformers makes the block-diagonal mask (sdpa, eager, flex) or the lengths of
variable-length FlashAttention from them, but only where it gets no attention mask and `use_cache=False`; with a cache
it takes the whole row for one text, without a word. No loss reaches from one example into the next: the label of each
example's first token is IGNORED. Fails with `DataError` for a length that no pack can hold.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.errors import DataError
from tasks.training.encoding import IGNORED, Encoded

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pack:
    """Examples one after another: what a row of a batch is made of."""

    ids: tuple[str, ...]
    input_ids: list[int]
    position_ids: list[int]
    labels: list[int]

    @property
    def answer_tokens(self) -> int:
        """How many tokens the loss is about."""
        return sum(label != IGNORED for label in self.labels)


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return which rows go into which pack: every row once, no pack longer than `capacity`.

    Best-fit decreasing: the longest row first, each into the pack that it fills best. The same lengths give the same
    packs. Raises DataError for a row that is empty, or longer than a pack.
    """
    packs: list[list[int]] = []
    spaces: list[int] = []  # the different free spaces there are, ascending
    by_space: dict[int, list[int]] = {}  # free space: the packs that have it
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        length = lengths[row]
        if not 1 <= length <= capacity:
            raise DataError(
                f"expected rows of 1 to {capacity} tokens, found {length} in row {row}. "
                "Next: raise data.max_tokens in the recipe, or cut the row before it is packed."
            )
        place = bisect_left(spaces, length)
        if place == len(spaces):
            packs.append([])
            number, space = len(packs) - 1, capacity
        else:
            space = spaces[place]
            number = by_space[space].pop()
            if not by_space[space]:
                del by_space[space], spaces[place]
        packs[number].append(row)
        if left := space - length:
            if left not in by_space:
                insort(spaces, left)
            by_space.setdefault(left, []).append(number)
    return packs


def fill(lengths: Sequence[int], packs: Sequence[Sequence[int]], capacity: int) -> float:
    """Return the share of the packs' room that holds tokens; 0 when there is no pack."""
    held = sum(lengths[row] for rows in packs for row in rows)
    return held / (len(packs) * capacity) if packs else 0.0


def join(examples: Sequence[Encoded], packs: Sequence[Sequence[int]]) -> list[Pack]:
    """Return the packs laid out, in the order of `packs`."""
    return [_join([examples[row] for row in rows]) for rows in packs]


def _join(examples: Sequence[Encoded]) -> Pack:
    return Pack(
        ids=tuple(example.id for example in examples),
        input_ids=[token for example in examples for token in example.input_ids],
        position_ids=[position for example in examples for position in range(len(example.input_ids))],
        # The first token is predicted by nothing of its own example, only by the end of the one before.
        labels=[label for example in examples for label in (IGNORED, *example.labels[1:])],
    )


class Collator:
    """Turn packs into a batch of `input_ids`, `position_ids` and `labels`; there is no attention mask on purpose.

    With `flat` all packs stand in one row, as variable-length attention wants them (it costs nothing there, and
    Transformers finds the examples only in a batch of one row). Without it each pack has a row of its own, so that
    the mask of sdpa or eager stays small; what a pack lacks to the longest is one more example that no loss is about.
    """

    def __init__(self, fill_id: int, flat: bool = False) -> None:
        self.fill_id, self.flat = fill_id, flat

    def __call__(self, packs: Sequence[Pack]) -> "dict[str, torch.Tensor]":
        import torch

        batch: dict[str, list[list[int]]] = {"input_ids": [], "position_ids": [], "labels": []}
        width = 0 if self.flat else max(len(pack.input_ids) for pack in packs)
        for one in packs:
            gap = max(0, width - len(one.input_ids))
            batch["input_ids"].append(one.input_ids + [self.fill_id] * gap)
            batch["position_ids"].append(one.position_ids + list(range(gap)))
            batch["labels"].append(one.labels + [IGNORED] * gap)
        if self.flat:
            batch = {name: [[value for row in rows for value in row]] for name, rows in batch.items()}
        return {name: torch.tensor(rows) for name, rows in batch.items()}
