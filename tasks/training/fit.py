"""Does a training fit together: context and maximum length, chat template, base model and adapter?

Reads the base model's configuration and tokenizer (no weights), and the configuration and the header of an adapter's
weights. Writes nothing. Fails with `ModelError` or `RecipeError`, before anybody asks for a GPU.
"""

import json
import struct
from pathlib import Path
from typing import Any

from tasks.errors import ManifestError, ModelError, RecipeError
from tasks.storage import Storage
from tasks.training.adapters import CONFIG, WEIGHTS
from tasks.training.recipes import Recipe

Shapes = dict[str, tuple[int, ...]]
_PREFIX = "base_model.model."
_HEADER_LIMIT = 100_000_000


def base_config(folder: Path, reference: str) -> Any:
    """Return the base model's configuration. Raises ModelError for one that Transformers does not know."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(
            f"expected a configuration that Transformers knows in {reference}, found {str(error)[:200]}. "
            "Next: use another base model, or a newer Transformers."
        ) from error


def base_shapes(config: Any, reference: str) -> Shapes:
    """Return the shape of every weight of the base model, without any weight. Raises ModelError."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ModelError(
            f"expected a causal language model in {reference}, found {str(error)[:200]}. Next: use another base model."
        ) from error
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def load_tokenizer(folder: Path, reference: str, recipe: Recipe) -> Any:
    """Return the tokenizer. Raises ModelError when there is none, or none with a chat template where one is needed."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise ModelError(
            f"expected a tokenizer in {reference}, found {str(error)[:200]}. Next: add tokenizer.json to the model."
        ) from error
    if recipe.method != "pretrain" and not tokenizer.chat_template:
        raise ModelError(
            f"expected a tokenizer with a chat template in {reference}, found none: nobody can tell how it was taught to "
            "take turns. Next: use the instruct variant of the model, or method pretrain."
        )
    return tokenizer


def require_context(config: Any, recipe: Recipe, reference: str) -> int | None:
    """Return the model's context, None where its configuration names none. Raises RecipeError when rows are longer."""
    text = config.get_text_config()
    found = getattr(text, "max_position_embeddings", None)
    if found is not None and recipe.data.max_tokens > found:
        raise RecipeError(
            f"expected data.max_tokens of at most {found}, the context of {reference}, found {recipe.data.max_tokens}. "
            "Next: lower it in the recipe, or take a base model with a longer context."
        )
    return int(found) if found is not None else None


def require_targets(shapes: Shapes, recipe: Recipe, reference: str) -> None:
    """Prove that every layer of lora.targets exists: PEFT takes those it finds, and is silent about the rest. Raises RecipeError."""
    modules = {name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2}
    missing = [
        target
        for target in (recipe.lora.targets if recipe.lora is not None else ())
        if not any(module == target or module.endswith(f".{target}") for module in modules)
    ]
    if missing:
        inside = sorted({module.rpartition(".")[2] for module in modules if ".layers." in module or ".h." in module})
        raise RecipeError(
            f"expected layers of {reference} in lora.targets, found {', '.join(missing)}, which it does not have. "
            f"Next: name some of {', '.join(inside or sorted(modules)[:20])} in the recipe."
        )


def require_machines(recipe: Recipe, gpus_per_node: int, nodes: int, largest: int) -> None:
    """Prove that the machines asked for are those of the recipe, on a pool whose nodes have up to `largest` GPUs. Raises RecipeError."""
    wanted = recipe.distribution
    if nodes != wanted.nodes:
        raise RecipeError(
            f"expected {wanted.nodes} nodes as the recipe says (distribution.nodes), found {nodes}. Next: start fine_tune with "
            f"nodes {wanted.nodes}, or correct the recipe."
        )
    if wanted.accelerator == "cuda" and wanted.ranks not in {"all", gpus_per_node}:
        raise RecipeError(
            f"expected {wanted.ranks} GPUs on each node as the recipe says (distribution.ranks), found {gpus_per_node}. "
            f"Next: start fine_tune with gpus {wanted.ranks}, or correct the recipe."
        )
    if wanted.accelerator == "cuda" and recipe.evaluation.gpus > largest:
        raise RecipeError(
            f"expected evaluation.gpus of at most {largest}, the GPUs of one node (MILLRACE_GPUS_PER_NODE), found "
            f"{recipe.evaluation.gpus}. Next: lower it in the recipe, or correct the setting."
        )


def require_adapter(storage: Storage, adapter: str, base_model: str, shapes: Shapes, recipe: Recipe) -> None:
    """Prove that an adapter in S3 belongs to this base model and this recipe. Raises ModelError."""
    try:
        config = json.loads(storage.get_bytes(f"{adapter.rstrip('/')}/{CONFIG}"))
        found = header(storage, f"{adapter.rstrip('/')}/{WEIGHTS}")
    except (ManifestError, ValueError) as error:
        raise ModelError(
            f"expected an adapter ({CONFIG}, {WEIGHTS}) at {adapter}, found {str(error)[:200]}. Next: correct --adapter."
        ) from error
    named = str(config.get("base_model_name_or_path") or "")
    if named and _repository(named) != _repository(base_model):
        raise ModelError(
            f"expected an adapter of {base_model}, found one of {named}. Next: name that base model, or another adapter."
        )
    lora = recipe.lora
    if lora is None:
        raise ModelError(
            f"expected no adapter where tuning is full, found {adapter}. Next: leave --adapter out, or take a LoRA recipe."
        )
    if (rank := config.get("r")) != lora.rank:
        raise ModelError(
            f"expected an adapter of rank {lora.rank} as the recipe says, found {rank}. Next: set lora.rank to {rank}."
        )
    if (alpha := config.get("lora_alpha")) != lora.alpha:
        raise ModelError(
            f"expected an adapter of lora.alpha {lora.alpha} as the recipe says, found {alpha}. Next: set lora.alpha to {alpha}."
        )
    if set(config.get("target_modules") or ()) != set(lora.targets):
        raise ModelError(
            f"expected an adapter of the recipe's lora.targets {sorted(lora.targets)}, found {config.get('target_modules')}. "
            "Next: name the same layers in the recipe."
        )
    if problems := misfits(found, shapes):
        raise ModelError(
            f"expected the adapter's matrices to fit {base_model}, found {len(problems)} that do not: {problems[0]}. "
            "Next: name the base model it was trained on."
        )


def misfits(adapter: Shapes, base: Shapes) -> list[str]:
    """Return which LoRA matrices do not fit the layer they belong to, or belong to none."""
    problems = []
    for name, shape in sorted(adapter.items()):
        layer, mark, _rest = name.removeprefix(_PREFIX).partition(".lora_")
        weight = base.get(f"{layer}.weight")
        if not mark:
            continue
        if weight is None:
            problems.append(f"{layer} is no layer of the base model")
        elif ".lora_A." in name and shape[-1] != weight[1]:
            problems.append(f"{name} takes {shape[-1]} values, the layer {weight[1]}")
        elif ".lora_B." in name and shape[0] != weight[0]:
            problems.append(f"{name} gives {shape[0]} values, the layer {weight[0]}")
    return problems if adapter else ["it has no matrices"]


def header(storage: Storage, uri: str) -> Shapes:
    """Return the shapes that a safetensors file names in its header; the weights stay where they are. Raises ValueError."""
    start = storage.get_start(uri, 8)
    if len(start) < 8:
        raise ValueError(f"{len(start)} bytes, no safetensors file")
    (length,) = struct.unpack("<Q", start)
    if length > _HEADER_LIMIT:
        raise ValueError(f"a header of {length} bytes, no safetensors file")
    named = json.loads(storage.get_start(uri, 8 + length)[8:])
    return {name: tuple(entry["shape"]) for name, entry in named.items() if name != "__metadata__"}


def _repository(reference: str) -> str:
    """Return what two references to the same model have in common: a hub model with or without its revision."""
    return reference.removeprefix("hub:").partition("@")[0].rstrip("/")
