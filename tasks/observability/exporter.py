"""`python -m tasks metrics [--host 127.0.0.1] [--port 9464]`: the metrics of the loop, for Prometheus.

Stages are short processes and pods that die, and a gateway they push to would go on telling what a dead one said last.
So this process keeps nothing: each scrape reads the `millrace` database (and, for stages that run, their `progress.json`
in S3). Where Postgres does not answer, the scrape says `millrace_database_up 0` and nothing else. `/healthz` says that
the process lives, and asks nobody.

The answer holds counts, moments, versions and names of stages and rules; no question, no document, no client. It asks
for no key: it listens on 127.0.0.1, and whoever gives it another `--host` says by a network policy who may ask.
Fails (exit code 2) for a wrong option or a port in use. Ends with 0 on SIGTERM.
"""

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import psycopg
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from tasks.contracts import stage_uri
from tasks.database import connect
from tasks.errors import MillraceError, OptionError, ServiceUnavailable, nearest
from tasks.observability import queries
from tasks.observability.catalog import EXPORTED
from tasks.observability.queries import Sample
from tasks.options import parse_options
from tasks.settings import Settings, settings
from tasks.storage import Storage

log = logging.getLogger(__name__)

STATEMENT_MS = 5000


class Loop(Collector):
    """What one scrape tells. One scrape at a time: a second waits for the first."""

    def __init__(self, configured: Settings) -> None:
        self._settings = configured
        self._storage = Storage(configured.s3_endpoint_url)
        self._lock = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """Yield every family that has a sample, or only that the database is away."""
        with self._lock:
            started = time.monotonic()
            found = self._samples()
            found.append(("millrace_scrape_duration_seconds", {}, time.monotonic() - started))
        return families(found)

    def describe(self) -> Iterable[Metric]:
        """Nothing is asked of the database before the first scrape."""
        return []

    def _samples(self) -> list[Sample]:
        try:
            with connect(self._settings.database_url.get_secret_value(), vectors=False) as connection:
                connection.execute(f"SET statement_timeout = {STATEMENT_MS}".encode())
                found = list(queries.samples(connection))
                running = [dict(row) for row in connection.execute(queries.OPEN.encode())]
        except (ServiceUnavailable, psycopg.Error) as error:
            log.warning("the database cannot be read, so nothing is told: %s", str(error).strip())
            return [("millrace_database_up", {}, 0.0)]
        return [*found, ("millrace_database_up", {}, 1.0), *self._configured(), *self._progress(running)]

    def _configured(self) -> Iterator[Sample]:
        if self._settings.gpu_budget_hours is not None:
            yield "millrace_gpu_budget_seconds", {}, self._settings.gpu_budget_hours * 3600
        if self._settings.gpu_hour_price is not None:
            yield "millrace_gpu_hour_price", {}, self._settings.gpu_hour_price

    def _progress(self, running: list[dict[str, str | None]]) -> list[Sample]:
        found: list[Sample] = []
        try:
            for row in running:
                uri = f"{stage_uri(str(row['run']), str(row['stage']), row['part'])}/progress.json"
                if self._storage.exists(uri):
                    told = json.loads(self._storage.get_bytes(uri))
                    ratio = told["done"] / told["total"] if told["total"] else 0.0
                    found.append(("millrace_stage_progress_ratio", {"stage": str(row["stage"])}, ratio))
        except MillraceError as error:  # away, or no access to it: both are told
            log.warning("the progress of open stages cannot be read: %s", error)
            return [("millrace_storage_up", {}, 0.0)]
        return [*found, ("millrace_storage_up", {}, 1.0)] if running else found


def families(found: Iterable[Sample]) -> Iterator[Metric]:
    """Yield the samples by metric, in the order of the catalog."""
    by_name: dict[str, list[Sample]] = {}
    for sample in found:
        by_name.setdefault(sample[0], []).append(sample)
    for name, metric in EXPORTED.items():
        if name not in by_name:
            continue
        made = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = made(name, metric.meaning, labels=metric.labels)
        for _name, labels, value in by_name[name]:
            family.add_metric([labels[label] for label in metric.labels], value)
        yield family


class Quiet(WSGIRequestHandler):
    """Logs no scrape."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def answering(registry: CollectorRegistry) -> Callable[..., Iterable[bytes]]:
    """Return the WSGI application: the metrics of a registry, and `/healthz`, which collects none."""
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/healthz":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"ok\n"]
        told: Iterable[bytes] = metrics(environ, start_response)
        return told

    return answer


def main(arguments: list[str]) -> int:
    """Answer scrapes until SIGTERM or SIGINT; return 0."""
    given = {"host": "127.0.0.1", "port": "9464"}
    for name, value in parse_options(arguments).items():
        if name not in given:
            raise OptionError(f"expected --host or --port, found --{name}.{nearest(name, given)}")
        given[name] = value
    if not given["port"].isdecimal() or not int(given["port"]) <= 65_535:
        raise OptionError(f"expected --port from 0 to 65535, found {given['port']!r}. Next: correct it.")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    registry = CollectorRegistry()
    registry.register(Loop(settings()))
    try:
        server = make_server(given["host"], int(given["port"]), answering(registry), ThreadingWSGIServer, Quiet)
    except OSError as error:
        raise OptionError(
            f"expected {given['host']}:{given['port']} to be free, found {error.strerror or error}. "
            "Next: stop what listens there, or choose another --port."
        ) from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    log.info("metrics at http://%s:%d/metrics", given["host"], server.server_port)
    stop.wait()
    server.shutdown()
    thread.join(timeout=10)
    server.server_close()
    return 0
