"""`gpu_training`: our LoRA recipe on a GPU beside Transformers' trainer with its defaults, and beside the GPU's peak.

Makes models of 1B and 8B parameters on the device (random weights: their values change no speed) and texts of mixed
lengths; downloads nothing. Our side is the real thing: the ranks of the stage `train` with the recipe
`sft_lora_zero2`, packed. Needs one GPU, and disk for the larger model (16 GB). Without a GPU it measures nothing and
says so; its test runs `compare` on the CPU with a shape of a few thousand parameters.
"""

import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.rank_runs import BARE, WORKER, Run, Shape, changed, make_model, rows, train
from benchmarks.result import NotMeasured, Result
from tasks.training.recipes import Recipe, load_recipe

# Sizes of Llama 3.2 1B and Llama 3.1 8B.
SHAPES = {
    "1B": Shape(hidden=2048, intermediate=8192, blocks=16, heads=32, key_heads=8, vocabulary=128256),
    "8B": Shape(hidden=4096, intermediate=14336, blocks=32, heads=32, key_heads=8, vocabulary=128256),
}
OVER_DEFAULTS, OF_PEAK = 2.5, 0.5
ROUNDS, EXAMPLES = 2, 4000
ROOMY = 70  # GB of a GPU in which 8B with LoRA fits with all its activations


def gpu_training() -> Result:
    """On a GPU: useful tokens/s of our LoRA recipe (1B, 8B) over Transformers' defaults, and its share of the peak."""
    memory = gpu_gigabytes()
    if memory is None:
        raise NotMeasured("no GPU was found on this machine. Nothing was measured and nothing is kept.")
    recipe = packed_recipe(load_recipe("sft_lora_zero2"), rows_per_step=16, recompute=memory < ROOMY)
    found = {
        name: compare(shape, recipe, mixed_lengths(EXAMPLES, recipe.data.max_tokens)) for name, shape in SHAPES.items()
    }
    over = {name: ratio(ours, bare) for name, (ours, bare) in found.items()}
    share = {
        name: statistics.median(run.median("flops_utilisation") for run in ours) for name, (ours, _) in found.items()
    }
    return Result(
        figure="; ".join(f"{name}: {over[name]:.2f} x defaults, {share[name]:.0%} of the peak" for name in found),
        bound=f"{OVER_DEFAULTS:g} x, {OF_PEAK:.0%}",
        holds=min(over.values()) >= OVER_DEFAULTS and min(share.values()) >= OF_PEAK,
        details=[
            *(line for name, (ours, bare) in found.items() for line in described(name, ours, bare)),
            f"GPU of {memory:.0f} GB, ours with gradient checkpointing {'on' if memory < ROOMY else 'off'}",
        ],
    )


def packed_recipe(recipe: Recipe, rows_per_step: int, recompute: bool) -> Recipe:
    """Return the recipe for one rank, packed, without checkpoints; all else is as the recipe says.

    Without `recompute` gradient checkpointing is off: a third of the work of a LoRA step, where memory allows.
    """
    return changed(
        recipe,
        data={"validation_rows": 0},
        optimisation={
            "packing": True,
            "epochs": 1,
            "rows_per_step": rows_per_step,
            "gradient_checkpointing": recompute,
        },
        stopping={"evaluate_every_steps": None, "patience": None, "min_improvement": None},
        distribution={"ranks": 1, "nodes": 1},
        checkpoints={"every_steps": 10**9},
    )


def mixed_lengths(count: int, longest: int, seed: int = 0) -> list[int]:
    """Return lognormal lengths (median 180 tokens), as instruction data has them."""
    chance = random.Random(seed)
    return [min(longest, max(16, int(chance.lognormvariate(5.2, 0.8)))) for _ in range(count)]


def compare(shape: Shape, recipe: Recipe, lengths: list[int], rounds: int = ROUNDS) -> tuple[list[Run], list[Run]]:
    """Return runs of our ranks and of Transformers' trainer with its defaults, taken in turns on the same rows."""
    device = recipe.distribution.accelerator
    precision = "bfloat16" if recipe.optimisation.precision == "bf16" else "float32"
    examples = rows(lengths)
    ours: list[Run] = []
    bare: list[Run] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", shape, device, precision)
        for number in range(rounds):
            for module, runs in ((WORKER, ours), (BARE, bare)):
                place = folder / f"{module}-{number}"
                runs.append(train(place, module, folder / "model", recipe, examples, defaults=module == BARE))
    return ours, bare


def ratio(ours: list[Run], bare: list[Run]) -> float:
    """Return our useful tokens a second over theirs, the median of the rounds."""
    return statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in zip(ours, bare, strict=True))


def described(name: str, ours: list[Run], bare: list[Run]) -> list[str]:
    """Return tokens a second, utilisation and memory of both, as lines."""
    found = []
    for who, runs in (("ours", ours), ("defaults", bare)):
        speed = statistics.median(run.tokens_per_second for run in runs)
        words = [f"{name} {who}: {speed:,.0f} useful tokens/s on one GPU"]
        if who == "ours":
            used = statistics.median(run.median("flops_utilisation") for run in runs)
            words.append(f"{used:.1%} of the matrix product's peak in this run")
        if "gpu_memory_gb" in runs[0].lines[-1]:
            words.append(f"peak memory {max(line['gpu_memory_gb'] for run in runs for line in run.lines):.1f} GB")
        found.append(", ".join(words))
    return found


def gpu_gigabytes() -> float | None:
    """Return the memory of the first GPU in GB (10^9 bytes), or None where there is none; asked in a child process."""
    code = "import torch; print(torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(found.stdout) / 1e9 or None
