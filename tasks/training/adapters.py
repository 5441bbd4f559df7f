"""The files of a trained adapter: safetensors and a configuration, the same bytes for the same training.

Reads the folder that PEFT saved. Writes `adapter_model.safetensors` and `adapter_config.json` only. Fails
with `ModelError` when the weights are not finite, or when training left the adapter as it began: then
there is nothing to release.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tasks.contracts import Artifact
from tasks.errors import ModelError
from tasks.storage import Storage

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def files_of(
    outputs: Mapping[str, Artifact], kind: Literal["adapter", "model"] | str = "adapter"
) -> dict[str, Artifact]:
    """Return the trained files among the outputs of `train`, by their name inside their folder."""
    return {name.removeprefix(f"{kind}/"): item for name, item in outputs.items() if name.startswith(f"{kind}/")}


def read_folder(storage: Storage, uri: str) -> dict[str, Artifact]:
    """Return the files of an adapter that a training starts from. Raises ModelError when they are not there."""
    found = {}
    for name in (CONFIG, WEIGHTS):
        place = f"{uri.rstrip('/')}/{name}"
        if not storage.exists(place):
            raise ModelError(
                f"expected an adapter at {uri}, found no {name} there. Next: correct the option --adapter."
            )
        body = storage.get_bytes(place)
        found[name] = Artifact(uri=place, sha256=hashlib.sha256(body).hexdigest(), bytes=len(body))
    return found


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


def finish_model(saved: Path, base: Path) -> Path:
    """Return the folder of a model whose weights were all trained, when they are finite and not the base's. Raises ModelError."""
    import torch
    from safetensors import safe_open

    before = {name: path for path in base.glob("*.safetensors") for name in _names(path)}
    changed, files = False, sorted(saved.glob("*.safetensors"))
    for path in files:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no dict)
                value = tensors.get_tensor(name)
                if not bool(torch.isfinite(value).all()):
                    raise ModelError(
                        f"expected finite weights, found some of {name} that are not. Next: lower learning_rate."
                    )
                if not changed and name in before:
                    with safe_open(before[name], framework="pt") as old:
                        changed = not torch.equal(value.float(), old.get_tensor(name).float())
    if not files or not changed:
        raise ModelError(
            f"expected trained weights in {saved.name}, found {'those of the base model' if files else 'none'}. "
            "Next: raise learning_rate, or see why no step was taken."
        )
    return saved


def _names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as tensors:
        return list(tensors.keys())
