"""The trained weights behind a candidate or a release: a LoRA adapter, or a whole model.

Reads the manifest of `train`, which says of which kind they are and names every file, and their bytes in S3.
Writes nothing. An adapter answers upon its base model. A whole model is a base model of its own: its release has
no adapter, `base_model` is the model's folder in S3, and `base_revision` the digest of its weight files. Manifests
from before whole models were trained name no kind; theirs are adapters. Fails with `ManifestError` when the files
are not those of one kind in one folder, or a byte differs.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks import models
from tasks.contracts import Artifact, Manifest, digest_of
from tasks.errors import ManifestError
from tasks.storage import Storage
from tasks.training.adapters import files_of

Kind = Literal["adapter", "model"]
KINDS: tuple[Kind, ...] = ("adapter", "model")


@dataclass(frozen=True)
class Weights:
    """Files of one folder in S3, by their name in it."""

    kind: Kind
    uri: str
    files: Mapping[str, Artifact]

    @property
    def sha256(self) -> str:
        """What names these weights, and what a verdict is bound to."""
        return digest_of(self.files)

    @property
    def revision(self) -> str:
        """What `tasks.models.revision` gives for the folder: how a release pins a whole model."""
        return models.revision_of({name: artifact.sha256 for name, artifact in self.files.items()})


def trained(train: Manifest) -> Weights:
    """Return what a train stage made. Raises ManifestError."""
    named = train.facts.get("weights", "adapter")
    found = {kind: files for kind in KINDS if (files := files_of(train.outputs, kind))}
    if list(found) != [named]:
        raise ManifestError(
            f"expected files of one kind, {named}, among the outputs of {train.uri}, found those of "
            f"{' and '.join(found) or 'none'}. Next: clear train; it will be made again."
        )
    ((kind, files),) = found.items()
    return in_folder(kind, str(train.facts.get(f"{kind}_uri")), files)


def in_folder(kind: Kind, uri: str, files: Mapping[str, Artifact]) -> Weights:
    """Return weights whose files are those of the folder `uri`, which is what gets loaded. Raises ManifestError."""
    folder = uri.rstrip("/")
    outside = [artifact.uri for name, artifact in files.items() if artifact.uri != f"{folder}/{name}"]
    if outside or not any(name.endswith(".safetensors") for name in files):
        raise ManifestError(
            f"expected safetensors and all other files of the {kind} below {folder}, found "
            f"{outside[0] if outside else sorted(files)}. Next: trigger fine_tune again."
        )
    return Weights(kind, folder, files)


def release_columns(weights: Weights, train: Manifest) -> dict[str, Any]:
    """Return the columns of a release that say which model answers."""
    if weights.kind == "model":
        base = {"base_model": weights.uri, "base_revision": weights.revision}
        return {"adapter_uri": None, "adapter_sha256": None} | base
    base = {name: str(train.facts[name]) for name in ("base_model", "base_revision")}
    return {"adapter_uri": weights.uri, "adapter_sha256": weights.sha256} | base


def claimed(facts: Mapping[str, Any], name: str = "weights_sha256") -> Any:
    """Return the digest that a stage says it is about; earlier manifests call it after the adapter."""
    return facts.get(name, facts.get(name.replace("weights", "adapter")))


def verify(storage: Storage, weights: Weights) -> None:
    """Read every byte and compare; the folder must hold nothing else. Raises ManifestError."""
    others = {uri for uri, _size, _etag in storage.list(f"{weights.uri}/")}
    others -= {artifact.uri for artifact in weights.files.values()}
    if others:
        raise ManifestError(
            f"expected the files of the {weights.kind} only below {weights.uri}, found {sorted(others)[0]} too. "
            "Next: find out who wrote it, and remove it."
        )
    # One file after the other: a large model need not fit on this machine's disk.
    with tempfile.TemporaryDirectory(prefix="millrace-weights-") as folder:
        for artifact in weights.files.values():
            storage.get_file(artifact, Path(folder) / "file").unlink()
