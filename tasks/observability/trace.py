"""Trace ids: one for all stages of a DAG run, one for each request of the assistant.

In W3C's form (`traceparent: 00-TRACE-SPAN-FLAGS`). A stage gets its id from its launcher, in `TRACEPARENT`: it is the id
Airflow gave the DAG run, so that a line of a log, a span of Airflow and a row of `stage_runs` name the same run. A stage
started by hand derives one from DAG id and run id, as `plugins/millrace_trace.py` does where Airflow gives none. A header
that is malformed counts as none, as W3C says: nobody is refused for it.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

# Version 00, and later ones, which may add fields; version ff and ids of zeros are invalid.
_HEADER = re.compile(r"^(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$")
_RUN = re.compile(r"^s3://[^/]+/runs/(?P<dag_id>[^/]+)/(?P<run_id>[^/]+)$")


@dataclass(frozen=True)
class Trace:
    """A place in a trace. `flags` are the caller's: `01` where it records spans."""

    trace_id: str
    span_id: str
    flags: str = "00"

    @property
    def header(self) -> str:
        """The value of `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"

    def child(self) -> "Trace":
        """Return a new span in the same trace."""
        return Trace(self.trace_id, secrets.token_hex(8), self.flags)


def read(header: str | None) -> Trace | None:
    """Return what a `traceparent` says, or None where there is none that is valid."""
    match = _HEADER.match((header or "").strip())
    if match is None or not int(match[2], 16) or not int(match[3], 16) or (match[1] == "00" and match[5]):
        return None
    return Trace(match[2], match[3], match[4])


def new() -> Trace:
    """Return a trace that nobody else has."""
    return Trace(secrets.token_hex(16), secrets.token_hex(8))


def derived(dag_id: str, run_id: str) -> Trace:
    """Return the trace of a DAG run to which Airflow gave none. The same names give the same ids."""
    found = hashlib.sha256(f"{dag_id}\n{run_id}".encode()).hexdigest()
    return Trace(found[:32], found[32:48])


def names_of(run: str) -> tuple[str, str]:
    """Return DAG id and run id of a run folder, as far as it tells them."""
    match = _RUN.match(run)
    return (match["dag_id"], match["run_id"]) if match else ("", run)


def of_stage(run: str, environment: Mapping[str, str]) -> Trace:
    """Return the trace a stage belongs to: the one its launcher hands over, or the one derived from its run folder."""
    return read(environment.get("TRACEPARENT")) or derived(*names_of(run))


def baggage(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what else the launcher says, in W3C's `BAGGAGE` (task_id, try_number); malformed items are left out."""
    items = (item.partition(";")[0].partition("=") for item in environment.get("BAGGAGE", "").split(","))
    return {name.strip(): unquote(value.strip()) for name, equals, value in items if equals and name.strip()}
