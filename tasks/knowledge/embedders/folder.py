"""What a sentence-transformers folder says: tokenizer, pooling, prompts, lengths; its weights are not read here.

Reads JSON files of a local folder, writes nothing. Only what can be honoured exactly is accepted: a transformer, mean or
CLS pooling, normalisation, and prompts for questions and for documents. Fails with `ModelError` for any other folder.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tasks.errors import ModelError
from tasks.storage import file_digest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Kind = Literal["document", "query"]
Pooling = Literal["mean", "cls"]
NO_PROMPTS: Mapping[Kind, str] = {"document": "", "query": ""}
_KNOWN_MODULES = {"Transformer", "Pooling", "Normalize"}
_WHERE_SAVED = ("transformers_version", "_name_or_path")  # of config.json: tells nothing of the vectors
# As sentence-transformers looks them up: encode_query and encode_document.
_PROMPT_NAMES: Mapping[Kind, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}


@dataclass(frozen=True)
class ModelFolder:
    """An embedder's folder, as far as it can be told without its weights."""

    path: Path
    tokenizer: "Tokenizer"
    max_tokens: int
    dimensions: int
    padding_id: int
    pooling: Pooling
    prompts: Mapping[Kind, str]


def read_folder(path: Path) -> ModelFolder:
    """Return what the folder says. Raises ModelError for a folder that asks for more than we do."""
    config = _json(path / "config.json")
    return ModelFolder(
        path=path,
        tokenizer=load_tokenizer(path),
        max_tokens=max_tokens(path),
        dimensions=dimensions_of(path),
        padding_id=int(config.get("pad_token_id") or 0),
        pooling=pooling_of(path),
        prompts=prompts_of(path),
    )


def load_tokenizer(folder: Path) -> "Tokenizer":
    """Return the folder's fast tokenizer, without truncation and padding. Raises ModelError."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_tokenizer_file(folder)))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenizer_sha256(folder: Path) -> str:
    """Return the digest of the folder's fast tokenizer. Raises ModelError."""
    return file_digest(_tokenizer_file(folder))


def _tokenizer_file(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"expected tokenizer.json in {folder.name}, found none. Next: save a fast tokenizer with it.")
    return path


def beside_weights(folder: Path) -> dict[str, Any]:
    """Return what decides the vectors besides the weights. Not Normalize: all vectors are normalised. Raises ModelError."""
    config = _json(folder / "config.json")
    return {
        "config": {key: value for key, value in config.items() if key not in _WHERE_SAVED},
        "tokenizer": tokenizer_sha256(folder),
        "max_tokens": max_tokens(folder),
        "pooling": pooling_of(folder),
        "prompts": prompts_of(folder),
    }


def max_tokens(folder: Path) -> int:
    """Return the model's largest input in tokens, special tokens included. Raises ModelError."""
    configured = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    found = configured or _json(folder / "config.json").get("max_position_embeddings")
    if not found:
        raise ModelError(
            f"expected max_seq_length or max_position_embeddings in the configuration of {folder.name}, found neither. "
            "Next: write sentence_bert_config.json with max_seq_length."
        )
    return int(found)


def dimensions_of(folder: Path) -> int:
    """Return the length of the vectors. Raises ModelError."""
    found = _json(folder / "config.json").get("hidden_size")
    if not found:
        raise ModelError(
            f"expected hidden_size in config.json of {folder.name}, found none. Next: choose another embedder."
        )
    return int(found)


def prompts_of(folder: Path) -> dict[Kind, str]:
    """Return what is put before a text of each kind; mostly nothing."""
    config = _json(folder / "config_sentence_transformers.json")
    named: dict[str, str] = config.get("prompts") or {}
    default = named.get(config.get("default_prompt_name") or "", "")
    return {
        kind: next((named[name] for name in _PROMPT_NAMES[kind] if named.get(name)), default) for kind in get_args(Kind)
    }


def pooling_of(folder: Path) -> Pooling:
    """Return how token states become one vector. Raises ModelError."""
    modules = json.loads((folder / "modules.json").read_text()) if (folder / "modules.json").is_file() else []
    kinds = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    if set(kinds) - _KNOWN_MODULES:
        raise ModelError(
            f"expected an embedder of {sorted(_KNOWN_MODULES)}, found {sorted(kinds)}. Next: choose another embedder."
        )
    if "Pooling" not in kinds:
        raise ModelError(
            f"expected a sentence-transformers folder (modules.json with Pooling) in {folder.name}, found {sorted(kinds)}. "
            "Next: choose an embedder, not a language model."
        )
    config = _json(folder / kinds["Pooling"] / "config.json")
    if config.get("include_prompt") is False and any(prompts_of(folder).values()):
        raise ModelError(
            "expected pooling over the prompt too, found include_prompt: false. Next: choose another embedder."
        )
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
