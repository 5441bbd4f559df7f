"""Go back to an earlier release.

**What it does**

Lists the earlier releases, asks which one shall answer again (Required Actions: number, when, kind, model and index version,
who, why), verifies that every part of it still exists, writes a new row of kind `rollback` into the ledger (the ledger is
append-only: history stays), mirrors it into MLflow, and announces it. The assistant serves the old release within seconds.

The list is asked for by a task of the run: parameters of a DAG are fixed when it is parsed, where nothing is read.

**Parameters**

- `release`: the number of the release to restore; then nothing is asked. Empty: it is chosen from the list.
- `reason`: why; kept in the ledger. It may be given with the choice.

**Assets in and out**

In: none (by hand only). Out: `release`.

**When it fails**

It fails when there is no release of that number, when it is live already, when the run restored another one before, or when a
part of it is gone (housekeeping keeps the last releases); the live release stays then. With no answer within an hour, or
Cancel, it ends as a success that changed nothing. Who chose, or else who triggered the run, is recorded as the one who
approved it. A note that nobody took fails the run after the rollback: the earlier release answers, and clearing
`announce_rollback` tells the others.
"""

from datetime import timedelta

from airflow.sdk import Param, chain, dag
from millrace_assets import RELEASE
from millrace_choice import ReleaseChoice
from millrace_defaults import DEFAULT_ARGS, Tag, schedule_start, tags
from millrace_stage import stage

CHOSEN = "ti.xcom_pull(task_ids='choose')"


@dag(
    schedule=None,
    start_date=schedule_start(),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=4),
    default_args=DEFAULT_ARGS,
    tags=tags(Tag.RELEASE, Tag.MANUAL),
    doc_md=__doc__,
    params={
        "release": Param(
            None, type=["null", "integer"], minimum=1, title="Release",
            description="Number of the release to restore. Empty: choose it from the list, under Required Actions.",
        ),
        "reason": Param(
            None, type=["null", "string"], minLength=3, maxLength=2000, title="Reason",
            description="Why; kept in the ledger. With a number it is required, else it may be given with the choice.",
        ),
    },
)  # fmt: skip
def roll_back():
    listed = stage("list_releases", on_refusal="skip", release="{{ params.release or '' }}")
    chosen = ReleaseChoice(task_id="choose", listing="list_releases")
    # Dangerous edge: it changes what every user gets, without a second person; choosing a release is the approval.
    restored = stage(
        "roll_back",
        outlets=[RELEASE],
        release=f"{{{{ {CHOSEN}['release'] }}}}",
        reason=f"{{{{ {CHOSEN}['reason'] }}}}",
        approved_by=f"{{{{ {CHOSEN}['by'] }}}}",
    )
    chain(listed, chosen, restored, stage("announce_rollback"))


roll_back()
