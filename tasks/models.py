"""Model references, and the one way a model comes from any of them to a local folder.

A reference is one of
- `package:MODULE/PATH`: files inside an installed Python package (a folder, or a `.gguf` file);
- `hub:ORG/NAME@REVISION`: a Hugging Face repository at a pinned commit;
- `s3://BUCKET/FOLDER`: a folder of model files.

`fetch(reference)` returns a folder that `from_pretrained` can load: configuration, tokenizer and
safetensors; `fetch_tokenizer(reference)` one with configuration and tokenizer only, before a GPU is asked
for. Code inside a model folder is never run (`trust_remote_code` stays off). Writes below the cache folder, whose
bytes are compared with their digests (`tasks.model_cache`). Fails with `ModelError` for a malformed reference,
an unpinned revision, or a folder without weights.
"""

import hashlib
import importlib.util
import logging
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from tasks import model_cache
from tasks.errors import ModelError, ServiceUnavailable
from tasks.storage import Storage, file_digest

log = logging.getLogger(__name__)
HUB = re.compile(r"^hub:(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{7,40})$")
_FORMS = "package:MODULE/PATH, hub:ORG/NAME@COMMIT or s3://BUCKET/FOLDER"


# Never fetched for a tokenizer; what is larger than so many bytes is none of its files either.
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx")
_LARGEST_SMALL_FILE = 100_000_000
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*/*.json"]


def fetch(reference: str, cache: Path, storage: Storage | None = None) -> Path:
    """Return a local folder with the model's files, fetching and converting it once. Raises ModelError."""
    if reference.startswith("package:"):
        source = package_path(reference)
        if source.suffix == ".gguf":
            return model_cache.once(
                cache,
                f"{source.stem}-{file_digest(source)[:12]}",
                lambda folder: _convert_gguf(source, folder),
            )
        return require_weights(source, reference)
    if reference.startswith("s3://"):
        store = storage or Storage()
        listing = list(store.list(reference.rstrip("/") + "/"))
        if not listing:
            raise ModelError(
                f"expected model files below {reference}, found none. Next: upload them, or correct the reference."
            )
        folder = _downloaded(store, reference, cache, listing)
        return require_weights(folder, reference)
    if match := HUB.match(reference):
        return require_weights(_snapshot(reference, match, cache, [*_SMALL_FILES, "*.safetensors"]), reference)
    raise no_reference(reference)


def fetch_tokenizer(reference: str, cache: Path, storage: Storage | None = None) -> Path:
    """Return a local folder with the model's configuration and tokenizer, without its weights where it can. Raises ModelError."""
    if reference.startswith("package:"):
        source = package_path(reference)
        # A GGUF file holds its tokenizer between the weights: the copy that training needs anyway.
        return fetch(reference, cache, storage) if source.suffix == ".gguf" else _require_config(source, reference)
    if reference.startswith("s3://"):
        store = storage or Storage()
        listing = list(store.list(reference.rstrip("/") + "/"))
        small = [
            (uri, size, etag) for uri, size, etag in listing if not is_weights(uri) and size <= _LARGEST_SMALL_FILE
        ]
        if not any(uri.endswith(".safetensors") for uri, _size, _etag in listing):
            raise _no_weights(reference)
        return _require_config(_downloaded(store, reference, cache, small), reference)
    if match := HUB.match(reference):
        return _require_config(_snapshot(reference, match, cache, _SMALL_FILES), reference)
    raise no_reference(reference)


def is_weights(name: str) -> bool:
    """Return whether a file of this name holds weights, of any format: all others are read for configuration and tokenizer."""
    return name.lower().endswith(_WEIGHTS)


def _downloaded(store: Storage, reference: str, cache: Path, listing: list[tuple[str, int, str]]) -> Path:
    """Return the listed objects as a folder of the cache."""
    key = hashlib.sha256(repr(sorted(listing)).encode()).hexdigest()[:16]
    uris = [uri for uri, _size, _etag in listing]
    return model_cache.once(cache, f"s3-{key}", lambda target: _download(store, reference, uris, target))


def _snapshot(reference: str, match: re.Match[str], cache: Path, patterns: list[str]) -> Path:
    """Return the files of a hub model that match the patterns. Raises ServiceUnavailable."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def download() -> Path:
        path = snapshot_download(
            match["name"], revision=match["revision"], cache_dir=str(cache / "hub"), allow_patterns=patterns
        )
        return Path(path)

    try:
        folder = download()
        with model_cache.locked(cache / f"hub-{match['revision']}.lock"):
            record = cache / f"hub-{match['revision']}.digests.json"
            if wrong := model_cache.damaged_downloads(folder, record):
                log.warning("model cache: %s: %s: other bytes than the hub's: downloaded anew", reference, wrong)
                for path in wrong:
                    path.resolve().unlink()
                    path.unlink()
                folder = download()
            if wrong and model_cache.damaged_downloads(folder, record):
                raise ServiceUnavailable(
                    f"expected the files of {reference} with the hub's digests, found other bytes twice. "
                    "Next: see what stands between here and the hub; mirror the model to s3:// and name that."
                )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ServiceUnavailable(
            f"expected the model hub to answer for {reference}, found {str(error)[:200]}. "
            "Next: check the network and HF_HUB_OFFLINE, or mirror the model to s3:// and name that."
        ) from error
    return folder


def _no_weights(reference: str) -> ModelError:
    return ModelError(
        f"expected safetensors weights in the model folder of {reference}, found none (pickled weights are not loaded). "
        "Next: convert the model with save_pretrained(safe_serialization=True)."
    )


def no_reference(reference: str) -> ModelError:
    """Return the error for what is no model reference."""
    hint = " A hub model must be pinned to a commit." if reference.startswith("hub:") else ""
    return ModelError(f"expected a model reference ({_FORMS}), found {reference!r}.{hint} Next: correct the setting.")


def revision(reference: str, folder: Path) -> str:
    """Return what pins the model's bytes: the hub commit, or a digest of the weight files' digests."""
    if match := HUB.match(reference):
        return match["revision"]
    return revision_of({str(path.relative_to(folder)): file_digest(path) for path in folder.rglob("*.safetensors")})


def revision_of(digests: Mapping[str, str]) -> str:
    """Return what pins the weights of a folder, from the SHA-256 of its files by name; only weight files count."""
    weights = sorted((name for name in digests if name.endswith(".safetensors")), key=PurePosixPath)
    return hashlib.sha256("".join(digests[name] for name in weights).encode()).hexdigest()


def require_weights(folder: Path, reference: str) -> Path:
    """Return `folder` if it holds a configuration and safetensors weights. Raises ModelError."""
    _require_config(folder, reference)
    if not any(folder.rglob("*.safetensors")):
        raise _no_weights(reference)
    return folder


def _require_config(folder: Path, reference: str) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"expected config.json in the model folder of {reference}, found none. Next: point at the folder that holds it."
        )
    return folder


def package_path(reference: str) -> Path:
    """Return the file or folder that a `package:` reference names. Raises ModelError."""
    module, _, inner = reference.removeprefix("package:").partition("/")
    # find_spec does not import: some weight packages import tools that are not installed here.
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ModelError(
            f"expected an installed package for {reference}, found none. Next: pip install it, or name another model."
        )
    path = Path(spec.origin).parent / inner
    if not path.exists():
        raise ModelError(
            f"expected {inner!r} in the package of {reference}, found nothing there. Next: correct the path."
        )
    return path


def _download(storage: Storage, reference: str, uris: list[str], folder: Path) -> None:
    prefix = reference.rstrip("/") + "/"
    for uri in uris:
        name = uri.removeprefix(prefix)
        target = (folder / name).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise ModelError(f"expected file names inside {reference}, found {name!r}. Next: remove that object.")
        target.parent.mkdir(parents=True, exist_ok=True)
        storage.download(uri, target)


def _convert_gguf(source: Path, folder: Path) -> None:
    """Write a plain copy (bfloat16 safetensors, tokenizer, chat template) of a GGUF file.

    Transformers dequantises GGUF while loading, but marks the result as quantised, which trainers
    refuse; so the weights are moved into a model made from the same configuration without that mark.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantised = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.bfloat16)
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder, safe_serialization=True)
    AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(folder)
