"""A cross-encoder that reads question and chunk together and says how well one answers the other.

`load_reranker(settings)` reads the model named by `MILLRACE_RERANKER` (tasks.models); writes nothing. The weights are
loaded at the first question, or by `load`. Fails with `ModelError` for a model that does not give exactly one number a pair.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tasks.errors import ModelError, SettingsError
from tasks.knowledge.embedders.base import token_batches
from tasks.models import fetch
from tasks.settings import Settings
from tasks.storage import Storage

BATCH_TOKENS = 2048


class Reranker:
    """A sequence classifier with one output. `truncated` counts the pairs whose chunk was cut to fit."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.truncated = 0
        self._folder = folder

    def load(self) -> None:
        """Load the weights now: whoever answers questions learns before the first one that there is no such model. Raises ModelError."""
        assert self._model is not None and self._tokenizer is not None

    @cached_property
    def _model(self) -> Any:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        config = transformers.AutoConfig.from_pretrained(str(self._folder), trust_remote_code=False)
        heads = config.architectures or []
        if config.num_labels != 1 or not any(name.endswith("ForSequenceClassification") for name in heads):
            raise ModelError(
                f"expected a cross-encoder with one output (ForSequenceClassification) for {self.name}, found {heads} with "
                f"{config.num_labels}. Next: correct MILLRACE_RERANKER."
            )
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            str(self._folder), config=config, trust_remote_code=False
        )
        return model.eval()

    @cached_property
    def _tokenizer(self) -> Any:
        import transformers

        return transformers.AutoTokenizer.from_pretrained(str(self._folder), trust_remote_code=False)

    def score(self, question: str, texts: Sequence[str]) -> list[float]:
        """Return the model's number for each (question, text), in order; more is better. Raises ModelError.

        A pair that is too long loses the end of the longer of the two, which is the text unless the question is longer.
        """
        import torch

        if not texts:
            return []
        model, encoded = self._model, self._encoded(question, texts)
        scores = [0.0] * len(texts)
        for positions in token_batches([len(row["input_ids"]) for row in encoded], BATCH_TOKENS):
            batch = self._tokenizer.pad([encoded[position] for position in positions], return_tensors="pt")
            with torch.inference_mode():
                logits = model(**batch).logits[:, 0].float().tolist()
            for position, value in zip(positions, logits, strict=True):
                scores[position] = value
        return scores

    def _encoded(self, question: str, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        # Without this the largest input of the model is what the tokenizer says, which some folders leave open.
        most = min(int(self._tokenizer.model_max_length), int(self._model.config.max_position_embeddings))
        whole = self._tokenizer([question] * len(texts), list(texts), truncation=False, verbose=False)
        cut = self._tokenizer([question] * len(texts), list(texts), truncation="longest_first", max_length=most)
        self.truncated += sum(len(ids) > most for ids in whole["input_ids"])
        return [{name: values[row] for name, values in cut.items()} for row in range(len(texts))]


def load_reranker(settings: Settings) -> Reranker:
    """Return the configured cross-encoder. Raises SettingsError when none is named, ModelError when it is none."""
    if settings.reranker is None:
        raise SettingsError("expected MILLRACE_RERANKER, found none. Next: name a cross-encoder, or search without.")
    storage = Storage(settings.s3_endpoint_url) if settings.reranker.startswith("s3://") else None
    return Reranker(fetch(settings.reranker, settings.cache_dir, storage), settings.reranker)
