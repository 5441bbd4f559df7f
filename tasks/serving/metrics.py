"""The assistant's metrics: `GET /metrics` on its own port.

Counts are kept here; what the release and the request log know is asked of them at each scrape. Names, labels and
meanings are those of `tasks.observability.catalog`. Probes and scrapes are no requests and are not counted. Reads and
writes nothing else.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from tasks.observability.catalog import SERVED
from tasks.serving.releases import Releases
from tasks.serving.request_log import RequestLog, RequestRow
from tasks.serving.shadow import Shadow
from tasks.serving.trace_log import TraceLog

ANSWERED = "answered"
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
ROUTES = ("/v1/chat/completions", "/v1/search", "/v1/feedback", "/v1/models", "/openapi.json")
UNCOUNTED = ("/metrics", "/healthz", "/readyz")
_ROWS = ("written", "spooled", "lost", "refused")


def _name(name: str) -> str:
    return f"millrace_assistant_{name}"


class Meters:
    """What one assistant has done. Safe to use from many threads."""

    def __init__(self, releases: Releases, requests: RequestLog, traces: TraceLog, shadow: Shadow) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody asks for
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(State(releases, requests, traces, shadow))
        self._requests, self._responses = self._counter("requests_total"), self._counter("responses_total")
        self._tokens, self._cut = self._counter("tokens_total"), self._counter("context_tokens_cut_total")
        self._guarded, self._limited = self._counter("guardrail_events_total"), self._counter("limited_total")
        self._in_flight, self._places = self._gauge("in_flight"), self._gauge("places")
        self._phases, self._scores = self._histogram("phase_seconds"), self._histogram("best_score")

    def places(self, kind: str, number: int) -> None:
        """Say how many requests of a kind may wait or be served."""
        self._places.labels(kind).set(number)
        self._in_flight.labels(kind).set(0)

    @contextmanager
    def in_flight(self, kind: str) -> Iterator[None]:
        """Count a request while it waits or is served."""
        with self._in_flight.labels(kind).track_inprogress():
            yield

    @contextmanager
    def phase(self, kind: str, phase: str) -> Iterator[None]:
        """Time a phase of a request, also of one that fails in it."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.took(kind, phase, time.monotonic() - started)

    def took(self, kind: str, phase: str, seconds: float) -> None:
        """Take the time of a phase."""
        self._phases.labels(kind, phase).observe(seconds)

    def ended(self, row: RequestRow) -> None:
        """Count a request that has ended, by what its row says."""
        self._requests.labels(row.kind, row.error or ANSWERED).inc()
        self._phases.labels(row.kind, "total").observe(row.latency_ms / 1000)
        self._tokens.labels("prompt").inc(row.prompt_tokens)
        self._tokens.labels("completion").inc(row.completion_tokens)
        if row.best_score is not None:
            self._scores.labels(row.kind).observe(row.best_score)
        for event in row.guardrails:
            self._guarded.labels(event["rule"], event["where"], event["action"]).inc()

    def limited(self, limit: str) -> None:
        """Count a request that a limit of its client refused."""
        self._limited.labels(limit).inc()

    def cut(self, tokens: int) -> None:
        """Count tokens of documents that a prompt had no room for."""
        self._cut.inc(tokens)

    def responded(self, path: str, code: int) -> None:
        """Count an HTTP response. A path that is no route of ours is `other`: callers choose paths, not labels."""
        if path not in UNCOUNTED:
            self._responses.labels(path if path in ROUTES else "other", str(code)).inc()

    def text(self) -> bytes:
        """Return the answer to a scrape."""
        return generate_latest(self._registry)

    def _counter(self, name: str) -> Counter:
        metric = SERVED[_name(name)]
        return Counter(metric.name, metric.meaning, metric.labels, registry=self._registry)

    def _gauge(self, name: str) -> Gauge:
        metric = SERVED[_name(name)]
        return Gauge(metric.name, metric.meaning, metric.labels, registry=self._registry)

    def _histogram(self, name: str) -> Histogram:
        metric = SERVED[_name(name)]
        return Histogram(metric.name, metric.meaning, metric.labels, buckets=metric.buckets, registry=self._registry)


class State(Collector):
    """What the release, the request log, the traces and the shadow say at the moment of a scrape."""

    def __init__(self, releases: Releases, requests: RequestLog, traces: TraceLog, shadow: Shadow) -> None:
        self._releases, self._requests, self._traces, self._shadow = releases, requests, traces, shadow

    def describe(self) -> Iterable[Metric]:
        """Nothing is asked before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        live, counts = self._releases.live, self._requests.counts()
        yield _family("ready", float(live is not None))
        yield _family("release_behind", float(self._releases.problem is not None))
        yield _family("fallback", float(self._releases.fallback))
        yield _family("signatures_checked", float(self._releases.checks_signatures))
        if live is not None:
            release = live.release
            yield _family("release_info", 1.0, release.release, release.model_version, release.index_version)
            yield _family("release_created_timestamp_seconds", release.created_at.timestamp())
        yield _results("request_log_rows_total", {result: counts[result] for result in _ROWS})
        yield _results("traces_total", self._traces.counts())
        yield _results("shadow_answers_total", self._shadow.counts())
        yield _family("request_log_waiting", counts["waiting"])
        yield _family("request_log_spool_bytes", counts["spool_bytes"])


def _results(name: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    metric = SERVED[_name(name)]
    family = CounterMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for result, number in counts.items():
        family.add_metric([result], number)
    return family


def _family(name: str, value: float, *labels: Any) -> GaugeMetricFamily:
    metric = SERVED[_name(name)]
    family = GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    family.add_metric([str(label) for label in labels], value)
    return family
