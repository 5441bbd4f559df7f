"""What a release rests on: the manifests of the fine-tune behind it, and the bytes they name.

`load` reads the four stages of a fine-tune and proves that the verdict is `promote` and is about
exactly these adapter bytes and this held-out set (DESIGN.md, principle 3: this is called by `register`
and again by `promote`). `keep` writes all of it as one file below `s3://BUCKET/releases/`, because run
folders are retired and a release must stay restorable. Fails with `ReleaseError` when the evidence does
not hold, and with `ManifestError` when bytes are missing or differ.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.contracts import Artifact, Manifest, digest_of, manifest_uri
from tasks.errors import ManifestError, ReleaseError
from tasks.storage import Storage

FORMAT = "millrace.evidence/1"
ADAPTER = "adapter/"
_STAGES = ("validate_dataset", "train", "evaluate", "gate")


@dataclass(frozen=True)
class Evidence:
    """The stages of one fine-tune, proven to belong together."""

    validate_dataset: Manifest
    train: Manifest
    evaluate: Manifest
    gate: Manifest

    @property
    def adapter(self) -> dict[str, Artifact]:
        """The adapter's files, by their name inside its folder."""
        return adapter_files(self.train)

    @property
    def gate_sha256(self) -> str:
        """What pins the verdict: the digest of the gate's manifest."""
        return hashlib.sha256(self.gate.to_bytes()).hexdigest()


def adapter_files(train: Manifest) -> dict[str, Artifact]:
    """Return the adapter's files of a train stage, by their name inside the adapter's folder."""
    return {
        name.removeprefix(ADAPTER): artifact for name, artifact in train.outputs.items() if name.startswith(ADAPTER)
    }


def load(storage: Storage, run: str) -> Evidence:
    """Return the proven evidence of the fine-tune in run folder `run`. Raises ReleaseError, ManifestError."""
    evidence = Evidence(**{stage: storage.require_manifest(run, stage) for stage in _STAGES})
    check(evidence)
    return evidence


def check(evidence: Evidence) -> None:
    """Prove that the verdict is `promote` and is about these bytes. Raises ReleaseError."""
    gate, train, evaluate = evidence.gate, evidence.train, evidence.evaluate
    if gate.status != "complete" or gate.facts.get("verdict") != "promote":
        raise _broken("the verdict 'promote'", repr(gate.facts.get("verdict")), gate)
    if not evidence.adapter:
        raise _broken("adapter files among the outputs of train", "none", train)
    adapter = digest_of(evidence.adapter)
    held_out = evidence.validate_dataset.outputs["held_out"].sha256
    for manifest in (train, evaluate, gate):
        if manifest.facts.get("adapter_sha256") != adapter:
            raise _broken(f"adapter {adapter}", str(manifest.facts.get("adapter_sha256")), manifest)
    for manifest in (evaluate, gate):
        if manifest.facts.get("held_out_sha256") != held_out:
            raise _broken(f"held-out rows {held_out}", str(manifest.facts.get("held_out_sha256")), manifest)
    if evaluate.facts.get("output_changed") is not True:
        raise _broken("an adapter that changes the model's output", "one that does not", evaluate)
    # The gate must have read exactly the outputs that stand there now, not a first attempt's.
    for source in (train, evaluate, evidence.validate_dataset):
        for name, artifact in source.outputs.items():
            seen = gate.inputs.get(f"{source.stage}/{name}")
            if seen is None or seen.sha256 != artifact.sha256:
                raise _broken(f"{source.stage}/{name} {artifact.sha256}", seen.sha256 if seen else "nothing", gate)


def verify_adapter(storage: Storage, files: Mapping[str, Artifact], sha256: str | None) -> None:
    """Read every byte of an adapter and compare. Raises ManifestError when a byte differs, ReleaseError for another set."""
    if digest_of(files) != sha256:
        raise ReleaseError(
            f"expected adapter {sha256}, found files that make {digest_of(files)}. Next: register the candidate again."
        )
    with tempfile.TemporaryDirectory(prefix="millrace-adapter-") as folder:
        storage.get_folder(dict(files), Path(folder))


def keep(storage: Storage, bucket: str, content: Mapping[str, Any]) -> Artifact:
    """Write evidence below `releases/`, named by its own digest, and return it. Never rewrites."""
    body = json.dumps({"format": FORMAT, **content}, sort_keys=True, indent=1, default=str).encode() + b"\n"
    sha256 = hashlib.sha256(body).hexdigest()
    artifact = Artifact(uri=f"{bucket}/releases/{sha256}/evidence.json", sha256=sha256, bytes=len(body))
    if not storage.exists(artifact.uri):
        storage.put_bytes(artifact.uri, body, content_type="application/json")
    storage.verify(artifact)
    return artifact


def recall(storage: Storage, uri: str, sha256: str) -> dict[str, Any]:
    """Return kept evidence after comparing its digest. Raises ManifestError."""
    body = storage.get_bytes(uri)
    found = hashlib.sha256(body).hexdigest()
    if found != sha256:
        raise ManifestError(
            f"expected evidence with sha256 {sha256} at {uri}, found {found}. Next: restore that object from a backup."
        )
    content: dict[str, Any] = json.loads(body)
    return content


def kept_adapter(content: Mapping[str, Any]) -> dict[str, Artifact]:
    """Return the adapter's files that kept evidence names."""
    return {name: Artifact.model_validate(value) for name, value in content["adapter"].items()}


def model_content(evidence: Evidence, register: Manifest) -> dict[str, Any]:
    """Return what is kept about a model: its files and the manifests that led to it."""
    stages = {stage: getattr(evidence, stage).model_dump(mode="json") for stage in _STAGES}
    return {
        "adapter": {name: artifact.model_dump(mode="json") for name, artifact in evidence.adapter.items()},
        "manifests": stages | {"register": register.model_dump(mode="json")},
    }


def register_uri(run: str) -> str:
    """Return where the manifest of `register` is, for a run folder."""
    return manifest_uri(run, "register")


def _broken(expected: str, found: str, manifest: Manifest) -> ReleaseError:
    return ReleaseError(
        f"expected {expected}, found {found} in {manifest.uri}. "
        "Next: trigger fine_tune again; a candidate is released only by a verdict about its own bytes."
    )
