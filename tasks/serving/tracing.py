"""Every HTTP request gets an id and a place in a trace; both are in its log lines and in its answer.

Reads W3C's `traceparent`; a caller without a valid one gets a new trace. Answers with `traceparent` (the assistant's own
span in the trace) and `x-request-id`, which is also the id of the request's row in `requests`. Ids are made here and never
taken from a caller: an id that somebody chose could be another's. Counts the response; writes nothing else.
"""

from collections.abc import Callable
from uuid import UUID, uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.observability import logs, trace

Count = Callable[[str, int], None]


class Traced:
    """ASGI middleware around everything else, so that refusals have ids too."""

    def __init__(self, app: ASGIApp, count: Count) -> None:
        self._app, self._count = app, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        place = (trace.read(Headers(scope=scope).get("traceparent")) or trace.new()).child()
        request_id = uuid4()
        code = 500  # of a request that ends without an answer

        async def answer(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                headers = MutableHeaders(scope=message)
                headers["traceparent"], headers["x-request-id"] = place.header, str(request_id)
            await send(message)

        with logs.request(request_id=str(request_id), trace_id=place.trace_id, span_id=place.span_id):
            try:
                await self._app(scope, receive, answer)
            finally:
                self._count(scope["path"], code)


def request_id() -> UUID:
    """Return the id of the request that is served here, or a new one outside of any."""
    found = logs.of_request("request_id")
    return UUID(found) if found else uuid4()


def trace_id() -> str | None:
    """Return the id of the trace that the request is part of, or None outside of any."""
    found = logs.of_request("trace_id")
    return str(found) if found else None
