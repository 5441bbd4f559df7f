"""Retire what nobody uses any more.

**What it does**

Drops index versions that are neither current, nor part of a recent release, nor among the newest of their corpus that
served (`MILLRACE_KEEP_INDEX_VERSIONS`); what never served (refused, left by a killed run) after a day. Deletes run folders
older than `MILLRACE_KEEP_RUN_DAYS` (of one that a release was judged in, `evaluate/`, `gate/` and `register/` stay, but
for the text of documents), and days of requests older than `MILLRACE_KEEP_REQUEST_DAYS` with their traces in MLflow
(what feedback that is trained on was about stays with it); makes the partitions of the next days of requests. Models and datasets are never
deleted: releases point at them. Where stages are pods, `sweep_pods` removes those whose task has ended and that nobody
watches any more (`dry_run` does not concern it).

**Parameters**

- `dry_run`: `yes` only lists what would be retired.

**Assets in and out**

None (every Sunday at 05:00 UTC, or by hand).

**When it fails**

It fails when Postgres, S3 or MLflow do not answer for long. What was retired before stays retired; clearing the task goes on
with the rest. The list of what was (or would be) retired is in the manifest.
"""

from datetime import timedelta

from airflow.sdk import Param, dag
from millrace_defaults import DEFAULT_ARGS, Tag, nightly, schedule_start, tags
from millrace_stage import stage, sweep


@dag(
    schedule=nightly("0 5 * * 0"),
    start_date=schedule_start(),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=2),
    default_args=DEFAULT_ARGS,
    tags=tags(Tag.HOUSEKEEPING, Tag.WEEKLY),
    doc_md=__doc__,
    params={
        "dry_run": Param(
            "no",
            type="string",
            enum=["no", "yes"],
            title="Only list",
            description="yes: nothing is dropped or deleted.",
        )
    },
)
def housekeeping():
    # Dangerous edge: this deletes. The stage keeps everything that a release or the current index needs.
    stage("retire", dry_run="{{ params.dry_run }}")
    sweep()


housekeeping()
