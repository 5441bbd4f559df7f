"""Text to vectors: a sentence-transformers folder, run by transformers on the CPU.

`load_embedder(settings)` reads the model named by `MILLRACE_EMBEDDER` (tasks.models) and returns an
Embedder; writes nothing. Only what it can honour exactly is loaded: a transformer, mean or CLS pooling,
normalisation. Fails with `ModelError` for any other folder.

The identity of an embedder (`Embedder.name`) holds the reference, a digest of the weights and the
precision, because vectors of different precision are not equal. bf16 is used where the CPU is faster at
it (about three times, cosine against fp32 above 0.999); `MILLRACE_EMBEDDER_PRECISION` fixes it where
machines differ. Texts are sorted by length and packed into batches of a token budget, so that
little is spent on padding.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tasks.errors import ModelError
from tasks.models import fetch, revision
from tasks.settings import Settings
from tasks.storage import Storage

if TYPE_CHECKING:
    import numpy
    from tokenizers import Tokenizer

Precision = Literal["fp32", "bf16"]
BATCH_TOKENS = 2048  # measured: larger batches leave the cache, smaller ones pay for calls
_KNOWN_MODULES = {"Transformer", "Pooling", "Normalize"}


class Embedder:
    """A loaded model. Vectors are float32 and of length 1, so that a dot product is the cosine."""

    def __init__(self, folder: Path, name: str, precision: Precision, threads: int | None = None) -> None:
        import torch
        import transformers

        if threads is not None:
            torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self.name = name
        self.tokenizer = load_tokenizer(folder)
        self.max_tokens = max_tokens(folder)
        self.truncated = 0  # texts cut by encode because they were longer than max_tokens
        self._pooling = _pooling(folder)
        self._padding = _padding_id(folder)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._model: Any = transformers.AutoModel.from_pretrained(str(folder), dtype=dtype, trust_remote_code=False)
        self._model.eval()
        self.dimensions = int(self._model.config.hidden_size)

    def encode(self, texts: Sequence[str]) -> "numpy.ndarray[Any, numpy.dtype[numpy.float32]]":
        """Return one vector a text, in order: float32, shape (texts, dimensions), normalised."""
        import numpy

        vectors = numpy.empty((len(texts), self.dimensions), dtype=numpy.float32)
        for positions, part in self.encode_batches(texts):
            vectors[positions] = part
        return vectors

    def encode_batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], Any]]:
        """Yield (positions, their vectors) batch by batch, longest texts first, for callers that show progress."""
        encoded = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]
        self.truncated += sum(len(ids) > self.max_tokens for ids in encoded)
        encoded = [self._cut(ids) for ids in encoded]
        for positions in token_batches([len(ids) for ids in encoded], BATCH_TOKENS):
            yield positions, self._forward([encoded[position] for position in positions])

    def _cut(self, ids: list[int]) -> list[int]:
        # The last token is the closing special token: it stays.
        return ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]]

    def _forward(self, batch: list[list[int]]) -> "numpy.ndarray[Any, numpy.dtype[numpy.float32]]":
        import torch

        width = max(len(ids) for ids in batch)
        ids = torch.tensor([row + [self._padding] * (width - len(row)) for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            if self._pooling == "mean":
                weights = mask.unsqueeze(-1).float()
                pooled = (states * weights).sum(1) / weights.sum(1)
            else:
                pooled = states[:, 0]
            vectors: numpy.ndarray[Any, numpy.dtype[numpy.float32]] = torch.nn.functional.normalize(
                pooled, dim=1
            ).numpy()
        return vectors


def load_embedder(settings: Settings, name: str | None = None, threads: int | None = None) -> Embedder:
    """Return the configured embedder; ModelError when `name` (an index version's embedder) is another model.

    `threads` limits the CPU threads of this process (default: all cores): two processes with as many threads as
    cores spend twice the CPU time on the same work.
    """
    folder = _folder(settings)
    identity = embedder_name(settings)
    if name is not None and name != identity:
        reference, _, precision = name.rpartition("+")
        if reference != identity.rpartition("+")[0] or precision not in get_args(Precision):
            raise ModelError(
                f"expected the embedder {name}, found {identity}. Next: set MILLRACE_EMBEDDER to it, or run sync_knowledge."
            )
        identity = name
    return Embedder(folder, identity, "bf16" if identity.endswith("+bf16") else "fp32", threads)


def embedder_name(settings: Settings) -> str:
    """Return the identity `REFERENCE@DIGEST+PRECISION` without loading the model."""
    reference = settings.embedder.split("@")[0]
    return f"{reference}@{revision(settings.embedder, _folder(settings))[:16]}+{precision(settings)}"


def embedder_dimensions(settings: Settings) -> int:
    """Return the length of the vectors without loading the model."""
    return int(_json(_folder(settings) / "config.json")["hidden_size"])


def precision(settings: Settings) -> Precision:
    """Return the configured precision; for `auto`, bf16 where this CPU is faster at it, else fp32.

    It is read from the CPU's flags, not timed: on a busy machine a timing would change the identity.
    """
    if settings.embedder_precision != "auto":
        return settings.embedder_precision
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:  # not Linux: no flags to read
        return "fp32"
    # Measured: avx512_bf16 is four times fp32 on AMD; on Intel without AMX it is slower than fp32.
    return "bf16" if "amx_bf16" in words or {"AuthenticAMD", "avx512_bf16"} <= words else "fp32"


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield positions in batches of similar length whose padded size stays within `budget` tokens, longest first."""
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    start = 0
    while start < len(order):
        size = max(1, budget // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def load_tokenizer(folder: Path) -> "Tokenizer":
    """Return the folder's fast tokenizer, without truncation and padding. Raises ModelError."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"expected tokenizer.json in {folder.name}, found none. Next: save a fast tokenizer with it.")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenizer_of(settings: Settings) -> "tuple[Tokenizer, int]":
    """Return the embedder's tokenizer and its largest input, without loading the model."""
    folder = _folder(settings)
    return load_tokenizer(folder), max_tokens(folder)


def max_tokens(folder: Path) -> int:
    """Return the model's largest input in tokens, special tokens included."""
    configured = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    return int(configured or _json(folder / "config.json")["max_position_embeddings"])


def _folder(settings: Settings) -> Path:
    storage = Storage(settings.s3_endpoint_url) if settings.embedder.startswith("s3://") else None
    return fetch(settings.embedder, settings.cache_dir, storage)


def _padding_id(folder: Path) -> int:
    return int(_json(folder / "config.json").get("pad_token_id") or 0)


def _pooling(folder: Path) -> Literal["mean", "cls"]:
    """Return how token states become one vector. Raises ModelError for a folder that asks for more than we do."""
    modules = json.loads((folder / "modules.json").read_text()) if (folder / "modules.json").is_file() else []
    kinds = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    prompts = {k: v for k, v in (_json(folder / "config_sentence_transformers.json").get("prompts") or {}).items() if v}
    if set(kinds) - _KNOWN_MODULES or prompts:
        raise ModelError(
            f"expected an embedder of {sorted(_KNOWN_MODULES)} without prompts, found {sorted(kinds)}, prompts {prompts}. "
            "Next: choose another embedder."
        )
    if "Pooling" not in kinds:
        raise ModelError(
            f"expected a sentence-transformers folder (modules.json with Pooling) in {folder.name}, found {sorted(kinds)}. "
            "Next: choose an embedder, not a language model."
        )
    config = _json(folder / kinds["Pooling"] / "config.json")
    # Older folders hold one flag a mode, newer ones a name.
    modes = {
        name.removeprefix("pooling_mode_") for name, on in config.items() if on is True and "pooling_mode_" in name
    }
    if isinstance(config.get("pooling_mode"), str):
        modes.add(config["pooling_mode"])
    if modes & {"mean", "mean_tokens"} and len(modes) == 1:
        return "mean"
    if modes & {"cls", "cls_token"} and len(modes) == 1:
        return "cls"
    raise ModelError(f"expected mean or CLS pooling, found {sorted(modes)}. Next: choose another embedder.")


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return value
