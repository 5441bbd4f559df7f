"""Release a new model or a new index version: propose, approve, promote, announce.

**What it does**

Bundles what would go live (model, index version, prompt, evidence) into a proposal, asks a person where the policy
wants one, verifies every byte again, writes one row into the ledger of releases, and mirrors it into MLflow.
The assistant picks the new release up within seconds. A change of model needs a person; a refreshed index is
approved by policy unless `MILLRACE_APPROVAL` is `always`. Who may approve is `MILLRACE_APPROVERS`; models of the corpora in
`MILLRACE_AUTO_PROMOTE` are released by their verdict alone. A verdict `review`, a prompt or index other than the measured ones,
and what was rolled back before always need a person.

**Parameters**

- `candidate`: manifest URI of a `register` stage; empty takes the event that started the run.
- `index`: manifest URI of a `switch_index` stage; empty takes the event that started the run.

Both empty in a run by hand: the newest candidate in MLflow and the current index version.

**Assets in and out**

In: `candidate_model` or `knowledge_index`. Out: `release`.

**When it fails**

Nothing to release (the candidate is live already; an index without any released model) and a rejected or unanswered
proposal (`MILLRACE_APPROVAL_HOURS`) skip the rest: the run succeeds, and the live release stays. It fails when bytes differ
from their manifests, the verdict does not belong to them, or the answer is old, of another proposal, or of somebody who may
not, or when another candidate stands where the approved one was; nothing is released then. Clearing `promote` is safe: it is
idempotent by run.
"""

from datetime import timedelta

from airflow.sdk import Param, chain, dag
from millrace_approval import ReleaseApproval
from millrace_assets import CANDIDATE_MODEL, KNOWLEDGE_INDEX, RELEASE, newest_manifest
from millrace_defaults import DEFAULT_ARGS, Tag, schedule_start, tags
from millrace_stage import stage

ANSWER = "ti.xcom_pull(task_ids='approve')"


@dag(
    schedule=(CANDIDATE_MODEL | KNOWLEDGE_INDEX),
    start_date=schedule_start(),
    catchup=False,
    max_active_runs=1,  # two releases are never made at once; events that arrive meanwhile start one more run
    dagrun_timeout=timedelta(days=11),  # more than the ten that MILLRACE_APPROVAL_HOURS may give a person
    default_args=DEFAULT_ARGS,
    tags=tags(Tag.RELEASE),
    doc_md=__doc__,
    user_defined_macros={"newest": newest_manifest},
    params={
        "candidate": Param(
            None, type=["null", "string"], title="Candidate", section="By hand", pattern=r"^s3://.+/manifest\.json$",
            description="Manifest URI of a register stage. Empty: the event that started the run.",
        ),
        "index": Param(
            None, type=["null", "string"], title="Index", section="By hand", pattern=r"^s3://.+/manifest\.json$",
            description="Manifest URI of a switch_index stage. Empty: the event that started the run.",
        ),
    },
)  # fmt: skip
def promote_release():
    proposed = stage(
        "propose",
        on_refusal="skip",
        candidate="{{ params.candidate or newest(triggering_asset_events, 'candidate_model') }}",
        index="{{ params.index or newest(triggering_asset_events, 'knowledge_index') }}",
    )
    approved = ReleaseApproval(task_id="approve", proposal="propose")
    # Dangerous edge: behind it the assistant changes for every user. Only an approval leads here; a late one is a no.
    promoted = stage(
        "promote",
        outlets=[RELEASE],
        approved_by=f"{{{{ {ANSWER}['responded_by_user']['name'] }}}}",
        reason=f"{{{{ {ANSWER}['params_input'].get('reason') or '' }}}}",
        # Never empty: an option that renders empty is not given, and promote must see that something is missing.
        answered_at=f"{{{{ {ANSWER}.get('responded_at') or 'missing' }}}}",
        proposal_sha256=f"{{{{ {ANSWER}.get('proposal_sha256') or 'missing' }}}}",
    )
    announced = stage("announce")
    chain(proposed, approved, promoted, announced)


promote_release()
