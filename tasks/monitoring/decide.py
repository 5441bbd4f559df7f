"""Decide what drift leads to: nothing, refresh the knowledge, train again, or alert.

Reads the manifests of collect_requests and report_drift, the corpus listing, tables `documents`, `feedback`, `releases` and
`decisions`. Writes one row of `decisions` (a decision to do nothing is a row too), with the id of the DAG run it starts.
The cause is `tasks.monitoring.routes`'; what holds the action is `tasks.monitoring.brakes`', in the same transaction as the
row. A repeated run returns the decision it made.
"""

import json
from datetime import datetime
from typing import Any

from pydantic import Field

from tasks.contracts import digest
from tasks.database import Connection, connect
from tasks.monitoring import references
from tasks.monitoring.brakes import Now, braked
from tasks.monitoring.corpus import Gap, corpus_gap
from tasks.monitoring.routes import DAGS, HITS, Findings, Route, explain, route
from tasks.stage import Stage, StageContext, StageOptions, StageResult

_LOCK = 0x44656369  # spells "Deci"


class Options(StageOptions):
    """Levels are settings; what this run says differently."""

    agree: int = Field(default=0, ge=0, le=30, description="Windows that must agree; 0: MILLRACE_DRIFT_AGREE")
    running: int = Field(default=0, ge=0, description="Runs of the DAGs that a decision starts which have not ended")


def run(context: StageContext, options: Options) -> StageResult:
    """Decide, and record the decision with its reason."""
    url = context.settings.database_url.get_secret_value()
    with connect(url, vectors=False) as connection:
        found = findings(context, connection)
        wanted = route(found)
        now = _now(context, connection, options, wanted)
    with connect(url, vectors=False) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        row = _made(connection, context.run)
        if row is None:
            chosen = braked(connection, context.settings, wanted, now)
            row = _write(context, connection, found, chosen, wanted, now)
    dag_id = row["dag_id"] or ""
    return StageResult(
        counts={"drifted": len(found.drifted), "acts": int(row["action"] != "none")},
        facts={
            "action": row["action"],
            "cause": row["cause"],
            "detail": row["detail"],
            "held_by": row["held_by"],
            "reason": row["reason"],
            "decision": row["id"],
            "dag_id": dag_id,
            "dag_run_id": row["dag_run_id"] if dag_id else "",
            "conf": _conf(context, row) if dag_id else {},
            "drifted": found.drifted,
        },
    )


def _conf(context: StageContext, row: dict[str, Any]) -> dict[str, Any]:
    """Return what the decided DAG's run is given: the decision, and where its evidence lies."""
    report = context.inputs["report_drift"].facts
    evidence = {
        "run": context.run,
        "cause": row["cause"],
        "detail": row["detail"],
        "report_uri": report["report_uri"],
        "mlflow_url": report["mlflow_url"],
    }
    return {"decision": str(row["id"]), "evidence": evidence}


def findings(context: StageContext, connection: Connection) -> Findings:
    """Return what is known: the tests, and where it is worse, the state of corpus and feedback."""
    report, collected = context.inputs["report_drift"], context.inputs["collect_requests"]
    gap = Gap(0, 0)
    corrections, refreshed = 0, False
    if report.facts["harm"]:
        corrections = _corrections(connection)
        least = context.settings.drift_min_corrections
        corrections = corrections if corrections >= least else 0
    if HITS.intersection(report.facts["harm"]):  # the corpus is listed only when the answer depends on it
        gap = corpus_gap(context.settings, context.storage, connection)
        refreshed = _refreshed(connection)
    return Findings(
        enough=report.facts["enough"],
        reference_rows=report.counts["reference"],
        current_rows=report.counts["current"],
        least_requests=report.facts["least_requests"],
        tests=report.facts["tests"],
        topics=report.facts["topics"],
        surges=report.facts["surges"],
        explained=report.facts["explained"],
        rate=report.facts["rate"],
        quarantined_share=collected.facts["quarantined_share"],
        recorded_rows=collected.facts["recorded"],
        golden_fell=report.facts["golden_fell"],
        corrections=corrections,
        missing_documents=gap.missing,
        changed_documents=gap.changed,
        named_documents=gap.named,
        corpus_problem=gap.problem,
        refreshed_before=refreshed,
    )


def _corrections(connection: Connection) -> int:
    """Return the number of accepted corrections given since the live model and prompt were released."""
    row = connection.execute(
        "SELECT count(*) AS found FROM feedback WHERE status = 'accepted' AND correction IS NOT NULL "
        "AND created_at > coalesce(%s::timestamptz, '-infinity')",
        (references.lineage(connection).since,),
    ).fetchone()
    return int(row["found"]) if row else 0


def _refreshed(connection: Connection) -> bool:
    """Return whether the corpus was read again for missing topics in the last week: it had nothing on them."""
    row = connection.execute(
        "SELECT 1 FROM decisions WHERE action = 'refresh_knowledge' AND detail = 'topics_missing' "
        "AND created_at > now() - interval '7 days' LIMIT 1"
    ).fetchone()
    return row is not None


def _now(context: StageContext, connection: Connection, options: Options, wanted: Route) -> Now:
    facts = context.inputs["collect_requests"].facts
    agree = options.agree or context.settings.drift_agree
    return Now(
        key=digest({"cause": wanted.cause, "data": facts["data_sha256"]}),
        since=datetime.fromisoformat(facts["since"]),
        until=datetime.fromisoformat(facts["until"]),
        agree=agree,
        of=max(agree, context.settings.drift_windows),
        running=options.running,
        lineage_since=references.lineage(connection).since,
    )


def _made(connection: Connection, run: str) -> dict[str, Any] | None:
    return connection.execute(
        "SELECT id, action, cause, detail, held_by, reason, dag_id, dag_run_id FROM decisions WHERE run = %s", (run,)
    ).fetchone()


def _write(
    context: StageContext, connection: Connection, found: Findings, chosen: Route, wanted: Route, now: Now
) -> dict[str, Any]:
    report = context.inputs["report_drift"].facts
    evidence = {
        "key": now.key,
        "wanted": {"action": wanted.action, "cause": wanted.cause, "detail": wanted.detail},
        "window": {"since": now.since.isoformat(), "until": now.until.isoformat()},
        "agree": now.agree,
        "of": now.of,
        "tests": found.tests,
        "topics": list(found.topics),
        "surges": found.surges,
        "explained": list(found.explained),
        "rate": found.rate,
        "golden": report["golden"],
        "missing_documents": found.missing_documents,
        "changed_documents": found.changed_documents,
        "named_documents": list(found.named_documents),
        "index_age_days": report["index_age_days"],
        "corrections": found.corrections,
        "report_uri": report["report_uri"],
        "mlflow_url": report["mlflow_url"],
    }
    row = connection.execute(
        "INSERT INTO decisions (run, window_id, action, cause, detail, held_by, reason, evidence, dag_id) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s) RETURNING id",
        (
            context.run,
            report["window"],
            chosen.action,
            chosen.cause,
            chosen.detail,
            chosen.held_by,
            explain(found, chosen),
            json.dumps(evidence),
            DAGS.get(chosen.action),
        ),
    ).fetchone()
    assert row is not None  # INSERT ... RETURNING gives a row or raises
    # The run's id is known before the run exists, so that a second trigger of one decision finds the first.
    connection.execute(
        "UPDATE decisions SET dag_run_id = 'drift__' || id WHERE id = %s AND dag_id IS NOT NULL", (row["id"],)
    )
    made = _made(connection, context.run)
    assert made is not None
    return made


STAGE = Stage("decide", Options, run, needs=("collect_requests", "report_drift"))
