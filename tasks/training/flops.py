"""How much of the machine a training uses: its floating-point operations a token, and what the machine can do at most.

Reads nothing; `peak` runs a short matrix product. Model FLOPs utilisation is tokens a second times `per_token`, over
`peak` (Chowdhery et al. 2022, PaLM, appendix B; operations that are done twice for gradient checkpointing do not count).
"""

import time
from typing import Any

_SIZE = {"cuda": 8192, "cpu": 1024}
_REPEATS = {"cuda": 10, "cpu": 4}


def per_token(parameters: int, layers: int, width: int, mean_tokens: float, frozen_base: bool) -> float:
    """Return the operations of one training step for one token.

    A multiply-add counts as two: 2 N forward, 2 N for the gradients of activations, and 2 N for those of the weights, which a
    frozen base does not have (adapters are too small to count). Attention adds 12 L d s, and a causal mask halves it.
    """
    passes = 4 if frozen_base else 6
    return passes * parameters + 6 * layers * width * mean_tokens


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
