"""The trace of a DAG run, handed to its stages by their environment.

Airflow gives each DAG run a trace id, also where it exports no traces, and makes the span of the task the current one.
`TRACEPARENT` hands both to the stage, `BAGGAGE` task and try. Where Airflow gives none (a task run by hand), the id is
derived from DAG id and run id: all stages of the run share it still. Reads the context; writes nothing.
"""

import hashlib
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from airflow.sdk import Context


def trace_environment(context: "Context") -> dict[str, str]:
    """Return `TRACEPARENT` and `BAGGAGE` for the stage of a task."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    run, ti = context["dag_run"], context.get("ti")
    known: dict[str, Any] = {name: getattr(ti, name, None) for name in ("task_id", "try_number")}
    items = [f"{name}={quote(str(value), safe='')}" for name, value in known.items() if value is not None]
    return {
        "TRACEPARENT": carrier.get("traceparent") or derived(run.dag_id, run.run_id),
        "BAGGAGE": ",".join(items),
    }


def derived(dag_id: str, run_id: str) -> str:
    """Return the header of a DAG run without a trace; the same as `tasks.observability.trace.derived` of its folder."""
    name = re.sub(r"[^A-Za-z0-9._=-]", "_", run_id)
    found = hashlib.sha256(f"{dag_id}\n{name}".encode()).hexdigest()
    return f"00-{found[:32]}-{found[32:48]}-00"
