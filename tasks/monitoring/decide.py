"""Decide what drift leads to: nothing, refresh the knowledge, train again, or alert.

Reads the manifests of collect_requests and report_drift, the corpus listing, tables `documents`,
`feedback` and `decisions`. Writes one row of `decisions` (a decision to do nothing is a row too), with
the id of the DAG run it starts. Two brakes, both in the same transaction as the row: the same evidence
(cause and data) never acts twice, and no second action of one kind within
`MILLRACE_DRIFT_COOLDOWN_HOURS`. A repeated run returns the decision it made.
"""

import json
from typing import Any

from tasks.contracts import digest
from tasks.database import Connection, connect
from tasks.monitoring.corpus import Gap, corpus_gap
from tasks.monitoring.routes import DAGS, Findings, Route, explain, route
from tasks.stage import Stage, StageContext, StageOptions, StageResult

_LOCK = 0x44656369  # spells "Deci"


class Options(StageOptions):
    """No options: levels and the cooldown are settings."""


def run(context: StageContext, options: Options) -> StageResult:
    """Decide, and record the decision with its reason."""
    url = context.settings.database_url.get_secret_value()
    with connect(url, vectors=False) as connection:
        found = findings(context, connection)
    wanted = route(found)
    key = digest({"cause": wanted.cause, "data": context.inputs["collect_requests"].facts["data_sha256"]})
    with connect(url, vectors=False) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        row = _made(connection, context.run)
        if row is None:
            chosen = _braked(connection, context, wanted, key)
            row = _write(context, connection, found, chosen, wanted, key)
    dag_id = row["dag_id"] or ""
    return StageResult(
        counts={"drifted": len(found.drifted), "acts": int(row["action"] != "none")},
        facts={
            "action": row["action"],
            "cause": row["cause"],
            "reason": row["reason"],
            "decision": row["id"],
            "dag_id": dag_id,
            "dag_run_id": row["dag_run_id"] if dag_id else "",
            "conf": {"decision": str(row["id"])} if dag_id else {},
            "drifted": found.drifted,
        },
    )


def findings(context: StageContext, connection: Connection) -> Findings:
    """Return what is known: the tests, and where drift was found, the state of corpus and feedback."""
    report = context.inputs["report_drift"]
    gap = Gap(0, 0)
    corrections = 0
    if report.facts["drifted"]:  # the corpus is listed only when the answer depends on it
        gap = corpus_gap(context.settings, context.storage, connection)
        corrections = _corrections(connection)
    return Findings(
        enough=report.facts["enough"],
        reference_rows=report.counts["reference"],
        current_rows=report.counts["current"],
        least_requests=report.facts["least_requests"],
        tests=report.facts["tests"],
        new_topics=report.facts["new_topics"],
        corrections=corrections,
        missing_documents=gap.missing,
        changed_documents=gap.changed,
        corpus_problem=gap.problem,
    )


def _corrections(connection: Connection) -> int:
    """Return the number of accepted corrections given since the live release was made."""
    row = connection.execute(
        "SELECT count(*) AS found FROM feedback WHERE status = 'accepted' AND correction IS NOT NULL "
        "AND created_at > coalesce((SELECT created_at FROM releases ORDER BY release DESC LIMIT 1), '-infinity')"
    ).fetchone()
    return int(row["found"]) if row else 0


def _braked(connection: Connection, context: StageContext, wanted: Route, key: str) -> Route:
    """Return the wanted route, or none with the brake that holds it."""
    if wanted.action == "none":
        return wanted
    same = connection.execute(
        "SELECT id FROM decisions WHERE action <> 'none' AND evidence->>'key' = %s ORDER BY id DESC LIMIT 1", (key,)
    ).fetchone()
    if same:
        return Route(
            "none",
            "same_evidence",
            f"decision {same['id']} already acted on this evidence ({wanted.action}: {wanted.sentence})",
        )
    hours = context.settings.drift_cooldown_hours
    recent = connection.execute(
        "SELECT id, created_at FROM decisions WHERE action = %s AND created_at > now() - make_interval(secs => %s) "
        "ORDER BY id DESC LIMIT 1",
        (wanted.action, hours * 3600),
    ).fetchone()
    if recent:
        return Route(
            "none",
            "cooldown",
            f"{wanted.action} is due ({wanted.sentence}), but decision {recent['id']} of {recent['created_at']:%Y-%m-%d %H:%M} "
            f"did it less than {hours:g} hours ago",
        )
    return wanted


def _made(connection: Connection, run: str) -> dict[str, Any] | None:
    return connection.execute(
        "SELECT id, action, cause, reason, dag_id, dag_run_id FROM decisions WHERE run = %s", (run,)
    ).fetchone()


def _write(
    context: StageContext, connection: Connection, found: Findings, chosen: Route, wanted: Route, key: str
) -> dict[str, Any]:
    evidence = {
        "key": key,
        "wanted": {"action": wanted.action, "cause": wanted.cause},
        "tests": found.tests,
        "new_topics": list(found.new_topics),
        "missing_documents": found.missing_documents,
        "changed_documents": found.changed_documents,
        "corrections": found.corrections,
        "report_uri": context.inputs["report_drift"].facts["report_uri"],
    }
    row = connection.execute(
        "INSERT INTO decisions (run, window_id, action, cause, reason, evidence, dag_id) "
        "VALUES (%s, %s, %s, %s, %s, %s::jsonb, %s) RETURNING id",
        (
            context.run,
            context.inputs["report_drift"].facts["window"],
            chosen.action,
            chosen.cause,
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
