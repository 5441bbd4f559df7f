"""A database in which every metric of the exporter has something to tell."""

import psycopg

RUNS = "s3://millrace/runs"
STATEMENTS = (
    # sync_knowledge: one run that did its work, one that found it done.
    f"""INSERT INTO stage_runs (run, stage, try, trace_id, host, started_at, ended_at, exit_code, reused, counts) VALUES
    ('{RUNS}/sync_knowledge/1', 'list_documents', 1, 't', 'h', now() - interval '3 h', now() - interval '170 min', 0, false,
        '{{"documents": 79, "added": 79}}'),
    ('{RUNS}/sync_knowledge/1', 'validate_documents', 1, 't', 'h', now() - interval '3 h', now() - interval '179 min', 0,
        false, '{{"valid": 75, "quarantined": 25}}'),
    ('{RUNS}/sync_knowledge/2', 'list_documents', 1, 't', 'h', now() - interval '2 h', now() - interval '2 h', 0, true,
        '{{"documents": 79, "added": 0}}')""",
    # train: failed, killed and started again, then one that runs.
    f"""INSERT INTO stage_runs (run, stage, try, trace_id, host, started_at, ended_at, exit_code, error) VALUES
    ('{RUNS}/fine_tune/1', 'train', 1, 't', 'h', now() - interval '9 h', now() - interval '8 h', 75, 'Preempted'),
    ('{RUNS}/fine_tune/1', 'train', 2, 't', 'h', now() - interval '7 h', NULL, NULL, NULL),
    ('{RUNS}/fine_tune/1', 'train', 3, 't', 'h', now() - interval '6 h', NULL, NULL, NULL)""",
    # A DAG that moved on, a part among healthy ones, and a try of last month.
    f"""INSERT INTO stage_runs (run, stage, part, trace_id, host, started_at, ended_at, exit_code) VALUES
    ('{RUNS}/watch_drift/1', 'collect_requests', NULL, 't', 'h', now() - interval '2 d', NULL, NULL),
    ('{RUNS}/watch_drift/2', 'collect_requests', NULL, 't', 'h', now() - interval '1 d', now() - interval '1 d', 0),
    ('{RUNS}/sync_knowledge/2', 'index_documents', '0', 't', 'h', now() - interval '1 h', now() - interval '1 h', 1),
    ('{RUNS}/sync_knowledge/2', 'index_documents', '1', 't', 'h', now() - interval '1 h', now() - interval '1 h', 0),
    ('{RUNS}/housekeeping/1', 'retire', NULL, 't', 'h', now() - interval '30 d', NULL, NULL)""",
    # The gate: promote once, then two that do not; the last was found again, which is no new verdict.
    f"""INSERT INTO stage_runs (run, stage, trace_id, host, started_at, ended_at, exit_code, reused, verdict) VALUES
    ('{RUNS}/fine_tune/a', 'gate', 't', 'h', now(), now(), 0, false, 'promote'),
    ('{RUNS}/fine_tune/b', 'gate', 't', 'h', now(), now(), 3, false, 'hold'),
    ('{RUNS}/fine_tune/c', 'gate', 't', 'h', now(), now(), 3, false, 'review'),
    ('{RUNS}/fine_tune/c', 'gate', 't', 'h', now(), now(), 3, true, 'review')""",
    f"""INSERT INTO stage_costs (run, stage, status, started_at, ended_at, resource_seconds, host) VALUES
    ('{RUNS}/fine_tune/1', 'train', 'complete', now() - interval '40 d', now() - interval '40 d', '{{"gpu": 1000, "cpu": 3}}', 'h'),
    ('{RUNS}/fine_tune/2', 'train', 'complete', now() - interval '2 d', now() - interval '1 d', '{{"gpu": 7200, "cpu": 4}}', 'h')""",
    """INSERT INTO index_versions (fingerprint, corpus, corpus_sha256, embedder, dimensions, table_name, status, documents,
        chunks, run, switched_at) VALUES
    ('f', 'default', 's', 'e', 3, 'chunks_1', 'former', 70, 700, 'r1', now() - interval '2 d'),
    ('f', 'default', 's', 'e', 3, 'chunks_2', 'current', 79, 791, 'r2', now() - interval '1 d')""",
    """INSERT INTO releases (kind, model_name, model_version, base_model, base_revision, prompt_sha256, prompt, index_version,
        embedder, code_revision, evidence_uri, evidence_sha256, approved_by, reason, run) VALUES
    ('promotion', 'm', '1', 'b', 'r', 'p', 'p', 1, 'e', 'c', 'u', 's', 'a', 'why', 'r1'),
    ('promotion', 'm', '2', 'b', 'r', 'p', 'p', 2, 'e', 'c', 'u', 's', 'a', 'why', 'r2')""",
    "INSERT INTO release_mirrors (release) VALUES (1)",
    """INSERT INTO quarantine (kind, item, rule, reason, excerpt, run) VALUES
    ('document', 'a', 'text_is_new', '', '', 'r'), ('document', 'b', 'text_is_new', '', '', 'r')""",
    """INSERT INTO drift_windows (run, reference_rows, current_rows, metrics, report_uri) VALUES
    ('w1', 1, 1, '{"tests": {}}', 'u'),
    ('w2', 335, 297, '{"tests": {"best_score": {"drifted": true, "p_adjusted": 1e-9},
        "latency_ms": {"drifted": false, "p_adjusted": 0.4}}}', 'u')""",
    """INSERT INTO decisions (run, action, cause, held_by, reason, evidence) VALUES
    ('d1', 'train_again', 'knowledge', NULL, 'r', '{"tests": {"best_score": {"harm": true}}}'),
    ('d2', 'none', 'knowledge', 'cooldown', 'r', '{"tests": {"best_score": {"harm": true}}}'),
    ('d3', 'none', 'none', NULL, 'r', '{"tests": {"best_score": {"harm": false}}}'),
    ('d4', 'none', 'knowledge', 'cooldown', 'r', '{"tests": {"best_score": {"harm": true}}}'),
    ('d5', 'none', 'knowledge', 'cooldown', 'r', '{"tests": {"latency_ms": {"harm": true}}}')""",
    """INSERT INTO requests (id, created_at, kind, question, latency_ms, error) VALUES
    (gen_random_uuid(), now() - interval '2 d', 'chat', 'q', 1, NULL),
    (gen_random_uuid(), now() - interval '1 h', 'chat', 'q', 1, NULL),
    (gen_random_uuid(), now() - interval '1 h', 'search', 'q', 1, 'Busy')""",
    "INSERT INTO feedback (request_id, rating) VALUES (gen_random_uuid(), 'up')",
)


def fill(url: str) -> None:
    """Write the rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in STATEMENTS:
            connection.execute(statement.encode())
