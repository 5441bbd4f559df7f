"""Look for drift in what the assistant is asked, and start what helps.

**What it does**

Takes the requests of the last hours (more hours where they are few) and the frozen reference of the live model and prompt,
checks both, compares every figure and the questions' vectors, writes Evidently's report and a page of its own, and asks the
golden questions again. Then it decides what the cause is (knowledge, behaviour, traffic, none) and what helps: refresh the
knowledge, train again, alert, or nothing; and starts the decided DAG.

**Parameters**

- `since`: where the current window begins; empty takes the last `hours`.
- `hours`: length of the current window.
- `agree`: how many of the last windows must agree before a DAG is started; 0 takes the setting.

**Assets in and out**

In: none (every night at 04:00 UTC, or by hand). Out: `drift_decision`. The decided DAG (`sync_knowledge` or `fine_tune`)
is triggered by name, because it gets the decision as a parameter. Both runs link to each other: the button of `trigger`
leads to the started run, and that run's note back to this one.

**When it fails**

Too few requests is no failure: no test is made, and the decision is "none". A decision without a DAG skips `trigger`; which
brake held it is in the decision's reason. The run fails when Postgres, S3 or MLflow do not answer for long, or when the
decided DAG is paused: unpause it, then clear `trigger`. A cleared task never starts a second run for one decision.
"""

from datetime import timedelta

from airflow.sdk import Param, chain, dag
from millrace_assets import DRIFT_DECISION
from millrace_defaults import DEFAULT_ARGS, Tag, nightly, schedule_start, tags
from millrace_stage import stage
from millrace_trigger import RUNNING, TriggerDecided


@dag(
    schedule=nightly("0 4 * * *"),
    start_date=schedule_start(),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=4),
    default_args=DEFAULT_ARGS,
    tags=tags(Tag.MONITORING, Tag.NIGHTLY),
    doc_md=__doc__,
    params={
        "since": Param(
            None, type=["null", "string"], format="date-time", title="Since", section="Current window",
            description="Requests from this moment on are the current window. Empty: the last hours.",
        ),
        "hours": Param(
            24, type="integer", minimum=1, maximum=720, title="Hours", section="Current window",
            description="Length of the current window where no moment is given.",
        ),
        "agree": Param(
            0, type="integer", minimum=0, maximum=30, title="Windows that agree", section="Decision",
            description="How many of the last windows must agree before a DAG is started. 0: the setting.",
        ),
    },
)  # fmt: skip
def watch_drift():
    collected = stage("collect_requests", since="{{ params.since }}", hours="{{ params.hours }}")
    reported = stage("report_drift")
    decided = stage("decide", agree="{{ params.agree }}", running=RUNNING, outlets=[DRIFT_DECISION])
    # Dangerous edge: this starts hours of GPU work. The decision has brakes, and its id makes the run id.
    started = TriggerDecided(task_id="trigger", decision="decide")
    chain(collected, reported, decided, started)


watch_drift()
