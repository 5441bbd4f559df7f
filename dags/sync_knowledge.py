"""Bring the knowledge index up to date with the corpus.

**What it does**

Compares the corpus with what is indexed, validates new and changed documents, chunks and embeds them into
a new index version (in parts, in parallel), measures retrieval on the golden questions, and switches
to the new version in one transaction. The work grows with what changed: on a night without changes nothing is
built, `index_documents` and `switch_index` are skipped, and the run succeeds.

**Parameters**

- `corpus`: another source for this run; empty takes the setting `MILLRACE_CORPUS`.
- `confirm_removal`: `yes` allows a sync to remove more documents than `MILLRACE_MAX_REMOVAL_SHARE`.
- `decision`: the drift decision that asked for this run (set by `watch_drift`).

**Assets in and out**

In: none (every night at 02:00 UTC, by hand, or started by `watch_drift`). Out: `knowledge_index`, only when a new version was
switched to; it starts `promote_release`.

**When it fails**

A refusal fails the run, because knowledge is then not refreshed and a person must look: too many documents would
vanish (`list_documents`), too many were rejected (`validate_documents`), or retrieval fell below its bound
or below the current version (`check_index`). The current version stays in use. Rejected documents are in the
table `quarantine` with their rule. To try again: correct the cause, then clear the failed task.
"""

from datetime import timedelta

from airflow.sdk import Param, chain, dag
from millrace_assets import KNOWLEDGE_INDEX
from millrace_defaults import DEFAULT_ARGS, Tag, nightly, schedule_start, tags
from millrace_stage import parts_of, stage, stage_parts


@dag(
    schedule=nightly("0 2 * * *"),
    start_date=schedule_start(),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=8),
    default_args=DEFAULT_ARGS,
    tags=tags(Tag.KNOWLEDGE, Tag.NIGHTLY),
    doc_md=__doc__,
    params={
        "corpus": Param(
            None, type=["null", "string"], title="Corpus", section="Source", examples=["pydoc:topics", "s3://bucket/docs"],
            description="pydoc:topics, a folder, or s3://bucket/prefix. Empty: the setting MILLRACE_CORPUS.",
        ),
        "confirm_removal": Param(
            "no", type="string", enum=["no", "yes"], title="Allow a large removal", section="Safety",
            description="yes: remove documents beyond MILLRACE_MAX_REMOVAL_SHARE in this run.",
        ),
        "decision": Param(
            None, type=["null", "string"], title="Drift decision", section="Origin", description="Set by watch_drift."
        ),
    },
)  # fmt: skip
def sync_knowledge():
    listed = stage("list_documents", corpus="{{ params.corpus }}", confirm_removal="{{ params.confirm_removal }}")
    validated = stage("validate_documents")
    indexed = stage_parts("index_documents", parts=parts_of(validated.output))
    # none_failed: on a night without changes there are no parts, the mapped task is skipped, and the check still runs.
    checked = stage("check_index", trigger_rule="none_failed")
    # Dangerous edge: only a version that passed the check is switched to.
    switched = stage("switch_index", skip_when="noop", outlets=[KNOWLEDGE_INDEX])
    chain(listed, validated)
    chain(indexed, checked, switched)


sync_knowledge()
