"""The metrics that are read from the `millrace` database, as SQL.

A column that is named like a metric of `tasks.observability.catalog` is its value, and the columns named like its labels
are its labels; NULL is no sample. Reads only. Fails with psycopg's errors, where a table is not there.
"""

from collections.abc import Iterator
from typing import Any

from tasks.database import Connection
from tasks.observability.catalog import EXPORTED

# A try without an end is over when its place was started again, when its DAG has begun the stage in a later run (DAGs run
# one at a time), or after a week.
_TRIES = """
WITH tries AS (
    SELECT id, run, stage, part, started_at, ended_at, exit_code, ended_at IS NULL AND (
        started_at < now() - interval '7 days' OR EXISTS (
            SELECT FROM stage_runs later WHERE later.id > this.id AND later.stage = this.stage
            AND CASE WHEN later.run = this.run THEN later.part IS NOT DISTINCT FROM this.part
                ELSE regexp_replace(later.run, '/[^/]*$', '') = regexp_replace(this.run, '/[^/]*$', '') END
        )
    ) AS killed
    FROM stage_runs this
)
"""

QUERIES: tuple[str, ...] = (
    _TRIES + """
    SELECT stage,
        extract(epoch FROM max(ended_at) FILTER (WHERE exit_code = 0)) AS millrace_stage_last_complete_timestamp_seconds,
        count(*) FILTER (WHERE killed) AS millrace_stage_killed_total,
        count(*) FILTER (WHERE ended_at IS NULL AND NOT killed) AS millrace_stage_open,
        extract(epoch FROM min(started_at) FILTER (WHERE ended_at IS NULL AND NOT killed))
            AS millrace_stage_open_oldest_timestamp_seconds
    FROM tries GROUP BY stage
    """,
    _TRIES + """
    , good AS (
        SELECT stage, part, coalesce(max(id) FILTER (WHERE exit_code IN (0, 3)), 0) AS id FROM tries GROUP BY stage, part
    ), failed AS (
        SELECT good.stage, good.part, count(tries.id) AS tries FROM good LEFT JOIN tries
        ON tries.stage = good.stage AND tries.part IS NOT DISTINCT FROM good.part AND tries.id > good.id
        AND (tries.killed OR tries.ended_at IS NOT NULL)
        GROUP BY good.stage, good.part
    )
    SELECT stage, max(tries) AS millrace_stage_failures_in_a_row FROM failed GROUP BY stage
    """,
    """
    SELECT stage, count(*) FILTER (WHERE exit_code = 3 AND id > done) AS millrace_stage_refusals_in_a_row
    FROM (SELECT stage, id, exit_code,
        coalesce(max(id) FILTER (WHERE exit_code = 0) OVER (PARTITION BY stage), 0) AS done FROM stage_runs) each
    GROUP BY stage
    """,
    """
    SELECT DISTINCT ON (stage) stage, extract(epoch FROM ended_at - started_at) AS millrace_stage_last_duration_seconds
    FROM stage_runs WHERE exit_code = 0 AND NOT reused ORDER BY stage, id DESC
    """,
    """
    SELECT stage, exit_code, count(*) AS millrace_stage_ends_total
    FROM stage_runs WHERE ended_at IS NOT NULL GROUP BY stage, exit_code
    """,
    """
    SELECT stage, key AS count, value::float AS millrace_stage_last_count FROM (
        SELECT DISTINCT ON (stage) stage, counts FROM stage_runs
        WHERE exit_code IN (0, 3) AND stage IN ('list_documents', 'validate_documents', 'collect_requests', 'report_drift')
        ORDER BY stage, id DESC
    ) newest, jsonb_each_text(counts)
    """,
    """
    SELECT rejected / nullif(rejected + (counts->>'valid')::float + coalesce((counts->>'unchanged')::float, 0), 0)
        AS millrace_quarantine_share
    FROM stage_runs, LATERAL (
        SELECT (counts->>'quarantined')::float + coalesce((counts->>'still_rejected')::float, 0) AS rejected
    ) all_of_them WHERE stage = 'validate_documents' AND counts ? 'quarantined' ORDER BY id DESC LIMIT 1
    """,
    """
    SELECT verdict, count(*) AS millrace_gate_verdicts_total
    FROM stage_runs WHERE stage = 'gate' AND verdict IS NOT NULL AND NOT reused GROUP BY verdict
    """,
    """
    SELECT stage, key AS resource, sum(value::float) AS millrace_stage_resource_seconds_total
    FROM stage_costs, jsonb_each_text(resource_seconds) GROUP BY stage, key
    """,
    """
    SELECT coalesce(sum((resource_seconds->>'gpu')::float), 0) AS millrace_gpu_last_30_days_seconds
    FROM stage_costs WHERE ended_at > now() - interval '30 days'
    """,
    """
    SELECT release, model_version, index_version, 1 AS millrace_release_live_info,
        extract(epoch FROM created_at) AS millrace_release_live_created_timestamp_seconds
    FROM releases ORDER BY release DESC LIMIT 1
    """,
    "SELECT kind, count(*) AS millrace_releases_total FROM releases GROUP BY kind",
    """
    SELECT count(*) AS millrace_releases_not_mirrored
    FROM releases LEFT JOIN release_mirrors USING (release) WHERE release_mirrors.release IS NULL
    """,
    """
    SELECT corpus, extract(epoch FROM created_at) AS millrace_index_created_timestamp_seconds,
        extract(epoch FROM switched_at) AS millrace_index_switched_timestamp_seconds,
        documents AS millrace_index_documents, chunks AS millrace_index_chunks
    FROM index_versions WHERE status = 'current'
    """,
    "SELECT status, count(*) AS millrace_index_versions FROM index_versions GROUP BY status",
    "SELECT kind, rule, count(*) AS millrace_quarantined_total FROM quarantine GROUP BY kind, rule",
    """
    SELECT extract(epoch FROM created_at) AS millrace_drift_window_timestamp_seconds
    FROM drift_windows ORDER BY id DESC LIMIT 1
    """,
    """
    SELECT label AS window, rows AS millrace_drift_window_requests
    FROM (SELECT * FROM drift_windows ORDER BY id DESC LIMIT 1) newest,
        LATERAL (VALUES ('reference', reference_rows), ('current', current_rows)) sides (label, rows)
    """,
    """
    SELECT key AS figure, (value->>'drifted')::boolean::integer AS millrace_drift_figure_drifted,
        (value->>'p_adjusted')::float AS millrace_drift_figure_p_adjusted
    FROM (SELECT metrics FROM drift_windows ORDER BY id DESC LIMIT 1) newest, jsonb_each(metrics->'tests')
    """,
    """
    WITH found AS (
        SELECT id, action, EXISTS (
            SELECT FROM jsonb_each(evidence->'tests') test WHERE (test.value->>'harm')::boolean
        ) AS drifted FROM decisions
    )
    SELECT count(*) AS millrace_drift_without_action_in_a_row FROM found
    WHERE id > coalesce((SELECT max(id) FROM found WHERE action <> 'none' OR NOT drifted), 0)
    """,
    "SELECT action, cause, coalesce(held_by, '') AS held_by, count(*) AS millrace_decisions_total FROM decisions "
    "GROUP BY action, cause, held_by",
    """
    SELECT action, extract(epoch FROM max(created_at)) AS millrace_decision_last_timestamp_seconds
    FROM decisions GROUP BY action
    """,
    """
    SELECT kind, coalesce(error, 'answered') AS outcome, count(*) AS millrace_requests_last_day
    FROM requests WHERE created_at > now() - interval '1 day' GROUP BY kind, coalesce(error, 'answered')
    """,
    "SELECT extract(epoch FROM max(created_at)) AS millrace_request_last_timestamp_seconds FROM requests",
    "SELECT rating, status, count(*) AS millrace_feedback_total FROM feedback GROUP BY rating, status",
)  # fmt: skip

# The newest try of each stage that may still run, for its progress.
OPEN = _TRIES + """
    SELECT DISTINCT ON (stage) stage, run, part FROM tries
    WHERE ended_at IS NULL AND NOT killed ORDER BY stage, id DESC
"""  # fmt: skip

Sample = tuple[str, dict[str, str], float]


def samples(connection: Connection) -> Iterator[Sample]:
    """Yield every sample of the database: metric, labels, value."""
    for query in QUERIES:
        for row in connection.execute(query.encode()):
            yield from _of(row)


def _of(row: dict[str, Any]) -> Iterator[Sample]:
    for column, value in row.items():
        metric = EXPORTED.get(column)
        if metric is not None and value is not None:
            yield metric.name, {label: str(row[label]) for label in metric.labels}, float(value)
