"""What a release rests on: the manifests of the fine-tune behind it, and the bytes they name.

`load` reads the four stages of a fine-tune and proves that the verdict is `promote` or `review` (which a person decides:
`tasks.release.change`) and is about exactly
these trained bytes (`tasks.release.weights`) and this held-out set (DESIGN.md, principle 3: this is called by `register`
and again by `promote`). `keep` writes all of it as one file below `s3://BUCKET/releases/`, because run
folders are retired and a release must stay restorable. Fails with `ReleaseError` when the evidence does
not hold, and with `ManifestError` when bytes are missing or differ.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.contracts import Artifact, Manifest, manifest_uri
from tasks.errors import ManifestError, ReleaseError
from tasks.release.weights import KINDS, Weights, claimed, in_folder, trained
from tasks.storage import Storage

FORMAT = "millrace.evidence/1"
LETS_ON = ("promote", "review")
_STAGES = ("validate_dataset", "train", "evaluate", "gate")


@dataclass(frozen=True)
class Evidence:
    """The stages of one fine-tune, proven to belong together."""

    validate_dataset: Manifest
    train: Manifest
    evaluate: Manifest
    gate: Manifest

    @property
    def weights(self) -> Weights:
        """What was trained. Raises ManifestError when it is not of one kind and in one folder."""
        return trained(self.train)

    @property
    def gate_sha256(self) -> str:
        """What pins the verdict: the digest of the gate's manifest."""
        return hashlib.sha256(self.gate.to_bytes()).hexdigest()


def load(storage: Storage, run: str) -> Evidence:
    """Return the proven evidence of the fine-tune in run folder `run`. Raises ReleaseError, ManifestError."""
    evidence = Evidence(**{stage: storage.require_manifest(run, stage) for stage in _STAGES})
    check(evidence)
    return evidence


def check(evidence: Evidence) -> None:
    """Prove that the verdict lets a candidate go on and is about these bytes. Raises ReleaseError."""
    gate, train, evaluate = evidence.gate, evidence.train, evidence.evaluate
    if gate.status != "complete" or gate.facts.get("verdict") not in LETS_ON:
        raise _broken("the verdict 'promote' or 'review'", repr(gate.facts.get("verdict")), gate)
    if (done_again := train.facts.get("reproduces")) is not None:
        raise _broken("a training of a candidate", f"the training of release {done_again} done again", train)
    weights = evidence.weights
    held_out = evidence.validate_dataset.outputs["held_out"].sha256
    said = train.facts.get(f"{weights.kind}_sha256"), claimed(evaluate.facts), claimed(gate.facts)
    for manifest, sha256 in zip((train, evaluate, gate), said, strict=True):
        if sha256 != weights.sha256:
            raise _broken(f"{weights.kind} {weights.sha256}", str(sha256), manifest)
    for manifest in (evaluate, gate):
        if manifest.facts.get("held_out_sha256") != held_out:
            raise _broken(f"held-out rows {held_out}", str(manifest.facts.get("held_out_sha256")), manifest)
    _require_sets(evidence, held_out)
    if evaluate.facts.get("output_changed") is not True:
        raise _broken("weights that change the model's output", "some that do not", evaluate)
    # The gate must have read exactly the outputs that stand there now, not a first attempt's.
    for source in (train, evaluate, evidence.validate_dataset):
        for name, artifact in source.outputs.items():
            seen = gate.inputs.get(f"{source.stage}/{name}")
            if seen is None or seen.sha256 != artifact.sha256:
                raise _broken(f"{source.stage}/{name} {artifact.sha256}", seen.sha256 if seen else "nothing", gate)


def _require_sets(evidence: Evidence, held_out: str) -> None:
    """Measured and judged must be the same sets, by digest, the held-out one among them. Raises ReleaseError."""
    gate, evaluate = evidence.gate, evidence.evaluate
    sets = evaluate.facts.get("sets")
    said = sets.get("held_out") if isinstance(sets, dict) else None
    if not isinstance(said, dict) or said.get("sha256") != held_out:
        raise _broken(f"evaluation sets with the held-out rows {held_out} among them", str(sets), evaluate)
    if gate.facts.get("sets") != sets:
        raise _broken(f"evaluation sets {sets}", str(gate.facts.get("sets")), gate)


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


def kept_weights(content: Mapping[str, Any], uri: str) -> Weights:
    """Return the weights that kept evidence names, which a release loads from the folder `uri`. Raises ManifestError."""
    found = [kind for kind in KINDS if content.get(kind)]
    if len(found) != 1:
        raise ManifestError(
            f"expected evidence about an adapter or a model, found {found or 'none'}. Next: promote another candidate."
        )
    files = {name: Artifact.model_validate(value) for name, value in content[found[0]].items()}
    return in_folder(found[0], uri, files)


def model_content(evidence: Evidence, register: Manifest) -> dict[str, Any]:
    """Return what is kept about a model: its files and the manifests that led to it."""
    stages = {stage: getattr(evidence, stage).model_dump(mode="json") for stage in _STAGES}
    weights = evidence.weights
    return {
        weights.kind: {name: artifact.model_dump(mode="json") for name, artifact in weights.files.items()},
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
