"""A language model made on the spot: two layers, byte-level tokenizer, chat template; a second to make, no download."""

from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TARGETS = ["q_proj", "v_proj", "down_proj"]


def make_model(folder: Path, seed: int = 1, tied: bool = False, width: int = 32) -> Path:
    """Write model and tokenizer as `from_pretrained` reads them; `tied` has one matrix for both ends."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        tie_word_embeddings=tied,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_adapter(base: Path, folder: Path, seed: int = 2, trained: bool = True) -> Path:
    """Write a LoRA adapter of the model; `trained=False` leaves it as it begins, all B zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM")
    )
    if trained:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return folder


def pair(name: str, question: str, answer: str, source: str = "m", split: str = "train") -> dict[str, Any]:
    """Return a row as `build_dataset` writes it."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    provenance = {"made_by": "test"}
    return {
        "id": name, "messages": messages, "source": source, "origin": "docstrings", "split": split, "provenance": provenance,
    }  # fmt: skip
