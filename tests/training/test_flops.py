"""The operations of a training step, against counts by hand."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from tasks.training import flops
from tests.tiny_model import make_model


@pytest.mark.parametrize("tied", [False, True])
def test_the_shape_of_a_model(tmp_path: Path, tied: bool) -> None:
    found = flops.shape(AutoConfig.from_pretrained(make_model(tmp_path, tied=tied)))
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32  # q, o; k, v; the three of the network; two norms
    assert found.block_parameters == 2 * block + 32
    assert found.head_parameters == 32 * AutoConfig.from_pretrained(tmp_path).vocab_size
    assert (found.blocks, found.width) == (2, 32)


def test_dense_training_is_six_and_a_frozen_base_four() -> None:
    assert flops.per_token(1000, 0, 0, 0, frozen_base=False) == 6000
    assert flops.per_token(1000, 0, 0, 0, frozen_base=True) == 4000
    assert flops.per_token(1000, 0, 0, 0, frozen_base=True, reached=0.25) == 2500
    # Attention: 12 L d s for all pairs of tokens, half of them masked.
    assert flops.per_token(0, 2, 32, 100, frozen_base=True) == 6 * 2 * 32 * 100


def test_the_context_of_a_token_is_that_of_its_own_example() -> None:
    assert flops.context([100, 100]) == 100
    assert flops.context([1, 99]) == pytest.approx((1 + 99 * 99) / 100)


def test_the_peak_is_a_speed_of_this_machine() -> None:
    assert 1e9 < flops.peak("cpu", torch.float32) < 1e14
