"""A small OpenTelemetry receiver: takes OTLP over HTTP and remembers what arrived, as Prometheus names it."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

UNITS = {"ms": "_milliseconds", "s": "_seconds", "": "", "1": ""}


class Receiver:
    """What arrived so far. `metrics` holds label names by the name that a collector's Prometheus exporter gives."""

    def __init__(self) -> None:
        self.metrics: dict[str, set[str]] = {}
        self.spans: list[Any] = []
        self.address = ""

    def take(self, path: str, body: bytes) -> None:
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            return
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    self._add(metric)

    def _add(self, metric: Any) -> None:
        kind = metric.WhichOneof("data")
        points = getattr(metric, kind).data_points
        labels = {attribute.key for point in points for attribute in point.attributes}
        base = metric.name.replace(".", "_") + UNITS[metric.unit]
        if kind in {"histogram", "exponential_histogram"}:
            names = [f"{base}{end}" for end in ("_bucket", "_sum", "_count")]
        else:
            names = [f"{base}_total" if kind == "sum" and metric.sum.is_monotonic else base]
        for name in names:
            self.metrics.setdefault(name, set()).update(labels)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Listen on a free port of 127.0.0.1 until the end of the block."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.take(self.path, gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_values: Any) -> None:
            """Nothing: the test speaks."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
