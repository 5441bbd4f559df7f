"""The exporter against a real Postgres and S3: every metric is there, and says what the rows say."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import httpx
import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tasks.observability.catalog import ALL, EXPORTED
from tasks.observability.exporter import Loop, main
from tasks.settings import REPOSITORY, Settings, load_settings
from tasks.storage import Storage

from .filled import RUNS, fill

Scrape = dict[tuple[str, tuple[tuple[str, str], ...]], float]
LEAST = {"MILLRACE_DATABASE_URL": "postgresql://u@127.0.0.1:9/x", "MILLRACE_MLFLOW_TRACKING_URI": "http://m"}


def read(text: str) -> Scrape:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(configured: Settings) -> Scrape:
    registry = CollectorRegistry()
    registry.register(Loop(configured))
    return read(generate_latest(registry).decode())


def value(found: Scrape, name: str, **labels: str) -> float:
    return found[f"millrace_{name}", tuple(sorted(labels.items()))]


@pytest.fixture
def filled(configured: Settings) -> Scrape:
    fill(configured.database_url.get_secret_value())
    uri = f"{RUNS}/fine_tune/1/train/progress.json"
    Storage(configured.s3_endpoint_url).put_json(uri, {"done": 5, "total": 20, "unit": "steps"})
    return scrape(configured.model_copy(update={"gpu_hour_price": 2.5}))


@pytest.mark.integration
def test_every_metric_of_the_catalog_is_told_with_its_labels(filled: Scrape) -> None:
    assert {name for name, _labels in filled} == set(EXPORTED)
    for name, labels in filled:
        assert tuple(sorted(EXPORTED[name].labels)) == tuple(label for label, _value in labels), name


@pytest.mark.integration
def test_the_stages_are_told_as_their_rows_say(filled: Scrape) -> None:
    now = time.time()
    assert value(filled, "stage_last_duration_seconds", stage="list_documents") == 600
    assert value(filled, "stage_last_complete_timestamp_seconds", stage="list_documents") == pytest.approx(
        now - 7200, abs=60
    )
    assert value(filled, "stage_ends_total", stage="gate", exit_code="3") == 3
    # Of train: one preempted, one killed and started again, one that runs.
    assert value(filled, "stage_killed_total", stage="train") == 1
    assert value(filled, "stage_open", stage="train") == 1
    assert value(filled, "stage_open_oldest_timestamp_seconds", stage="train") == pytest.approx(now - 6 * 3600, abs=60)
    assert value(filled, "stage_failures_in_a_row", stage="train") == 2
    assert value(filled, "stage_progress_ratio", stage="train") == 0.25
    # A DAG that moved on, and a week, end the wait for an end; a failed part is not hidden by the others.
    assert value(filled, "stage_killed_total", stage="collect_requests") == 1
    assert value(filled, "stage_failures_in_a_row", stage="collect_requests") == 0
    assert value(filled, "stage_killed_total", stage="retire") == 1
    assert value(filled, "stage_failures_in_a_row", stage="index_documents") == 1
    assert value(filled, "stage_refusals_in_a_row", stage="gate") == 3
    assert value(filled, "stage_last_count", stage="list_documents", count="added") == 0
    assert value(filled, "quarantine_share") == 0.25


@pytest.mark.integration
def test_one_unreadable_file_of_many_documents_is_no_large_share(configured: Settings) -> None:
    counts = {"valid": 0, "quarantined": 1, "unchanged": 97, "still_rejected": 2}
    with psycopg.connect(configured.database_url.get_secret_value()) as connection:
        connection.execute(
            "INSERT INTO stage_runs (run, stage, try, trace_id, host, started_at, ended_at, exit_code, counts) "
            "VALUES ('s3://b/runs/sync_knowledge/1', 'validate_documents', 1, 't', 'h', now(), now(), 0, %s)",
            (json.dumps(counts),),
        )
    assert value(scrape(configured), "quarantine_share") == pytest.approx(0.03)


@pytest.mark.integration
def test_the_loop_is_told_as_its_rows_say(filled: Scrape) -> None:
    assert value(filled, "gate_verdicts_total", verdict="review") == 1
    assert value(filled, "stage_resource_seconds_total", stage="train", resource="gpu") == 8200
    assert value(filled, "gpu_last_30_days_seconds") == 7200
    assert value(filled, "gpu_budget_seconds") == 36_000 and value(filled, "gpu_hour_price") == 2.5
    assert value(filled, "release_live_info", release="2", model_version="2", index_version="2") == 1
    assert value(filled, "releases_total", kind="promotion") == 2 and value(filled, "releases_not_mirrored") == 1
    assert (
        value(filled, "index_chunks", corpus="default") == 791 and value(filled, "index_versions", status="former") == 1
    )
    assert value(filled, "quarantined_total", kind="document", rule="text_is_new") == 2
    assert value(filled, "drift_figure_drifted", figure="best_score") == 1
    assert value(filled, "drift_window_requests", window="current") == 297
    assert value(filled, "drift_without_action_in_a_row") == 2
    assert value(filled, "decisions_total", action="none", cause="knowledge", held_by="cooldown") == 3
    assert value(filled, "requests_last_day", kind="chat", outcome="answered") == 1
    assert value(filled, "requests_last_day", kind="search", outcome="Busy") == 1


@pytest.mark.integration
def test_a_fresh_database_has_no_figures_that_were_not_measured(configured: Settings) -> None:
    names = {name for name, _labels in scrape(configured)}
    assert "millrace_database_up" in names and "millrace_gpu_hour_price" not in names
    assert not names & {"millrace_release_live_info", "millrace_index_chunks", "millrace_quarantine_share"}


def test_a_database_that_is_away_is_told_and_nothing_else() -> None:
    found = scrape(load_settings(LEAST))
    assert value(found, "database_up") == 0
    assert {name for name, _labels in found} == {"millrace_database_up", "millrace_scrape_duration_seconds"}


@pytest.mark.integration
def test_a_database_without_the_tables_is_told(configured: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with psycopg.connect(configured.database_url.get_secret_value(), autocommit=True) as connection:
        connection.execute("DROP TABLE stage_runs")
    assert value(scrape(configured), "database_up") == 0
    assert "stage_runs" in caplog.text


@pytest.mark.integration
def test_a_store_that_is_away_is_told_and_costs_only_the_progress(configured: Settings) -> None:
    fill(configured.database_url.get_secret_value())
    found = scrape(configured.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"}))
    assert value(found, "storage_up") == 0 and value(found, "index_chunks", corpus="default") == 791
    assert "millrace_stage_progress_ratio" not in {name for name, _labels in found}


@pytest.mark.integration
def test_the_command_answers_scrapes_and_ends_with_sigterm(stack: Any, database: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks", "metrics", f"--port={port}"], cwd=REPOSITORY,
        env=os.environ | dict(stack.env) | {"MILLRACE_DATABASE_URL": database}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None and f"metrics at http://127.0.0.1:{port}/metrics" in process.stderr.readline()
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        assert value(read(answer.text), "database_up") == 1
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").text == "ok\n"
        with pytest.raises(Exception, match="expected 127.0.0.1:.* to be free"):
            run_main(stack.env, f"--port={port}")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def run_main(environment: dict[str, str], *arguments: str) -> int:
    from tasks.observability import exporter

    ours = {name: text for name, text in environment.items() if name.startswith("MILLRACE_")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "settings", lambda: load_settings(ours))
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        try:
            return main(list(arguments))
        finally:
            for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
                signal.signal(number, handler)


@pytest.mark.parametrize("arguments", [["--prot=1"], ["--port=x"], ["--port=70000"], ["serve"]])
def test_wrong_options_are_refused(arguments: list[str]) -> None:
    from tasks.errors import OptionError

    with pytest.raises(OptionError):
        run_main(LEAST, *arguments)


def test_names_follow_the_conventions_of_prometheus() -> None:
    assert len(ALL) == 39 + 21
    for name, metric in ALL.items():
        assert (metric.kind == "counter") == name.endswith("_total"), name
        assert len(name) < 63, "Postgres cuts longer names of columns"
        assert not set(metric.labels) & {"run", "run_id", "request_id", "client", "trace_id", "document", "host"}, name
        assert not name.endswith(("_ms", "_hours", "_minutes", "_gb")), "base units"
        assert (metric.kind == "histogram") == bool(metric.buckets), name
