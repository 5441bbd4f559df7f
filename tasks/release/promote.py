"""Make a proposed release live: the only way to add a promotion to the ledger.

Reads the proposal, and proves everything again from the bytes: the candidate that was proposed, its verdict and what that
is about, every byte of the trained weights, the prompt, the chunks of the index version, that the model it was compared with
is the one that is live. Bytes are read without the lock of the ledger; under it, it proves that nothing moved, works out
what changes and whether a person must approve, writes one row of `releases` in one transaction, and mirrors it into MLflow
after it. A run makes at most one release: repeated over the same proposal, it returns that one. Fails with `ReleaseError` or
`ManifestError` when a proof does not hold, with `ApprovalError` when the answer does not count
(`tasks.release.approval`); refuses when a person's approval is needed and absent.
"""

from dataclasses import dataclass

from tasks.contracts import Manifest
from tasks.database import Connection
from tasks.errors import ReleaseError
from tasks.knowledge.index_tables import Version
from tasks.release import approval
from tasks.release import evidence as proofs
from tasks.release import index as indexes
from tasks.release import ledger as releases
from tasks.release.change import change
from tasks.release.ledger import Parts, Release, ledger
from tasks.release.mirror import MirrorState, reconcile_mirrors
from tasks.release.propose import require_fair_comparison
from tasks.release.proven import Proven, read
from tasks.release.signing import seal
from tasks.serving.prompt import parse_prompt, prompt_digest
from tasks.stage import Stage, StageContext, StageResult
from tasks.storage import Storage

POLICY = approval.POLICY


class Options(approval.Answer):
    """Who approved, and why. Empty only where no approval is needed."""

    @property
    def by(self) -> str:
        """In whose name it is released."""
        return self.approved_by.strip() or POLICY


@dataclass(frozen=True)
class _Ready:
    """A proposal with what was read for it."""

    proposal: Manifest
    prompt: str
    proven: Proven


class _NotApproved(Exception):
    """The text is the reason of the refusal."""


def run(context: StageContext, options: Options) -> StageResult:
    """Verify the proposal's parts again, add the release to the ledger, and mirror it into MLflow."""
    reconcile_mirrors(context.settings)
    proposal = context.inputs["propose"]
    with ledger(context.settings) as connection:
        made, live = releases.by_run(connection, context.run), releases.live(connection)
    if made is not None:
        # A release that stands needs no approval any more: the repeated stage only returns it.
        _require_made_of(context.storage, made, proposal)
        return release_result(made, reconcile_mirrors(context.settings), again=True)
    approval.require_origin(context.settings, proposal, options)  # before many bytes are read for it
    prompt = context.storage.get(context.input("propose", "prompt")).decode()
    parse_prompt(prompt, "the proposed prompt")
    ready = _Ready(proposal, prompt, read(context, proposal, live))
    try:
        with ledger(context.settings) as connection:
            release = _release(context, connection, ready, options)
    except _NotApproved as refused:
        return StageResult(status="refused", reason=str(refused))
    return release_result(release, reconcile_mirrors(context.settings), again=False)


def _release(context: StageContext, connection: Connection, ready: _Ready, options: Options) -> Release:
    # Held from here to the commit: nothing that is proven below can change before the row stands.
    releases.lock(connection)
    proposal, proven = ready.proposal, ready.proven
    live = releases.live(connection)
    proven.require_same(context.storage, proposal, live)
    index = indexes.require(connection, int(proposal.facts["index_version"]))
    if proven.evidence is not None:
        require_fair_comparison(connection, proven.evidence, live)
    changed = change(connection, live, index, ready.prompt, proven.evidence)
    if refused := approval.refusal(context.settings, proposal, options, changed):
        raise _NotApproved(refused)
    _require_current(index, options)
    shown = {"index": vars(index), "proposal": proposal.model_dump(mode="json")}
    evidence = proofs.keep(context.storage, context.bucket, proven.content | shown)
    parts = Parts(
        **proven.model,
        prompt=ready.prompt,
        prompt_sha256=prompt_digest(ready.prompt),
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
        approved_by=options.by,
        reason=options.reason.strip() or str(proposal.facts["subject"]),
        run=context.run,
        expected_live=proposal.facts["live_release"],
    )
    source = None if proven.evidence is not None else live
    return seal(context.settings, context.storage, connection, release, by="promote", source=source)


def _require_made_of(storage: Storage, made: Release, proposal: Manifest) -> None:
    """A run that made a release of another proposal must not report that one as this. Raises ReleaseError."""
    kept = proofs.recall(storage, made.evidence_uri, made.evidence_sha256).get("proposal")
    if kept is None or approval.shown(Manifest.model_validate(kept)) != approval.shown(proposal):
        raise ReleaseError(
            f"expected this run to release what it proposes, found that it made release {made.release} of an earlier "
            "proposal. Next: trigger a new run."
        )


def _require_current(index: Version, options: Options) -> None:
    """A person who approved an index version gets that one, also where a newer one came; the policy takes the newest."""
    if index.status != "current" and options.by == POLICY:
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


# Fleeting: a refusal is true until somebody approves, and a release is asked of the ledger, not of a manifest.
STAGE = Stage("promote", Options, run, needs=("propose",), fleeting=True)
