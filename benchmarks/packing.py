"""`packing`: what packed rows save over padded ones, and that they change no loss.

Makes a model of its own (a Llama of 4 blocks) and random texts whose lengths are spread as instruction data's are;
nothing is downloaded, no stack is needed. The batches come from `tasks.training.encoding.pad` and
`tasks.training.packing`, as in a training.
"""

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.result import Result
from tasks.training.encoding import Encoded, pad
from tasks.training.packing import Collator, fill, join, pack

CAPACITY = 1024  # longest example allowed
EXAMPLES, ROUNDS = 48, 6
ROWS_PER_BATCH = 8  # of dynamic padding: the trainer's default
PACKS_PER_BATCH = 2  # and rows padded to the longest allowed: the same tokens a batch
VOCABULARY, HIDDEN, BLOCKS = 4096, 256, 4
OF_BOUND, OVER_DYNAMIC, FILL, DIFFERENCE = 0.8, 1.8, 0.98, 1e-4

Batches = list[dict[str, Any]]


def packing() -> Result:
    """Useful tokens a second: packed rows over rows padded to the longest allowed, and to the longest of a batch."""
    import torch

    torch.manual_seed(0)
    model = _model()
    examples = mixed_examples(EXAMPLES)
    lengths = [len(example.input_ids) for example in examples]
    ways = {
        "longest allowed": padded(examples, PACKS_PER_BATCH, CAPACITY),
        "dynamic": padded(examples, ROWS_PER_BATCH),
        "packed": packed(examples),
    }
    seconds = _interleaved({name: _training(model, batches) for name, batches in ways.items()})
    ratios = {
        name: sorted(a / b for a, b in zip(seconds[name], seconds["packed"], strict=True))
        for name in ("longest allowed", "dynamic")
    }
    over = {name: statistics.median(found) for name, found in ratios.items()}
    bound = len(lengths) * CAPACITY / sum(lengths)
    filled, packing_seconds = fill_of_many()
    difference, control = (largest_difference(model, examples, restart) for restart in (True, False))
    share = over["longest allowed"] / bound
    return Result(
        figure=f"{share:.2f} of the bound, {over['dynamic']:.2f} x dynamic, fill {filled:.4f}, loss within {difference:.0e}",
        bound=f"{OF_BOUND:g}, {OVER_DYNAMIC:g} x, {FILL:g}, {DIFFERENCE:.0e}",
        holds=share >= OF_BOUND
        and over["dynamic"] >= OVER_DYNAMIC
        and filled >= FILL
        and difference <= DIFFERENCE < control,
        details=[
            *(
                f"{name}: {sum(lengths) / statistics.median(found):,.0f} useful tokens/s"
                for name, found in seconds.items()
            ),
            *(
                f"packed over {name}, each round: {', '.join(f'{r:.2f}' for r in found)}"
                for name, found in ratios.items()
            ),
            f"{over['longest allowed']:.2f} x padding to the longest allowed; bound 1/fill of the padded rows: {bound:.2f}",
            f"fill of {len(ways['packed'])} batches of packs: {_filled(ways['packed'], lengths):.3f}; "
            f"of dynamic padding: {_filled(ways['dynamic'], lengths):.3f}",
            f"the same difference when examples see each other: {control:.0e} (else the comparison would show nothing)",
            f"100,000 rows are packed in {packing_seconds:.2f} s",
        ],
    )


def mixed_examples(count: int, seed: int = 0, capacity: int = CAPACITY, vocabulary: int = VOCABULARY) -> list[Encoded]:
    """Random texts of lognormal length (median 180 tokens), as instruction data has them."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        length = min(capacity, max(16, int(chance.lognormvariate(5.2, 0.8))))
        ids = [chance.randrange(5, vocabulary) for _ in range(length)]
        found.append(Encoded(str(number), ids, ids, False))
    return found


def padded(examples: list[Encoded], count: int, width: int = 0) -> Batches:
    """Batches of `count` in the order of the examples, padded to `width`, or each to its own longest."""
    import torch

    batches = []
    for start in range(0, len(examples), count):
        batch = {name: torch.tensor(rows) for name, rows in pad(examples[start : start + count], 0).items()}
        gap = width - batch["input_ids"].shape[1]
        if gap > 0:
            for name, value in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
                batch[name] = torch.nn.functional.pad(batch[name], (0, gap), value=value)
        batches.append(batch)
    return batches


def packed(examples: list[Encoded]) -> Batches:
    """Batches of packs."""
    packs = join(examples, pack([len(example.input_ids) for example in examples], CAPACITY))
    collate = Collator(0)
    return [collate(packs[start : start + PACKS_PER_BATCH]) for start in range(0, len(packs), PACKS_PER_BATCH)]


def fill_of_many() -> tuple[float, float]:
    """Return the fill of a whole dataset's packs, and the seconds it took to pack them."""
    chance = random.Random(1)
    lengths = [min(CAPACITY, max(16, int(chance.lognormvariate(5.2, 0.8)))) for _ in range(100_000)]
    begun = time.perf_counter()
    packs = pack(lengths, CAPACITY)
    return fill(lengths, packs, CAPACITY), time.perf_counter() - begun


def largest_difference(model: Any, examples: list[Encoded], restart: bool) -> float:
    """Return by how much an example's mean loss inside its pack differs from its loss alone, at most.

    Without `restart` the positions run through the pack: what the difference is when examples see each other.
    """
    import torch

    from tasks.training.encoding import IGNORED

    packs = pack([len(example.input_ids) for example in examples], CAPACITY)
    worst = 0.0
    with torch.no_grad():
        for rows in packs:
            batch = Collator(0)(join(examples, [rows]))
            if not restart:
                batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
            inside = _token_losses(model, batch, batch["labels"])
            ends = torch.tensor([len(examples[row].input_ids) - 1 for row in rows]).cumsum(0).tolist()
            for row, start, end in zip(rows, [0, *ends[:-1]], ends, strict=True):
                ids = torch.tensor([examples[row].input_ids])
                alone = _token_losses(model, {"input_ids": ids}, ids)
                worst = max(worst, abs(float(inside[start:end].mean() - alone.mean())))
            assert len(inside) == ends[-1] == int((batch["labels"] != IGNORED).sum())
    return worst


def _token_losses(model: Any, batch: dict[str, Any], labels: Any) -> Any:
    import torch

    named = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**named, use_cache=False).logits[:, :-1].flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="none")
    return losses[labels[:, 1:].flatten() != -100]


def _model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=HIDDEN * 11 // 4, num_hidden_layers=BLOCKS,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=CAPACITY,
        )
    )  # fmt: skip


def _training(model: Any, batches: Batches) -> Callable[[], None]:
    """Return one pass over the batches, with two optimiser steps, as a function."""
    import torch

    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def run() -> None:
        for number, batch in enumerate(batches, 1):
            model(**batch, use_cache=False).loss.backward()
            if number in (len(batches) // 2, len(batches)):
                optimiser.step()
                optimiser.zero_grad()

    return run


def _interleaved(ways: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Return the seconds of each way in each round; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, run in ways.items():
            begun = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def _filled(batches: Batches, lengths: list[int]) -> float:
    return sum(lengths) / sum(batch["input_ids"].numel() for batch in batches)
