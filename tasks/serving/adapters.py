"""The adapter of a release: fetched, proven, and held against the base model it is to be used with.

Reads adapter files from S3. Writes them below a folder, and only files whose joint digest is the one the release names are
ever given out. Fails with `ReleaseError` when the bytes are not those of the release or do not fit the base model,
`ServiceUnavailable` when S3 does not answer.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks import model_cache
from tasks.contracts import digest
from tasks.errors import ReleaseError, SettingsError
from tasks.settings import Settings
from tasks.storage import Storage, file_digest

WEIGHTS = "adapter_model.safetensors"
_MATRIX = re.compile(r"^base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight$")
_PICKLED = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


def adapters_folder(settings: Settings) -> Path:
    """Return where adapters are fetched to: a folder that the model server sees at the same path, where there is one."""
    if settings.generation_url is None:
        return Path(settings.cache_dir)
    if settings.generation_adapters is None:
        raise SettingsError(
            "expected MILLRACE_GENERATION_ADAPTERS beside MILLRACE_GENERATION_URL, found none: the release has an "
            "adapter. Next: set it to a folder that the model server sees at the same path."
        )
    return settings.generation_adapters


def fetch_adapter(storage: Storage, uri: str, sha256: str, cache: Path) -> Path:
    """Return a folder with the adapter's files, downloaded once and proven to have the digest `sha256`.

    Raises ReleaseError when there are none, when they differ, or when any is a pickle.
    """
    folder = cache.resolve() / f"adapter-{sha256[:16]}"
    with model_cache.locked(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir() or folder_digest(folder) != sha256:
            _download(storage, uri, sha256, folder)
    return folder


def _download(storage: Storage, uri: str, sha256: str, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    prefix = uri.rstrip("/") + "/"
    for item, _size, _etag in storage.list(prefix):
        target = (partial / item.removeprefix(prefix)).resolve()
        if not target.is_relative_to(partial.resolve()) or target.suffix in _PICKLED:
            raise ReleaseError(f"expected safetensors and JSON below {uri}, found {item}. Next: register again.")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(storage.get_bytes(item))
    if not (partial / WEIGHTS).is_file():
        raise ReleaseError(f"expected {WEIGHTS} below {uri}, found none. Next: train and register again.")
    if (found := folder_digest(partial)) != sha256:
        raise ReleaseError(
            f"expected adapter files with digest {sha256} below {uri}, found {found}. "
            "Next: do not use these bytes; release another version, or roll back."
        )
    partial.rename(folder)


def check_fits(modules: Mapping[str, Any], folder: Path) -> None:
    """Prove that every LoRA matrix in `folder` belongs to a layer of the model and has its shape.

    PEFT only warns about names it does not find, and a release must not answer without its adapter.
    """
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  (not a dict)
    matrices = [(match, shapes[match[0]]) for match in map(_MATRIX.match, shapes) if match]
    if not matrices:
        raise ReleaseError(f"expected LoRA matrices in {WEIGHTS}, found none. Next: train and register again.")
    for match, shape in matrices:
        layer = modules.get(match["layer"])
        side, place = ("in_features", 1) if match["side"] == "A" else ("out_features", 0)
        if layer is None or getattr(layer, side, None) != shape[place]:
            found = "no such layer" if layer is None else f"{side} {getattr(layer, side, None)}"
            raise ReleaseError(
                f"expected a layer {match['layer']} with {side} {shape[place]} in the base model, found {found}. "
                "Next: release the adapter with the base model it was trained on."
            )


def folder_digest(folder: Path) -> str:
    """Return the digest of an adapter folder: the one `contracts.digest_of` gives for its artifacts."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest({str(path.relative_to(folder)): file_digest(path) for path in files})
