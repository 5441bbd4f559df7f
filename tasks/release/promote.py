"""Make a proposed release live: the only way to add a promotion to the ledger.

Reads the proposal, and proves everything again from the bytes: the verdict and what it is about, every
byte of the trained weights, the chunks of the index version, that the model it was compared with is the one
that is live. Then writes one row of `releases` in one transaction, and mirrors it into MLflow after it.
A run makes at most one release: repeated, it returns that one. Fails with `ReleaseError` or
`ManifestError` when a proof does not hold, with `ApprovalError` when the answer does not count
(`tasks.release.approval`); refuses when a person's approval is needed and absent.
"""

import hashlib
from typing import Any

from tasks.contracts import Manifest
from tasks.database import Connection
from tasks.errors import ManifestError, ReleaseError
from tasks.knowledge.index_tables import Version
from tasks.release import approval
from tasks.release import evidence as proofs
from tasks.release import index as indexes
from tasks.release import ledger as releases
from tasks.release.evidence import Evidence
from tasks.release.ledger import Parts, Release, ledger
from tasks.release.mirror import MirrorState, reconcile_mirrors
from tasks.release.propose import require_fair_comparison
from tasks.release.signing import seal
from tasks.release.weights import release_columns, verify
from tasks.stage import Stage, StageContext, StageResult, code_revision
from tasks.storage import Storage

POLICY = approval.POLICY


class Options(approval.Answer):
    """Who approved, and why. Empty only where no approval is needed."""


def run(context: StageContext, options: Options) -> StageResult:
    """Verify the proposal's parts again, add the release to the ledger, and mirror it into MLflow."""
    reconcile_mirrors(context.settings)
    proposal = context.inputs["propose"]
    with ledger(context.settings) as connection:
        made = releases.by_run(connection, context.run)
        # A release that stands needs no approval any more: the repeated stage only returns it.
        refused = None if made else approval.refusal(context.settings, proposal, options)
        if refused:
            return StageResult(status="refused", reason=refused)
        release = made or _release(context, connection, proposal, options)
    mirror = reconcile_mirrors(context.settings)
    return release_result(release, mirror, again=made is not None)


def _release(context: StageContext, connection: Connection, proposal: Manifest, options: Options) -> Release:
    # Held from here to the commit: nothing that is proven below can change before the row stands.
    releases.lock(connection)
    live = releases.live(connection)
    index = indexes.require(connection, int(proposal.facts["index_version"]))
    _require_current(index)
    prompt = context.storage.get(context.input("propose", "prompt")).decode()
    candidate = str(proposal.facts["candidate"])
    if candidate:
        model, content = _candidate(context, connection, candidate, live)
    else:
        model, content = _same_model(context.storage, live)
    evidence = proofs.keep(
        context.storage, context.bucket, content | {"index": vars(index), "proposal": proposal.model_dump(mode="json")}
    )
    parts = Parts(
        **model,
        prompt=prompt,
        prompt_sha256=hashlib.sha256(prompt.encode()).hexdigest(),
        index_version=index.version,
        embedder=index.embedder,
        evidence_uri=evidence.uri,
        evidence_sha256=evidence.sha256,
        prompt_version=proposal.facts.get("prompt_version"),
    )
    release = releases.append(
        connection,
        parts,
        kind="promotion",
        approved_by=options.approved_by.strip() or POLICY,
        reason=options.reason.strip() or str(proposal.facts["subject"]),
        run=context.run,
        expected_live=proposal.facts["live_release"],
    )
    source = None if candidate else live
    return seal(context.settings, context.storage, connection, release, by="promote", source=source)


def _candidate(
    context: StageContext, connection: Connection, uri: str, live: Release | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the model columns of a registered candidate, and what is kept as its evidence."""
    register = context.storage.require_manifest_at(uri)
    if register.stage != "register":
        raise ReleaseError(
            f"expected the manifest of register, found {register.stage} at {uri}. Next: trigger a new run."
        )
    evidence = proofs.load(context.storage, register.run)
    _require_registered(register, evidence)
    require_fair_comparison(connection, evidence, live)
    verify(context.storage, evidence.weights)
    model = {name: register.facts[name] for name in ("model_name", "model_version", "dataset_sha256")}
    model |= release_columns(evidence.weights, evidence.train) | {"code_revision": code_revision(context.settings)}
    return model, proofs.model_content(evidence, register)


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


def _same_model(storage: Storage, live: Release | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the model columns of the live release, after proving that its bytes are still there."""
    if live is None:
        raise ReleaseError("expected a live release whose model stays, found none. Next: release a candidate first.")
    content = recall_model(storage, live)
    columns = ("model_name", "model_version", "adapter_uri", "adapter_sha256", "base_model", "base_revision")
    model = {name: getattr(live, name) for name in (*columns, "dataset_sha256", "code_revision")}
    return model, content


def recall_model(storage: Storage, release: Release) -> dict[str, Any]:
    """Return the kept evidence of a release's model, after reading every byte of its weights. Raises ManifestError."""
    content = proofs.recall(storage, release.evidence_uri, release.evidence_sha256)
    weights = proofs.kept_weights(content, release.adapter_uri or release.base_model)
    found = (weights.sha256, release.base_revision) if weights.kind == "adapter" else (None, weights.revision)
    if found != release.identity:
        raise ManifestError(
            f"expected evidence about adapter and base {release.identity}, which release {release.release} has, found "
            f"{weights.kind} {found}. Next: promote another candidate."
        )
    verify(storage, weights)
    return {name: content[name] for name in (weights.kind, "manifests")}


def _require_current(index: Version) -> None:
    if index.status != "current":
        raise ReleaseError(
            f"expected index version {index.version} to be current still, found {index.status}. "
            "Next: trigger promote_release again; it proposes the newest one."
        )


def release_result(release: Release, mirror: MirrorState, *, again: bool) -> StageResult:
    return StageResult(
        counts={"mirrored": len(mirror.mirrored)},
        facts={
            "release": release.release,
            "kind": release.kind,
            "model_name": release.model_name,
            "model_version": release.model_version,
            "adapter_sha256": release.adapter_sha256,
            "base_model": release.base_model,
            "base_revision": release.base_revision,
            "index_version": release.index_version,
            "prompt_version": release.prompt_version,
            "approved_by": release.approved_by,
            "reason": release.reason,
            "restores": release.restores,
            "evidence_uri": release.evidence_uri,
            "made_before": again,
            "mirror_problem": mirror.problem,
        },
        base_model=release.base_model,
    )


STAGE = Stage("promote", Options, run, needs=("propose",))
