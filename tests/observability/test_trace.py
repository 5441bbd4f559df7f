"""Trace ids: W3C's headers as the specification says, and one id for all stages of a run."""

from types import SimpleNamespace
from typing import Any

import pytest

from tasks.observability import trace

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_header_is_read_and_written() -> None:
    found = trace.read(f"00-{TRACE}-{SPAN}-01")
    assert found == trace.Trace(TRACE, SPAN, "01")
    assert found.header == f"00-{TRACE}-{SPAN}-01"
    child = found.child()
    assert (child.trace_id, child.flags) == (TRACE, "01") and child.span_id != SPAN


@pytest.mark.parametrize(
    "header",
    [
        None, "", "nonsense", f"00-{TRACE}-{SPAN}", f"00-{TRACE.upper()}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-more", f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01\n{{}}",
    ],
)  # fmt: skip
def test_a_malformed_header_counts_as_none(header: str | None) -> None:
    assert trace.read(header) is None


def test_a_later_version_may_say_more() -> None:
    assert trace.read(f"01-{TRACE}-{SPAN}-01-more") == trace.Trace(TRACE, SPAN, "01")


def test_a_stage_takes_its_launchers_trace_and_else_derives_the_runs() -> None:
    run = "s3://b/runs/fine_tune/manual__1"
    assert trace.of_stage(run, {"TRACEPARENT": f"00-{TRACE}-{SPAN}-01"}).trace_id == TRACE
    derived = trace.of_stage(run, {})
    assert derived == trace.of_stage(run, {"TRACEPARENT": "broken"}) == trace.derived("fine_tune", "manual__1")
    assert derived.trace_id != trace.of_stage("s3://b/runs/fine_tune/manual__2", {}).trace_id
    assert trace.read(derived.header) == derived


def test_baggage_is_read() -> None:
    assert trace.baggage({"BAGGAGE": "task_id=index%20it,try_number=2;meta=1,broken,=x"}) == {
        "task_id": "index it", "try_number": "2",
    }  # fmt: skip
    assert trace.baggage({}) == {}


def context(run_id: str = "manual__2026-11-20T01:02:03+00:00") -> dict[str, Any]:
    return {
        "dag_run": SimpleNamespace(dag_id="fine_tune", run_id=run_id),
        "ti": SimpleNamespace(task_id="train", try_number=2),
    }


@pytest.mark.airflow
def test_the_launcher_hands_on_the_trace_of_airflow() -> None:
    """As the task runner does: the carrier of the task instance is made the current context, traces exported or not."""
    from tests.airflow_home import prepare

    prepare()
    from airflow._shared.observability.traces import new_dagrun_trace_carrier, new_task_run_carrier
    from millrace_trace import trace_environment
    from opentelemetry import trace as airflow_trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    of_the_run = new_dagrun_trace_carrier()
    of_the_task = TraceContextTextMapPropagator().extract(new_task_run_carrier(of_the_run))
    with airflow_trace.get_tracer("test").start_as_current_span("worker.train", context=of_the_task):
        given = trace_environment(context())  # type: ignore[arg-type]
    found = trace.read(given["TRACEPARENT"])
    assert found is not None and found.trace_id == of_the_run["traceparent"].split("-")[1]
    assert trace.baggage(given) == {"task_id": "train", "try_number": "2"}


@pytest.mark.airflow
def test_without_a_trace_of_airflow_launcher_and_stage_derive_the_same() -> None:
    from tests.airflow_home import prepare

    prepare()
    from millrace_outcome import run_uri
    from millrace_trace import trace_environment

    given = trace_environment(context())  # type: ignore[arg-type]
    assert given["TRACEPARENT"] == trace.of_stage(run_uri(context()), {}).header  # type: ignore[arg-type]
