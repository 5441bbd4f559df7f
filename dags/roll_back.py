"""Go back to an earlier release.

**What it does**

Verifies that every part of the chosen release still exists, writes a new row of kind `rollback` into the ledger (the
ledger is append-only: history stays), and mirrors it into MLflow. The assistant serves the old release again within seconds.

**Parameters**

- `release`: the number of the release to restore (see the announcements, or the table `releases`).
- `reason`: why; kept in the ledger.

**Assets in and out**

In: none (by hand only). Out: `release`.

**When it fails**

It fails when there is no release of that number, when it is live already, or when a part of it is gone (housekeeping keeps
the last releases); the live release stays then. The person who triggered the run is recorded as the one who approved it.
"""

from datetime import timedelta

from airflow.sdk import Param, dag
from millrace_assets import RELEASE
from millrace_defaults import DEFAULT_ARGS, Tag, schedule_start, tags
from millrace_stage import stage


@dag(
    schedule=None,
    start_date=schedule_start(),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    default_args=DEFAULT_ARGS,
    tags=tags(Tag.RELEASE, Tag.MANUAL),
    doc_md=__doc__,
    params={
        "release": Param(type="integer", minimum=1, title="Release", description="Number of the release to restore."),
        "reason": Param(type="string", minLength=3, title="Reason", description="Why; kept in the ledger."),
    },
)
def roll_back():
    # Dangerous edge: it changes what every user gets, without a second person; triggering it is the approval.
    stage(
        "roll_back",
        outlets=[RELEASE],
        release="{{ params.release }}",
        reason="{{ params.reason }}",
        approved_by="{{ dag_run.triggering_user_name or 'unknown' }}",
    )


roll_back()
