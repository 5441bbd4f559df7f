"""The files of a trained adapter: safetensors and a configuration, the same bytes for the same training.

Reads the folder that PEFT saved. Writes `adapter_model.safetensors` and `adapter_config.json` only. Fails
with `ModelError` when the weights are not finite, or when training left the adapter as it began: then
there is nothing to release.
"""

import json
import shutil
from pathlib import Path

from tasks.errors import ModelError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def finish(saved: Path, folder: Path, base_model: str) -> Path:
    """Copy a saved adapter to `folder` in its final form. Raises ModelError.

    PEFT writes the folder of the base model (a path of this machine) and sets in no fixed order.
    """
    check(saved / WEIGHTS)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(saved / WEIGHTS, folder / WEIGHTS)
    config = json.loads((saved / CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_model
    for name in ("target_modules", "layers_to_transform"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return folder


def check(weights: Path) -> None:
    """Prove that the weights load, are finite, and differ from where LoRA starts (all B are zero). Raises ModelError."""
    import torch
    from safetensors.torch import load_file

    if not weights.is_file():
        raise ModelError(f"expected {weights.name} after the training, found none. Next: see the log of the ranks.")
    tensors = load_file(weights)
    second = [value for name, value in tensors.items() if ".lora_B." in name]
    if not second or not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise ModelError(
            f"expected finite LoRA matrices in {weights.name}, found {len(second)}, or some that are not finite. "
            "Next: lower learning_rate in the recipe, and look at the training data."
        )
    if not any(bool(value.any()) for value in second):
        raise ModelError(
            f"expected a trained adapter in {weights.name}, found one that is all zero, as it began. "
            "Next: raise learning_rate, or see why no step was taken."
        )
