"""Work out what a release would change, and write it down for the person who approves it.

Reads the manifest of a `register` stage (`candidate`) and of a `switch_index` stage (`index`); with
neither, what MLflow calls `candidate` and the current index version. Writes `body.md` and the prompt
that would go live. Refuses (a result, not an error) when there is nothing to release. Fails with
`ReleaseError` when there is no index version yet, the candidate's verdict does not hold any more, or the assistant could not
use the prompt, and with `SettingsError` when MILLRACE_APPROVERS names nobody or MILLRACE_AUTO_PROMOTE an unknown corpus.
"""

import logging
from dataclasses import dataclass

from tasks import tracking
from tasks.contracts import Manifest
from tasks.database import Connection
from tasks.errors import ReleaseError, ServiceUnavailable
from tasks.knowledge.index_tables import Version, current
from tasks.release import approval, judged, shadow_report
from tasks.release import evidence as proofs
from tasks.release import ledger as releases
from tasks.release.body import Proposal, markdown
from tasks.release.change import change
from tasks.release.ledger import Release, ledger
from tasks.release.mirror import reconcile_mirrors
from tasks.release.prompts import register_prompt
from tasks.release.register import ALIAS
from tasks.serving.prompt import parse_prompt
from tasks.settings import Settings, repository_path
from tasks.stage import Stage, StageContext, StageOptions, StageResult
from tasks.storage import Storage

log = logging.getLogger(__name__)


class Options(StageOptions):
    """Where the parts of the release come from; both empty: the newest candidate and the current index."""

    candidate: str = ""
    index: str = ""


@dataclass(frozen=True)
class Found:
    """The parts at hand, before it is known whether they make a release."""

    live: Release | None
    index: Version
    register: Manifest | None
    prompt: str


class _Nothing(Exception):
    """There is nothing to release; the text is the reason of the refusal."""


def run(context: StageContext, options: Options) -> StageResult:
    """Compare what could be released with what is live, and describe the difference."""
    reconcile_mirrors(context.settings)
    try:
        proposal = propose(context.settings, context.storage, options)
    except _Nothing as nothing:
        return StageResult(status="refused", reason=str(nothing), facts={"kind": "", "needs_approval": False})
    body = markdown(proposal, tracking.public(context.settings.mlflow_tracking_uri), approval.terms(context.settings))
    prompt = context.storage.put_bytes(
        f"{context.folder}/prompt.md", proposal.prompt.encode(), content_type="text/plain"
    )
    written = context.storage.put_bytes(f"{context.folder}/body.md", body.encode(), content_type="text/markdown")
    live = proposal.live
    return StageResult(
        outputs={"body": written, "prompt": prompt},
        facts={
            "kind": proposal.kind,
            "needs_approval": approval.needs_person(context.settings, proposal.change),
            "policy": approval.policy_words(context.settings, proposal.index.corpus),
            "approvers": approval.approvers(context.settings),
            "approval_hours": context.settings.approval_hours,
            "corpus": proposal.index.corpus,
            "subject": proposal.subject,
            "body": body,
            **_candidate(proposal),
            "index_version": proposal.index.version,
            "live_release": live.release if live else None,
            "prompt_changed": proposal.change.prompt_changed,
            "doubts": list(proposal.change.doubts),
            **_prompt_version(context.settings, proposal.prompt),
            "shadow": proposal.shadow,
        },
    )


def _candidate(proposal: Proposal) -> dict[str, str]:
    """Return what pins the candidate: what stands at its URI may be another one by the time of the answer."""
    register, evidence = proposal.register, proposal.evidence
    if register is None or evidence is None:
        return {"candidate": "", "candidate_sha256": "", "weights_sha256": "", "verdict": ""}
    return {
        "candidate": register.uri,
        "candidate_sha256": approval.shown(register),
        "weights_sha256": evidence.weights.sha256,
        "verdict": proposal.word,
    }


def _prompt_version(settings: Settings, prompt: str) -> dict[str, str | None]:
    """Return the version that MLflow has of the prompt. The ledger keeps its text: an MLflow that is away holds up no release."""
    try:
        return {"prompt_version": register_prompt(settings, prompt).uri, "prompt_problem": None}
    except ServiceUnavailable as error:
        log.warning("the prompt is not in MLflow's registry yet; the next proposal tries again: %s", error)
        return {"prompt_version": None, "prompt_problem": str(error)}


def propose(settings: Settings, storage: Storage, options: Options) -> Proposal:
    """Return the proposal for these options. Raises _Nothing, ReleaseError, ManifestError."""
    found = _find(settings, storage, options)
    live, register = found.live, found.register
    if live is not None and (register is None or _identity(register) == live.identity):
        register = None  # the model stays; index or prompt may have changed
    if register is None and live is None:
        raise _Nothing(
            "no model was released yet, so an index alone makes no release: trigger fine_tune, and release its candidate"
        )
    evidence = proofs.load(storage, register.run) if register else None
    with ledger(settings) as connection:
        changed = change(connection, live, found.index, found.prompt, evidence)
        if evidence is None:
            assert live is not None
            if live.index_version == found.index.version and not changed.prompt_changed:
                raise _Nothing(
                    f"release {live.release} already answers with this model, prompt and index version {live.index_version}"
                )
            return Proposal(live, found.index, None, None, found.prompt, changed, None)
        assert register is not None
        require_fair_comparison(connection, evidence, live)
        earlier = [
            release for release in releases.history(connection, 1_000) if release.identity == _identity(register)
        ]
        facts = register.facts
        shadow = shadow_report.report(connection, facts["model_name"], str(facts["model_version"]), live)
    return Proposal(
        live=live,
        index=found.index,
        register=register,
        evidence=evidence,
        prompt=found.prompt,
        change=changed,
        earlier=earlier[0] if earlier else None,
        shadow=shadow.summary(),
        verdict=judged.report(storage, evidence.gate),
    )


def require_fair_comparison(connection: Connection, evidence: proofs.Evidence, live: Release | None) -> None:
    """Prove that the candidate was compared with the model that is live now. Raises ReleaseError."""
    champion = evidence.evaluate.facts.get("champion_release")
    compared = releases.get(connection, int(champion)).identity if champion is not None else None
    now = live.identity if live else None
    if compared != now:
        raise ReleaseError(
            f"expected a verdict against the live model (release {live.release if live else 'none'}), "
            f"found one against release {champion or 'none'}, which has another. "
            "Next: trigger fine_tune again; with the same data it trains nothing and measures against what is live."
        )


def _find(settings: Settings, storage: Storage, options: Options) -> Found:
    with ledger(settings) as connection:
        live, index = releases.live(connection), current(connection)
    candidate = options.candidate
    if not options.candidate and not options.index:
        candidate = newest_candidate(settings, live)
    register = _manifest(storage, candidate, "register") if candidate else None
    if options.index:
        # Only checked: where a newer version was switched to meanwhile, that one is released.
        _manifest(storage, options.index, "switch_index")
    if index is None:
        raise ReleaseError(
            "expected a current index version to release with the model, found none. Next: trigger sync_knowledge."
        )
    prompt = read_prompt(settings)
    parse_prompt(prompt, settings.prompt)  # what the assistant cannot use must not become the live prompt
    return Found(live, index, register, prompt)


def newest_candidate(settings: Settings, live: Release | None) -> str:
    """Return the register manifest of the model version that MLflow calls `candidate`; empty when there is none, or it is live."""
    from mlflow.exceptions import MlflowException

    with tracking.answering(settings) as client:
        try:
            version = client.get_model_version_by_alias(settings.model_name, ALIAS)
        except MlflowException as error:
            if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                raise
            return ""  # no model, or no version with that alias
    if live is not None and (version.tags.get("adapter_sha256"), version.tags["base_revision"]) == live.identity:
        return ""  # its run folder may be retired by now, and it is not needed
    return str(version.tags["manifest"])


def read_prompt(settings: Settings) -> str:
    """Return the text of the assistant's prompt. Raises ReleaseError when the file is absent or empty."""
    path = repository_path(settings.prompt)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not text.strip():
        raise ReleaseError(
            f"expected a prompt in {settings.prompt}, found {'an empty file' if path.is_file() else 'no such file'}. "
            "Next: correct MILLRACE_PROMPT."
        )
    return text


def _identity(register: Manifest) -> tuple[str | None, str]:
    """Return what a release of this candidate would have as `Release.identity`."""
    return register.facts["adapter_sha256"], register.facts["base_revision"]


def _manifest(storage: Storage, uri: str, stage: str) -> Manifest:
    manifest = storage.require_manifest_at(uri)
    if manifest.stage != stage:
        raise ReleaseError(
            f"expected the manifest of a {stage} stage, found {manifest.stage} at {uri}. Next: correct the option."
        )
    return manifest


# Fleeting: what could be released, and who may approve it, is another thing an hour later.
STAGE = Stage("propose", Options, run, fleeting=True)
