"""Bring the knowledge index of a corpus up to date with its documents.

**What it does**

Compares what the corpus lists with what is indexed, reads, extracts, screens and checks the documents that may have changed (in
parts, in parallel), judges them as a whole (copies, rejects, removals), chunks and embeds the good ones into a new index
version (in parts again), measures retrieval on the golden questions, and switches to the new version in one transaction.
The work grows with what changed: on a night without changes nothing is read or built, and `switch_index` is skipped.
Each corpus of `corpora.yaml` has such a DAG: `sync_knowledge` for the one that the assistant answers from, `sync_knowledge_NAME` for others.

**Parameters**

- `corpus`: another place to read the documents of the default corpus from, for this run; empty takes what `corpora.yaml`
  and `MILLRACE_CORPUS` say. Other corpora have no such field.
- `confirm_removal`: `yes` allows a sync to remove more documents than `MILLRACE_MAX_REMOVAL_SHARE`.
- `confirm_unmeasured`: `yes` allows a switch although the current version could not be measured beside the new one (its
  embedder is gone).
- `decision`: the drift decision that asked for this run (set by `watch_drift`).

**Assets in and out**

In: none (by the schedule of the corpus, by hand, or started by `watch_drift`). Out, of the default corpus: `knowledge_index`,
only when a new version was switched to; it starts `promote_release`.

**When it fails**

A refusal fails the run, because knowledge is then not refreshed and a person must look: too many documents would
vanish (`list_documents`, `validate_documents`), too many were rejected (`validate_documents`), or retrieval fell below its bound
or below the current version, or that one could not be measured (`check_index`). The current version stays in use.
Rejected documents are in quarantine: `python -m tasks quarantine list`. A refusal stands for its run: correct the cause,
then start a new run. A task that failed for another reason is cleared in the same run, and goes on where it was.
"""

from datetime import timedelta

from airflow.sdk import DAG, Param, chain
from millrace_assets import KNOWLEDGE_INDEX
from millrace_corpora import DEFAULT, corpora
from millrace_defaults import DEFAULT_ARGS, Tag, nightly, schedule_start, tags
from millrace_stage import PARTS_AT_ONCE, parts_of, stage, stage_parts


def sync_knowledge(corpus: str) -> None:
    place = "{{ params.corpus }}" if corpus == DEFAULT else corpus
    listed = stage("list_documents", corpus=place, confirm_removal="{{ params.confirm_removal }}")
    read = stage_parts("read_documents", parts=parts_of.override(task_id="parts_to_read")(listed.output))
    # none_failed: on a night without changes there are no parts, the mapped tasks are skipped, and the check still runs.
    judged = stage("validate_documents", confirm_removal="{{ params.confirm_removal }}", trigger_rule="none_failed")
    parts = parts_of.override(task_id="parts_to_index")(judged.output)
    indexed = stage_parts("index_documents", parts=parts, parts_at_once=PARTS_AT_ONCE)
    checked = stage("check_index", confirm_unmeasured="{{ params.confirm_unmeasured }}", trigger_rule="none_failed")
    # Dangerous edge: only a version that passed the check is switched to.
    switched = stage("switch_index", skip_when="noop", outlets=[KNOWLEDGE_INDEX] if corpus == DEFAULT else [])
    chain(listed, read, judged)
    chain(indexed, checked, switched)


PLACE = Param(
    None, type=["null", "string"], title="Corpus", section="Source", examples=["pydoc:topics", "s3://bucket/docs"],
    description="pydoc:topics, a folder, or s3://bucket/prefix. Empty: what corpora.yaml and MILLRACE_CORPUS say.",
)  # fmt: skip
PARAMS = {
    "confirm_removal": Param(
        "no", type="string", enum=["no", "yes"], title="Allow a large removal", section="Safety",
        description="yes: remove documents beyond MILLRACE_MAX_REMOVAL_SHARE in this run.",
    ),
    "confirm_unmeasured": Param(
        "no", type="string", enum=["no", "yes"], title="Allow a switch without comparison", section="Safety",
        description="yes: switch although the current version cannot be measured beside the new one.",
    ),
    "decision": Param(
        None, type=["null", "string"], title="Drift decision", section="Origin", description="Set by watch_drift."
    ),
}  # fmt: skip

for one in corpora():
    with DAG(
        one.dag_id,
        schedule=nightly(one.schedule) if one.schedule else None,
        start_date=schedule_start(),
        catchup=False,
        max_active_runs=1,
        dagrun_timeout=timedelta(hours=8),
        default_args=DEFAULT_ARGS,
        tags=tags(Tag.KNOWLEDGE, Tag.NIGHTLY if one.schedule else Tag.MANUAL),
        doc_md=__doc__,
        params={"corpus": PLACE, **PARAMS} if one.name == DEFAULT else PARAMS,
    ):
        sync_knowledge(one.name)
