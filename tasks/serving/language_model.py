"""What the assistant needs of a language model, and what it gets: the one form of the model in this process and of a server's.

Reads tokenizer files. The assistant renders prompts itself, so that prompt and document budget are those of the release
wherever the model runs: a model takes token ids, and tells text. Fails with `ModelError` for a tokenizer without a template.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tasks.errors import ModelError
from tasks.serving.telling import Listener


@dataclass(frozen=True)
class Generated:
    """What a model answered, and what it took. `finish_reason` is `length` at the most tokens, and at the deadline."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    seconds: float


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; temperature 0 takes the most likely one."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()


class LanguageModel(Protocol):
    """A base model with adapters beside each other. Its methods may be called from any thread."""

    reference: str
    base_revision: str
    files: Mapping[str, str]
    """SHA-256 of configuration, tokenizer and the like, as they were when this model was loaded from them."""
    tokenizer: Any
    window: int

    def attach(self, name: str, folder: Path) -> None:
        """Make the adapter in `folder` usable as `name`. Raises ReleaseError when it does not fit."""

    def detach(self, name: str) -> None:
        """Drop an adapter once everything that was begun with it is done. Returns at once."""

    def generate(
        self, adapter: str | None, token_ids: Sequence[int], sampling: Sampling, listener: Listener | None = None
    ) -> "Future[Generated]":
        """Begin a generation; `adapter` None is the base model as it is.

        `listener` is told the text while it is made, and ends it early. One that is gone before its turn comes
        raises `TooLate`.
        """

    def close(self) -> None:
        """Let go of the model after the work at hand."""


def load_tokenizer(reference: str, folder: Path) -> Any:
    """Return the tokenizer in `folder`. Raises ModelError when it has no chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.chat_template is None:
        raise ModelError(
            f"expected a chat template in {reference}, found none. Next: release an instruction-tuned base model."
        )
    return tokenizer


def window_of(config: Any, tokenizer: Any) -> int:
    """Return how many tokens a model with this configuration takes in and gives, together."""
    return int(getattr(config, "max_position_embeddings", 0) or tokenizer.model_max_length)


def ends_of(generation_config: Any, tokenizer: Any) -> list[int]:
    """Return the ids of the tokens that end an answer."""
    ends = getattr(generation_config, "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [ends]
    return sorted({end for end in [*ends, tokenizer.eos_token_id] if end is not None})
