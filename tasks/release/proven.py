"""The model of a release, proven from its bytes: a candidate's, or the one that is live already.

Reads manifests, kept evidence and every byte of the weights. Writes nothing. Reading takes minutes for a large model, so
`read` runs without the lock of the ledger, and `Proven.require_same` proves under it, by listings and digests, that
nothing moved meanwhile. Fails with `ReleaseError` or `ManifestError` when a proof does not hold, and with
`SignatureError` when nobody signed the candidate and MILLRACE_VERIFY_KEY is set.
"""

from dataclasses import dataclass
from typing import Any

from tasks.contracts import Manifest
from tasks.errors import ManifestError, ReleaseError
from tasks.release import approval, signed_candidate
from tasks.release import evidence as proofs
from tasks.release.evidence import Evidence
from tasks.release.ledger import Release
from tasks.release.weights import Weights, release_columns, verify
from tasks.stage import StageContext, code_revision
from tasks.storage import Storage

_SAME = ("model_name", "model_version", "adapter_uri", "adapter_sha256", "base_model", "base_revision")


@dataclass(frozen=True)
class Proven:
    """What was read: the model columns of the release, what is kept as its evidence, and what tells whether it moved."""

    model: dict[str, Any]
    content: dict[str, Any]
    evidence: Evidence | None
    weights: Weights
    listed: tuple[tuple[str, int, str], ...]
    live: int | None

    def require_same(self, storage: Storage, proposal: Manifest, live: Release | None) -> None:
        """Prove that all of it stands as it was read. Raises ReleaseError."""
        if (live.release if live else None) != self.live:
            raise ReleaseError(
                f"expected release {self.live or 'none'} to be live still, found {live.release if live else 'none'}. "
                "Next: trigger a new run; it compares with what is live now."
            )
        if self.evidence is not None and candidate(storage, proposal)[1] != self.evidence:
            raise _moved("the evidence of the candidate", self.evidence.gate.run)
        if _listed(storage, self.weights) != self.listed:
            raise _moved("the weights", self.weights.uri)


def read(context: StageContext, proposal: Manifest, live: Release | None) -> Proven:
    """Read the proposed model to the last byte. Raises ReleaseError, ManifestError, SignatureError."""
    storage, number = context.storage, live.release if live else None
    if not proposal.facts["candidate"]:
        if live is None:
            raise ReleaseError(
                "expected a live release whose model stays, found none. Next: release a candidate first."
            )
        before = _listed(storage, weights := _kept(storage, live)[1])
        content = recall_model(storage, live)
        model = {name: getattr(live, name) for name in (*_SAME, "dataset_sha256", "code_revision")}
        return Proven(model, content, None, weights, before, number)
    register, evidence = candidate(storage, proposal)
    signed_candidate.require_endorsed(context.settings, register)
    before = _listed(storage, evidence.weights)
    verify(storage, evidence.weights)
    model = {name: register.facts[name] for name in ("model_name", "model_version", "dataset_sha256")}
    model |= release_columns(evidence.weights, evidence.train) | {"code_revision": code_revision(context.settings)}
    return Proven(model, proofs.model_content(evidence, register), evidence, evidence.weights, before, number)


def candidate(storage: Storage, proposal: Manifest) -> tuple[Manifest, Evidence]:
    """Return the very candidate that was proposed: its registration and its evidence. Raises ReleaseError, ManifestError."""
    uri = str(proposal.facts["candidate"])
    register = storage.require_manifest_at(uri)
    if register.stage != "register":
        raise ReleaseError(
            f"expected the manifest of register, found {register.stage} at {uri}. Next: trigger a new run."
        )
    evidence = proofs.load(storage, register.run)
    found = {"candidate_sha256": approval.shown(register), "weights_sha256": evidence.weights.sha256}
    for name, sha256 in found.items():
        if proposal.facts.get(name) != sha256:
            raise ReleaseError(
                f"expected the candidate that was proposed ({name} {proposal.facts.get(name)}), found another ({sha256}) at "
                f"{uri}: fine_tune made it again since. Next: trigger a new run; a person has to look at it."
            )
    _require_registered(register, evidence)
    return register, evidence


def _require_registered(register: Manifest, evidence: Evidence) -> None:
    """Verdict and weights must be those that were registered, not another attempt's of the same run folder."""
    if register.facts["evidence_sha256"] != evidence.gate_sha256:
        raise ReleaseError(
            f"expected the verdict that was registered ({register.facts['evidence_sha256']}), found another "
            f"({evidence.gate_sha256}) at {evidence.gate.uri}. Next: clear register, then trigger a new run."
        )
    for name, value in release_columns(evidence.weights, evidence.train).items():
        if register.facts[name] != value:
            raise ReleaseError(
                f"expected {name} {value}, as the trained weights say, found {register.facts[name]} in {register.uri}. "
                "Next: clear register, then trigger a new run."
            )


def recall_model(storage: Storage, release: Release) -> dict[str, Any]:
    """Return the kept evidence of a release's model, after reading every byte of its weights. Raises ManifestError."""
    content, weights = _kept(storage, release)
    found = (weights.sha256, release.base_revision) if weights.kind == "adapter" else (None, weights.revision)
    if found != release.identity:
        raise ManifestError(
            f"expected evidence about adapter and base {release.identity}, which release {release.release} has, found "
            f"{weights.kind} {found}. Next: promote another candidate."
        )
    verify(storage, weights)
    return {name: content[name] for name in (weights.kind, "manifests")}


def _kept(storage: Storage, release: Release) -> tuple[dict[str, Any], Weights]:
    content = proofs.recall(storage, release.evidence_uri, release.evidence_sha256)
    return content, proofs.kept_weights(content, release.adapter_uri or release.base_model)


def _listed(storage: Storage, weights: Weights) -> tuple[tuple[str, int, str], ...]:
    """Return what S3 says of the folder: an object that is written again gets another ETag, unless it is the same."""
    return tuple(sorted(storage.list(f"{weights.uri}/")))


def _moved(what: str, where: str) -> ReleaseError:
    return ReleaseError(
        f"expected {what} to stay while they were read, found them changed at {where}. "
        "Next: find out who wrote there, then clear promote."
    )
