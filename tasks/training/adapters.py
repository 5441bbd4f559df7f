"""The files of what was trained, an adapter or a whole model: the same bytes for the same training.

Reads the folder that PEFT or Transformers saved. Of an adapter it writes `adapter_model.safetensors` and
`adapter_config.json` only; of a model it corrects `config.json`. Fails with `ModelError` when weights are missing or
not finite, or when training left them as they began: then there is nothing to release.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.contracts import Artifact
from tasks.errors import ModelError
from tasks.storage import Storage

if TYPE_CHECKING:
    import torch

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def files_of(outputs: Mapping[str, Artifact], kind: str = "adapter") -> dict[str, Artifact]:
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


def require_loaded(model: Any, name: str, folder: Path) -> None:
    """Prove that every matrix of the file in `folder` is in the model, as its adapter `name`. Raises ModelError.

    PEFT only warns about those it cannot place.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    inside, filed = get_peft_model_state_dict(model, adapter_name=name), load_file(folder / WEIGHTS)
    fitting = [key for key in filed if key in inside and inside[key].shape == filed[key].shape]
    if len(fitting) != len(filed) or len(inside) != len(filed):
        raise ModelError(
            f"expected the adapter {name} to fit the base model, found {len(filed)} matrices of which "
            f"{len(fitting)} fit. Next: use it with the base model it was trained on."
        )


def finish(saved: Path, folder: Path, base_model: str, start: Path | None = None) -> Path:
    """Copy a saved adapter to `folder` in its final form. Raises ModelError.

    PEFT writes the folder of the base model (a path of this machine) and sets in no fixed order. `start` is the
    folder of the adapter that training started from, if it did.
    """
    check(saved / WEIGHTS, start / WEIGHTS if start else None)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(saved / WEIGHTS, folder / WEIGHTS)
    config = json.loads((saved / CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_model
    for name in ("target_modules", "layers_to_transform"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return folder


def check(weights: Path, start: Path | None = None) -> None:
    """Prove that the weights load, are finite, and are not those that training began with. Raises ModelError.

    A new adapter begins with all B zero.
    """
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
    if start is not None and not _differs(tensors, load_file(start)):
        raise _unchanged(weights.name, "the adapter it started from")


def finish_model(saved: Path, base: Path) -> Path:
    """Check a whole trained model against its base, take paths of this machine out, and return its folder. Raises ModelError."""
    check_model(saved, base)
    path = saved / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return saved


def check_model(saved: Path, base: Path) -> None:
    """Prove that a model is whole and finite, and differs from its base. One matrix at a time is in memory. Raises ModelError."""
    import torch

    with ExitStack() as stack:
        found, known = _Weights(saved, stack), _Weights(base, stack)
        tied = {"lm_head.weight"} if _is_tied(base) else set()
        if missing := sorted((known.names() ^ found.names()) - tied):
            raise ModelError(
                f"expected the matrices of the base model after the training, found {len(missing)} on one side only "
                f"({', '.join(missing[:3])}). Next: see the log of the ranks."
            )
        changed = False
        for name in sorted(found.names() & known.names()):
            now, before = found.get(name), known.get(name)
            if now.shape != before.shape or not bool(torch.isfinite(now).all()):
                raise ModelError(
                    f"expected finite weights of shape {tuple(before.shape)} in {name}, found shape {tuple(now.shape)}, or "
                    "some that are not finite. Next: lower learning_rate in the recipe, and look at the training data."
                )
            changed = changed or not torch.equal(now, before.to(now.dtype))
    if not changed:
        raise _unchanged("model", "its base model")


class _Weights:
    """The matrices of a model's folder, in however many files, read one at a time."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        from safetensors import safe_open

        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(
                f"expected safetensors weights in {folder.name}, found none. Next: see the log of the ranks."
            )
        opened = [stack.enter_context(safe_open(path, framework="pt")) for path in files]
        self._owner: dict[str, Any] = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 (it is no dict)

    def names(self) -> set[str]:
        return set(self._owner)

    def get(self, name: str) -> "torch.Tensor":
        found: torch.Tensor = self._owner[name].get_tensor(name)
        return found


def _is_tied(folder: Path) -> bool:
    return bool(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings"))


def _differs(one: "dict[str, torch.Tensor]", other: "dict[str, torch.Tensor]") -> bool:
    import torch

    return one.keys() != other.keys() or any(
        not torch.equal(one[name], other[name].to(one[name].dtype)) for name in one
    )


def _unchanged(name: str, start: str) -> ModelError:
    return ModelError(
        f"expected trained weights in {name}, found those of {start}. "
        "Next: raise learning_rate, or see why no step was taken."
    )
