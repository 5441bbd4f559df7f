"""The model that a rank trains: the base model, and the adapter upon it.

Reads the base model's folder, and the folder of an adapter to start from. Writes nothing. Under ZeRO-3 each rank
keeps only its part of every weight from the start (Transformers does that while the `TrainingArguments` with the
DeepSpeed configuration exist), so the whole never has to fit. Fails with `RecipeError` when a package that the recipe
needs is missing, and with `ModelError` when the adapter to start from does not fit the recipe or the base model.
"""

import importlib.util
from pathlib import Path
from typing import Any

from tasks.errors import ModelError
from tasks.training.adapters import require_loaded
from tasks.training.recipes import Recipe, require_packages


def load_model(base: str, adapter: str | None, recipe: Recipe, stage: int) -> Any:
    """Return the model to train at ZeRO stage `stage`. Raises RecipeError, ModelError."""
    import torch
    from transformers import AutoModelForCausalLM

    require_packages(recipe)
    how = recipe.optimisation
    dtype = torch.bfloat16 if how.precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, attn_implementation=attention(recipe), **quantisation(recipe, dtype)
    )
    model.config.use_cache = False
    if recipe.tuning == "full":
        return model
    if how.gradient_checkpointing and reentrant(stage):
        model.enable_input_require_grads()
    return with_adapter(model, adapter, recipe)


def attention(recipe: Recipe) -> str:
    """Return the attention to use: FlashAttention where the package and the hardware are, else PyTorch's own."""
    from transformers.utils import is_flash_attn_2_available

    flash = recipe.distribution.accelerator == "cuda" and recipe.optimisation.precision == "bf16"
    return "flash_attention_2" if flash and is_flash_attn_2_available() else "sdpa"


def fused_kernels(recipe: Recipe) -> bool:
    """Return whether Liger's kernels (norms, rotations, activations) replace those of the model."""
    return recipe.distribution.accelerator == "cuda" and importlib.util.find_spec("liger_kernel") is not None


def reentrant(stage: int) -> bool:
    """Return which gradient checkpointing to use.

    PyTorch's newer kind compares the weights of both passes, and ZeRO-3 has put them away in between; the older kind
    needs an input that has a gradient, which a frozen base model lacks.
    """
    return stage == 3


def quantisation(recipe: Recipe, dtype: Any) -> dict[str, Any]:
    """Return the arguments that load the base model in four bits, for tuning qlora (Dettmers et al. 2023)."""
    if recipe.tuning != "qlora":
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    place: Any = "cpu" if recipe.distribution.accelerator == "cpu" else torch.cuda.current_device()
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": place}}


def with_adapter(model: Any, start: str | None, recipe: Recipe) -> Any:
    """Return the model with the adapter to train: a new one, or the one in folder `start`. Raises ModelError."""
    from peft import PeftModel, get_peft_model

    from tasks.training.preference_loss import REFERENCE

    if start is None:
        return get_peft_model(model, lora_config(recipe, model.config.num_hidden_layers))
    config = start_config(Path(start), recipe)
    tuned = PeftModel.from_pretrained(model, start, is_trainable=True, config=config)
    require_loaded(tuned, "default", Path(start))
    if recipe.method == "dpo":
        tuned.load_adapter(start, REFERENCE, is_trainable=False)
        tuned.set_adapter("default")
    return tuned


def lora_config(recipe: Recipe, blocks: int) -> Any:
    """Return the recipe's adapter as PEFT describes it, for a model of so many blocks."""
    from peft import LoraConfig

    assert recipe.lora is not None
    last = recipe.lora.last_layers
    return LoraConfig(
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=list(recipe.lora.targets),
        layers_to_transform=list(range(max(0, blocks - last), blocks)) if last else None,
        task_type="CAUSAL_LM",
    )


def start_config(start: Path, recipe: Recipe) -> Any:
    """Return the configuration of the adapter to start from, with the recipe's dropout. Raises ModelError."""
    from peft import LoraConfig

    assert recipe.lora is not None
    config = LoraConfig.from_pretrained(str(start))
    found = {"rank": config.r, "alpha": config.lora_alpha, "targets": sorted(config.target_modules)}
    wanted = {"rank": recipe.lora.rank, "alpha": recipe.lora.alpha, "targets": sorted(recipe.lora.targets)}
    if found != wanted:
        raise ModelError(
            f"expected an adapter to start from with {wanted}, as the recipe says, found {found}. "
            "Next: take a recipe with the same lora part, or start from the base model."
        )
    config.lora_dropout = recipe.lora.dropout
    config.inference_mode = False
    return config
