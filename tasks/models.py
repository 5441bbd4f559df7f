"""Model references, and the one way a model comes from any of them to a local folder.

A reference is one of
- `package:MODULE/PATH`: files inside an installed Python package (a folder, or a `.gguf` file);
- `hub:ORG/NAME@REVISION`: a Hugging Face repository at a pinned commit;
- `s3://BUCKET/FOLDER`: a folder of model files.

`fetch(reference)` returns a folder that `from_pretrained` can load: configuration, tokenizer and
safetensors. Code inside a model folder is never run (`trust_remote_code` stays off). Writes below the
cache folder, through a neighbour folder that is renamed when complete. Fails with `ModelError` for a
malformed reference, an unpinned revision, or a folder without weights.
"""

import fcntl
import hashlib
import importlib.util
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import ModelError, ServiceUnavailable
from tasks.storage import Storage, file_digest

_HUB = re.compile(r"^hub:(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{7,40})$")
_FORMS = "package:MODULE/PATH, hub:ORG/NAME@COMMIT or s3://BUCKET/FOLDER"


def fetch(reference: str, cache: Path, storage: Storage | None = None) -> Path:
    """Return a local folder with the model's files, fetching and converting it once. Raises ModelError."""
    if reference.startswith("package:"):
        source = _package_path(reference)
        if source.suffix == ".gguf":
            return _once(
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
        key = hashlib.sha256(repr(sorted(listing)).encode()).hexdigest()[:16]
        folder = _once(cache, f"s3-{key}", lambda target: _download(store, reference, target))
        return require_weights(folder, reference)
    if match := _HUB.match(reference):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            path = snapshot_download(
                match["name"],
                revision=match["revision"],
                cache_dir=str(cache / "hub"),
                allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*/*.json"],
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ServiceUnavailable(
                f"expected the model hub to answer for {reference}, found {str(error)[:200]}. "
                "Next: check the network and HF_HUB_OFFLINE, or mirror the model to s3:// and name that."
            ) from error
        return require_weights(Path(path), reference)
    hint = " A hub model must be pinned to a commit." if reference.startswith("hub:") else ""
    raise ModelError(f"expected a model reference ({_FORMS}), found {reference!r}.{hint} Next: correct the setting.")


def revision(reference: str, folder: Path) -> str:
    """Return what pins the model's bytes: the hub commit, or a digest of the weight files' digests."""
    if match := _HUB.match(reference):
        return match["revision"]
    weights = sorted(folder.rglob("*.safetensors"))
    return hashlib.sha256("".join(file_digest(path) for path in weights).encode()).hexdigest()


def require_weights(folder: Path, reference: str) -> Path:
    """Return `folder` if it holds a configuration and safetensors weights. Raises ModelError."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"expected config.json in the model folder of {reference}, found none. Next: point at the folder that holds it."
        )
    if not any(folder.rglob("*.safetensors")):
        raise ModelError(
            f"expected safetensors weights in the model folder of {reference}, found none (pickled weights are not loaded). "
            "Next: convert the model with save_pretrained(safe_serialization=True)."
        )
    return folder


def _package_path(reference: str) -> Path:
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


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _once(cache: Path, name: str, make: Callable[[Path], None]) -> Path:
    """Return `cache/name`, made by `make` in a neighbour folder and renamed when complete; one maker at a time."""
    target = cache.resolve() / name
    with _locked(target.with_suffix(".lock")):
        if not target.is_dir():
            partial = target.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            make(partial)
            partial.rename(target)
    return target


def _download(storage: Storage, reference: str, folder: Path) -> None:
    prefix = reference.rstrip("/") + "/"
    for uri, _size, _etag in storage.list(prefix):
        name = uri.removeprefix(prefix)
        target = (folder / name).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise ModelError(f"expected file names inside {reference}, found {name!r}. Next: remove that object.")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(storage.get_bytes(uri))


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
