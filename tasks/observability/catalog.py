"""Every metric of Millrace: name, type, labels, meaning. The exporters are built from it, and docs/operations.md is tested
against it.

Names follow Prometheus: base units, `_total` for counters, `_timestamp_seconds` for moments. No label holds an id of a
run, a request, a document or a client: each holds one of a few words that code or migrations fix, or the number of the
one live release. Reads and writes nothing.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Source = Literal["exporter", "assistant"]


@dataclass(frozen=True)
class Metric:
    """One metric; `buckets` are a histogram's upper bounds."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    source: Source
    buckets: tuple[float, ...] = ()


# (name after `millrace_`, type, labels, meaning), from the database and the run folders: `python -m tasks metrics`.
_EXPORTED: tuple[tuple[str, Kind, str, str], ...] = (
    ("database_up", "gauge", "", "1 where Postgres answered; where it is 0, nothing else is told, rather than old figures"),
    ("storage_up", "gauge", "", "1 where S3 answered when the progress of open stages was asked for"),
    ("scrape_duration_seconds", "gauge", "", "What this answer took"),
    ("stage_last_complete_timestamp_seconds", "gauge", "stage", "Last end with exit code 0 (also of one that found its work done)"),
    ("stage_last_duration_seconds", "gauge", "stage", "Time of the last complete try that did its work itself"),
    ("stage_ends_total", "counter", "stage exit_code", "Tries that ended, by exit code (0 complete, 2 bad input, 3 refused, 75 try again)"),
    ("stage_killed_total", "counter", "stage", "Tries without an end that were started again, whose DAG moved on, or 7 days old"),
    ("stage_open", "gauge", "stage", "Tries without an end that may still run"),
    ("stage_open_oldest_timestamp_seconds", "gauge", "stage", "Start of the oldest of them"),
    ("stage_progress_ratio", "gauge", "stage", "How far the newest open try is, from 0 to 1, as its progress.json says"),
    ("stage_failures_in_a_row", "gauge", "stage", "Failed or killed tries since the last that completed or refused (most of its parts)"),
    ("stage_refusals_in_a_row", "gauge", "stage", "Refusals (exit code 3) since the last complete end"),
    ("stage_last_count", "gauge", "stage count", "Counts of the last end of list_documents, validate_documents, collect_requests, report_drift"),
    ("stage_resource_seconds_total", "counter", "stage resource", "What complete and refused stages used: wall, cpu, gpu (`stage_costs`)"),
    ("gpu_last_30_days_seconds", "gauge", "", "GPU seconds of the stages that ended in the last 30 days (`stage_costs`)"),
    ("gpu_budget_seconds", "gauge", "", "What 30 days may use: MILLRACE_GPU_BUDGET_HOURS; absent where unset"),
    ("gpu_hour_price", "gauge", "", "MILLRACE_GPU_HOUR_PRICE; absent where unset"),
    ("gate_verdicts_total", "counter", "verdict", "Verdicts of the gate: promote, hold, review"),
    ("release_live_info", "gauge", "release model_version index_version", "1; its labels say which release the ledger has as live"),
    ("release_live_created_timestamp_seconds", "gauge", "", "When that release was made"),
    ("releases_total", "counter", "kind", "Rows of the ledger: promotion, rollback"),
    ("releases_not_mirrored", "gauge", "", "Releases that are not yet in MLflow"),
    ("index_created_timestamp_seconds", "gauge", "corpus", "When the current index version was built"),
    ("index_switched_timestamp_seconds", "gauge", "corpus", "When it began to serve"),
    ("index_documents", "gauge", "corpus", "Documents of the current index version of a corpus"),
    ("index_chunks", "gauge", "corpus", "Chunks of the current index version"),
    ("index_versions", "gauge", "status", "Index versions by status"),
    ("quarantined_total", "counter", "kind rule", "Rejected documents, chunks, examples and requests, by rule"),
    ("quarantine_share", "gauge", "", "Share of documents that the last validate_documents rejected"),
    ("drift_window_timestamp_seconds", "gauge", "", "When the last window was judged"),
    ("drift_window_requests", "gauge", "window", "Requests of the last window: reference, current"),
    ("drift_figure_drifted", "gauge", "figure", "1 where the figure drifted in the last window"),
    ("drift_figure_p_adjusted", "gauge", "figure", "Its corrected p-value"),
    ("drift_without_action_in_a_row", "gauge", "", "Newest decisions that found users worse off and did nothing"),
    ("decisions_total", "counter", "action cause held_by", "What drift led to, and the brake that held it"),
    ("decision_last_timestamp_seconds", "gauge", "action", "The last decision for each action"),
    ("requests_last_day", "gauge", "kind outcome", "Recorded requests of the last 24 hours: answered, or the name of the error"),
    ("request_last_timestamp_seconds", "gauge", "", "The newest recorded request"),
    ("feedback_total", "counter", "rating status", "Feedback: up or down; pending, accepted, rejected"),
)  # fmt: skip

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_SCORES = tuple(round(0.05 * step, 2) for step in range(1, 21))

# The same, of one assistant: `GET /metrics` on its port.
_SERVED: tuple[tuple[str, Kind, str, str, tuple[float, ...]], ...] = (
    ("requests_total", "counter", "kind outcome", "Chats and searches that were taken up: answered, or the name of the error", ()),
    ("responses_total", "counter", "route code", "HTTP responses by route and status, refusals included; probes and /metrics are not counted", ()),
    ("phase_seconds", "histogram", "kind phase", "Time of a request: retrieval and generation (each with its wait in line), and total", _SECONDS),
    ("tokens_total", "counter", "direction", "Tokens of prompts and of completions", ()),
    ("context_tokens_cut_total", "counter", "", "Tokens of documents that did not fit into a prompt", ()),
    ("guardrail_events_total", "counter", "rule where action", "What guardrails found, where, and did: noted, left_out, refused, redacted", ()),
    ("limited_total", "counter", "limit", "Requests refused for a limit of their client: requests_per_minute, tokens_per_day", ()),
    ("in_flight", "gauge", "kind", "Requests that wait or are served", ()),
    ("places", "gauge", "kind", "How many may wait or be served; more are refused (Busy)", ()),
    ("best_score", "histogram", "kind", "Best score of each search of the index", _SCORES),
    ("ready", "gauge", "", "1 where a release is loaded", ()),
    ("release_behind", "gauge", "", "1 where the newest release of the ledger is not the one that answers, or the ledger cannot be read", ()),
    ("fallback", "gauge", "", "1 where an earlier release answers because the newest does not load, or fails to generate", ()),
    ("signatures_checked", "gauge", "", "1 where a release has to be signed by an accepted key to be loaded", ()),
    ("release_info", "gauge", "release model_version index_version", "1; its labels say what answers", ()),
    ("release_created_timestamp_seconds", "gauge", "", "When that release was made", ()),
    ("request_log_rows_total", "counter", "result", "Rows of the request log: written, spooled, lost, refused", ()),
    ("request_log_waiting", "gauge", "", "Rows not yet in Postgres", ()),
    ("request_log_spool_bytes", "gauge", "", "Size of the spool file", ()),
    ("traces_total", "counter", "result", "Sampled requests, by what became of their trace: written, dropped, refused", ()),
    ("shadow_answers_total", "counter", "result", "Chats for the shadow: answered, interrupted, failed, busy, unusable, lost", ()),
)  # fmt: skip

EXPORTED = {
    f"millrace_{name}": Metric(f"millrace_{name}", kind, tuple(labels.split()), meaning, "exporter")
    for name, kind, labels, meaning in _EXPORTED
}
SERVED = {
    f"millrace_assistant_{name}": Metric(
        f"millrace_assistant_{name}", kind, tuple(labels.split()), meaning, "assistant", buckets
    )
    for name, kind, labels, meaning, buckets in _SERVED
}
ALL = EXPORTED | SERVED
