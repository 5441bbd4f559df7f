"""Packs: every example once, hardly any room left, and a loss that does not see the neighbours."""

import random
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import DataError
from tasks.training.encoding import IGNORED, Encoded
from tasks.training.packing import Collator, Pack, fill, join, pack
from tests.tiny_model import make_model

CAPACITY = 1024


def mixed_lengths(count: int, seed: int, capacity: int = CAPACITY) -> list[int]:
    """Lengths as instruction data has them: many short, few long."""
    chance = random.Random(seed)
    return [min(capacity, max(4, int(chance.lognormvariate(5.2, 0.8)))) for _ in range(count)]


def made_examples(lengths: list[int], seed: int = 1) -> list[Encoded]:
    """Random tokens; the first half of each example is the question."""
    chance = random.Random(seed)
    found = []
    for number, length in enumerate(lengths):
        ids = [chance.randrange(200) for _ in range(length)]
        found.append(Encoded(str(number), ids, [IGNORED] * (length // 2) + ids[length // 2 :], False))
    return found


@pytest.mark.parametrize("seed", range(40))
def test_every_row_is_in_one_pack_and_no_pack_is_over_its_capacity(seed: int) -> None:
    chance = random.Random(seed)
    capacity = chance.randint(1, 300)
    lengths = [chance.randint(1, capacity) for _ in range(chance.randint(0, 300))]
    packs = pack(lengths, capacity)
    assert sorted(row for rows in packs for row in rows) == list(range(len(lengths)))
    assert all(rows and sum(lengths[row] for row in rows) <= capacity for rows in packs)
    # Best fit opens a pack only for a row that fits nowhere: no two packs would fit into one.
    sizes = sorted(sum(lengths[row] for row in rows) for rows in packs)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > capacity


@pytest.mark.parametrize("seed", range(5))
def test_mixed_lengths_fill_the_packs(seed: int) -> None:
    lengths = mixed_lengths(4000, seed)
    packs = pack(lengths, CAPACITY)
    found = fill(lengths, packs, CAPACITY)
    assert 0.98 <= found <= 1
    assert found == sum(lengths) / (len(packs) * CAPACITY)


def test_the_same_lengths_give_the_same_packs() -> None:
    lengths = mixed_lengths(500, 3)
    assert pack(lengths, CAPACITY) == pack(tuple(lengths), CAPACITY)


def test_a_row_goes_where_it_fits_best() -> None:
    assert pack([6, 5, 4, 3], 9) == [[0, 3], [1, 2]]
    assert pack([9, 1, 9], 9) == [[0], [2], [1]]


def test_nothing_to_pack() -> None:
    assert pack([], 10) == []
    assert fill([], [], 10) == 0


@pytest.mark.parametrize("lengths", [[3, 11], [0, 3]])
def test_a_row_that_no_pack_can_hold_is_an_error(lengths: list[int]) -> None:
    with pytest.raises(DataError, match="1 to 10 tokens"):
        pack(lengths, 10)


def test_positions_and_labels_begin_anew_with_each_example() -> None:
    examples = [Encoded("a", [7, 8, 9], [7, 8, 9], False), Encoded("b", [5, 6], [IGNORED, 6], False)]
    (found,) = join(examples, [[1, 0]])
    assert found == Pack(("b", "a"), [5, 6, 7, 8, 9], [0, 1, 0, 1, 2], [IGNORED, 6, IGNORED, 8, 9])
    assert found.answer_tokens == 3


def test_a_batch_has_no_attention_mask_and_a_gap_is_an_example_without_loss() -> None:
    packs = join(made_examples([4, 2, 3]), [[0, 1], [2]])
    batch = Collator(0)(packs)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (2, 6), "position_ids": (2, 6), "labels": (2, 6),
    }  # fmt: skip
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 1, 2]]
    assert batch["labels"][1, 3:].tolist() == [IGNORED] * 3
    flat = Collator(0, flat=True)(packs)
    assert flat["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2]]
    assert flat["input_ids"].shape == flat["labels"].shape == (1, 9)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def losses(model: Any, batch: dict[str, Any], **named: Any) -> Any:
    """Negative log-likelihood of each token that has a label, in order; `named` goes to the model."""
    import torch

    wanted = batch["labels"][:, 1:]
    with torch.no_grad():
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}, **named).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits[wanted != IGNORED], wanted[wanted != IGNORED], reduction="none")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("flat", [False, True])
def test_the_loss_of_an_example_in_a_pack_is_its_loss_alone(model_folder: Path, attention: str, flat: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, attn_implementation=attention).eval()
    examples = made_examples([3 + (17 * n) % 58 for n in range(24)])
    packs = pack([len(example.input_ids) for example in examples], 120)
    assert len(packs) > 3 < max(map(len, packs))
    order = [row for rows in packs for row in rows]
    batch = Collator(0, flat)(join(examples, packs))

    alone = []
    for row in order:
        one = {"input_ids": [examples[row].input_ids], "labels": [examples[row].labels]}
        alone.append(losses(model, {name: torch.tensor(value) for name, value in one.items()}))
    sizes = [len(one) for one in alone]
    together = losses(model, batch, use_cache=False).split(sizes)
    assert max(abs(float(a.mean() - b.mean())) for a, b in zip(alone, together, strict=True)) < 1e-4

    def far_off(**changed: Any) -> bool:
        named = {"use_cache": False} | {name: value for name, value in changed.items() if name not in batch}
        other = losses(model, batch | {name: value for name, value in changed.items() if name in batch}, **named)
        pairs = zip(alone, other.split(sizes), strict=True)
        return max(abs(float(a.mean() - b.mean())) for a, b in pairs) > 1e-3

    # Controls: without these three, examples see each other, and this test would notice.
    assert far_off(position_ids=torch.arange(batch["input_ids"].shape[1])[None].expand_as(batch["input_ids"]))
    assert far_off(attention_mask=torch.ones_like(batch["input_ids"]))
    assert far_off(use_cache=True)
