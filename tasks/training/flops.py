"""How much of the machine a training uses: its floating-point operations a token, and what the machine can do at most.

Reads nothing; `peak` runs a short matrix product. Model FLOPs utilisation is tokens a second times `per_token`, over
`peak` (Chowdhery et al. 2022, PaLM, appendix B; operations that are done twice for gradient checkpointing do not count).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.training.recipes import Recipe

_SIZE = {"cuda": 8192, "cpu": 1024}
_REPEATS = {"cuda": 10, "cpu": 4}


@dataclass(frozen=True)
class Shape:
    """What of a model costs time: the weights of its blocks, those of its output layer, blocks, width of attention."""

    block_parameters: int
    head_parameters: int
    blocks: int
    width: int


def per_token(
    parameters: float, layers: int, width: int, mean_tokens: float, frozen_base: bool, reached: float = 1.0
) -> float:
    """Return the operations of one training step for one token.

    A multiply-add counts as two: 2 N forward, 2 N for the gradients of activations, and 2 N for those of the weights, which a
    frozen base does not have (Kaplan et al. 2020, section 2.1; adapters are too small to count). Attention adds 12 L d s, and
    a causal mask halves it. `reached` is the share of the blocks that gradients of activations go through.
    """
    forward = 2 * parameters + 2 * layers * width * mean_tokens
    backward = 2 * parameters + 4 * layers * width * mean_tokens
    return forward + reached * backward + (0 if frozen_base else 2 * parameters)


def token_flops(shape: Shape, recipe: Recipe, mean_tokens: float, answered: float = 1.0) -> float:
    """Return the operations that one token of a training with this recipe takes.

    `answered` is the share of the tokens that the output layer is computed for; where it is not known, all. Adapters on the
    `last_layers` end the way back early; method dpo runs the reference model too.
    """
    weights = shape.block_parameters + shape.head_parameters * answered
    last = recipe.lora.last_layers if recipe.lora else None
    reached = min(1.0, last / shape.blocks) if last else 1.0
    work = per_token(weights, shape.blocks, shape.width, mean_tokens, recipe.tuning != "full", reached)
    if recipe.method == "dpo":
        work += 2 * weights + 2 * shape.blocks * shape.width * mean_tokens
    return work


def context(lengths: Sequence[int]) -> float:
    """Return the mean length of the example that a token stands in: attention costs that much, so long ones weigh more."""
    return sum(length * length for length in lengths) / max(1, sum(lengths))


def shape(config: Any) -> Shape:
    """Return the shape of the model that a configuration describes, by making it without weights.

    The weights of all experts count, so for a mixture of experts the utilisation is too high.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    outside = table.numel() + (0 if config.tie_word_embeddings else head.numel())
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        block_parameters=model.num_parameters() - outside,
        head_parameters=head.numel(),
        blocks=config.num_hidden_layers,
        width=size * config.num_attention_heads,
    )


def peak(device: Any, dtype: Any) -> float:
    """Return the operations a second of one device in large matrix products, the best of some, measured now."""
    import torch

    kind = torch.device(device).type
    size = _SIZE[kind]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(_REPEATS[kind] + 1):  # the first one warms up
        if kind == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        left @ right
        if kind == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
