"""What stands before every request: its size and its key.

Reads headers and counts the bytes of the body; writes nothing. Answers 413 for a body over the limit
(declared or streamed), 401 for `/v1` without an accepted key where keys are set, and 400 for a foreign
host name where they are not. `/metrics` needs a key too, unless it is asked from this machine itself: it
tells how busy the assistant is and what answers. Keys are kept and compared as SHA-256 digests only.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.errors import MillraceError, SettingsError
from tasks.serving.refusals import BodyTooLarge, InvalidRequest, KeyRefused, error_object, status_of

BODY_BYTES = 1_000_000
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def parse_keys(setting: str | None) -> tuple[str, ...]:
    """Return the digests listed in MILLRACE_ASSISTANT_KEY_SHA256. Raises SettingsError."""
    digests = tuple(item.strip().lower() for item in (setting or "").split(",") if item.strip())
    for number, item in enumerate(digests, start=1):
        if not re.fullmatch(r"[0-9a-f]{64}", item):
            raise SettingsError(
                f"MILLRACE_ASSISTANT_KEY_SHA256: expected 64 hexadecimal digits, found {len(item)} characters in "
                f"item {number}. Next: printf %s KEY | sha256sum"
            )
    return digests


class Guard:
    """ASGI middleware: refuses bodies that are too large, and requests without an accepted key.

    Without keys only this machine is served, under its own names: a web page must not reach the
    assistant through its reader's browser.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str] = (), body_bytes: int = BODY_BYTES) -> None:
        self._app, self._keys, self._limit = app, keys, body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            if self._keys and (scope["path"].startswith("/v1") or _scraped_from_elsewhere(scope, headers)):
                self._check_key(headers.get("authorization", ""))
            elif not self._keys:
                _check_host(headers.get("host", ""))
            body = await self._body(headers, receive)
        except MillraceError as error:
            await refusal_response(error)(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive), send)

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

    def _check_key(self, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        found = hashlib.sha256(key.strip().encode()).hexdigest()
        # Every digest is compared, in constant time.
        accepted = sum(hmac.compare_digest(found, known) for known in self._keys)
        if scheme.lower() != "bearer" or not accepted:
            raise KeyRefused(
                "expected an accepted key in 'Authorization: Bearer KEY', found none. "
                "Next: ask whoever runs this assistant for one."
            )

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
    host = (scope.get("client") or ("", 0))[0]
    forwarded = "x-forwarded-for" in headers or "forwarded" in headers
    return scope["path"].rstrip("/") == "/metrics" and (forwarded or host not in {"127.0.0.1", "::1"})


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
    headers = {"Retry-After": "1"} if status in {429, 503} else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_object(status, str(error), code, param), status, headers)
