"""What stands before every request: its key, its client's limits, and its size.

Reads headers and counts the bytes of the body; writes nothing. Answers 401 for `/v1` without an accepted
key where keys are set, 400 for a foreign host name where they are not, 429 for a client that has reached a
limit, and 413 for a body over the limit (declared or streamed). `/metrics` needs a key too, unless it is
asked from this machine itself: it tells how busy the assistant is and what answers. The name of the key
goes with the request (`keys.key_name`, the log line), and the limits are told as OpenAI's headers.
"""

import math
import re
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.errors import MillraceError
from tasks.observability import logs
from tasks.serving.keys import Key, accepted
from tasks.serving.limits import Limits
from tasks.serving.refusals import (
    INSUFFICIENT,
    BodyTooLarge,
    InvalidRequest,
    LimitReached,
    Refusal,
    error_object,
    status_of,
)

BODY_BYTES = 1_000_000
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Guard:
    """ASGI middleware: refuses requests without an accepted key, beyond a limit, or with too large a body.

    Without keys only this machine is served, under its own names: a web page must not reach the
    assistant through its reader's browser.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[Key] = (),
        body_bytes: int = BODY_BYTES,
        limits: Limits | None = None,
        limited: Callable[[str], None] = lambda _limit: None,
    ) -> None:
        self._app, self._keys, self._limit = app, keys, body_bytes
        self._limits, self._limited = limits or Limits(), limited

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        key_name = ""
        try:
            if self._keys and (scope["path"].startswith("/v1") or _scraped_from_elsewhere(scope, headers)):
                key_name = accepted(scope, self._keys).name
            elif not self._keys:
                _check_host(headers.get("host", ""))
            send = self._admitted(scope, key_name, send)
            body = await self._body(headers, receive)
        except LimitReached as error:
            self._limited(error.limit)
            await refusal_response(error)(scope, receive, self._telling(scope, key_name, send))
            return
        except MillraceError as error:
            await refusal_response(error)(scope, receive, send)
            return
        with logs.request(key_name=key_name):
            await self._app(scope, _replayed(body, receive), send)

    def _admitted(self, scope: Scope, key_name: str, send: Send) -> Send:
        """Count a request of `/v1`; return what sends its answer. Raises LimitReached."""
        if not scope["path"].startswith("/v1"):
            return send
        self._limits.admit(scope["path"], key_name, _address(scope))
        return self._telling(scope, key_name, send)

    def _telling(self, scope: Scope, key_name: str, send: Send) -> Send:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._limits.headers(key_name, _address(scope)))
            await send(message)

        return answer

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self._limit:
            raise self._too_large(declared)
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message["type"] == "http.request" and message.get("more_body", False)
            if len(body) > self._limit:
                raise self._too_large("more")
        return body

    def _too_large(self, found: str) -> BodyTooLarge:
        return BodyTooLarge(f"expected a body of at most {self._limit} bytes, found {found}. Next: send less.")


def _replayed(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def messages() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return messages


def _scraped_from_elsewhere(scope: Scope, headers: Headers) -> bool:
    """Return whether `/metrics` is asked from another machine, or through a proxy on this one."""
    forwarded = "x-forwarded-for" in headers or "forwarded" in headers
    return scope["path"].rstrip("/") == "/metrics" and (forwarded or _address(scope) not in {"127.0.0.1", "::1"})


def _address(scope: Scope) -> str:
    return str((scope.get("client") or ("", 0))[0])


def _check_host(header: str) -> None:
    name = header.rsplit(":", 1)[0] if re.search(r":\d+$", header) else header
    if name not in LOOPBACK:
        raise InvalidRequest(
            f"expected a request to {', '.join(LOOPBACK)}, found the host name {name[:100]!r}. "
            "Next: set MILLRACE_ASSISTANT_KEY_SHA256 to serve other names."
        )


def refusal_response(error: MillraceError) -> JSONResponse:
    """Return the response for any error of Millrace."""
    status, code, param = status_of(error)
    wait = error.retry_after if isinstance(error, Refusal) else 1
    headers = {"Retry-After": str(max(1, math.ceil(wait)))} if status in {429, 503} else {}
    if code == INSUFFICIENT:
        headers["x-should-retry"] = "false"  # OpenAI's clients would try again at once otherwise
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_object(status, str(error), code, param), status, headers)
