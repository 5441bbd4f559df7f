"""`python -m tasks serve [--host 127.0.0.1] [--port 8000] [--threads N]`: starts the assistant.

Reads the settings; the live release is found by `releases`, so the server starts with none and is ready
once one is loaded. Refuses (exit code 2) to listen beyond this machine without accepted API keys, and
says so when the port is in use. On SIGTERM it ends the requests at hand (after 20 s with what they have), writes or
spools the request log, and exits 0.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from anyio.to_thread import current_default_thread_limiter

from tasks.errors import OptionError, SettingsError, nearest
from tasks.knowledge.corpora import DEFAULT, settings_of
from tasks.options import parse_options
from tasks.serving.answering import Assistant
from tasks.serving.api import create_app
from tasks.serving.connection import KeptConnection
from tasks.serving.feedback import FeedbackBox, parse_reviewers
from tasks.serving.guardrails import Guardrails
from tasks.serving.keys import parse_keys
from tasks.serving.limits import DayBudget, Limits, PerMinute, tokens_since
from tasks.serving.lookup import find_in_postgres
from tasks.serving.releases import Releases
from tasks.serving.request_log import RequestLog
from tasks.serving.shadow import Shadow
from tasks.serving.trace_log import TraceLog
from tasks.settings import Settings, settings

log = logging.getLogger(__name__)

LOCAL_HOSTS = {"127.0.0.1", "localhost", "::1"}
GRACE_SECONDS = 30
SPARE_THREADS = 32  # for searches, feedback, probes, and refusals


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM or SIGINT; return 0."""
    given = {"host": "127.0.0.1", "port": "8000", "threads": str(len(os.sched_getaffinity(0)))}
    options = parse_options(arguments)
    for name in options:
        if name not in given:
            raise OptionError(f"expected --host, --port or --threads, found --{name}.{nearest(name, given)}")
    given |= options
    port, threads = _number(given["port"], "port", 0, 65_535), _number(given["threads"], "threads", 1, 1024)
    configured = settings()
    keys = parse_keys(configured.assistant_key_sha256)
    if given["host"] not in LOCAL_HOSTS and not keys:
        raise SettingsError(
            f"expected MILLRACE_ASSISTANT_KEY_SHA256 for an assistant on {given['host']}, found none: without keys it "
            "answers on 127.0.0.1 only. Next: set the SHA-256 of each accepted key, or leave --host out."
        )
    # Read when torch is loaded, which is with the first release. By default threads that wait for each other
    # spin; where another process has the core, a token then takes ten times as long (measured on 2 cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    listener = listen(given["host"], port)
    with running(configured, threads) as (assistant, feedback):
        app = create_app(assistant, feedback, keys=keys)
        server = Server(
            uvicorn.Config(
                app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=GRACE_SECONDS
            ),
            assistant,
            configured.assistant_places,
        )
        # uvicorn raises the signal again after its own orderly end; by then there is nothing left to interrupt.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)
        log.info("assistant listens on %s:%d", *listener.getsockname()[:2])
        server.run(sockets=[listener])
    return 0


class Server(uvicorn.Server):
    """Ends what is still being written some seconds before it stops waiting for it."""

    def __init__(
        self, config: uvicorn.Config, assistant: Assistant, places: int = 9, hurry_after: float = GRACE_SECONDS - 10
    ) -> None:
        super().__init__(config)
        self._assistant, self._places, self._hurry_after = assistant, places, hurry_after

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, with a thread for every request that has a place, and some for those that are refused."""
        limiter = current_default_thread_limiter()
        limiter.total_tokens = max(limiter.total_tokens, self._places + SPARE_THREADS)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and end those at hand."""
        asyncio.get_running_loop().call_later(self._hurry_after, self._assistant.hurry)
        await super().shutdown(sockets)


@contextmanager
def running(configured: Settings, threads: int) -> Iterator[tuple[Assistant, FeedbackBox]]:
    """Yield the assistant with its threads running; at the end stop them, and write or spool the request log."""
    url = configured.database_url.get_secret_value()
    connections = [KeptConnection(url) for _ in range(5)]
    if settings_of(configured, DEFAULT).reranker is not None:
        # A cross-encoder on a processor takes seconds of the time that a lookup has.
        connections[2] = KeptConnection(url, work_seconds=60.0)
    releases = Releases(configured, connections[0], threads=threads)
    requests = RequestLog(connections[1], Path(configured.cache_dir) / "requests")
    most, tokens = configured.assistant_requests_per_minute, configured.assistant_tokens_per_day
    budget = DayBudget(tokens, tokens_since(connections[4]), requests.knows) if tokens else None
    guardrails = Guardrails.of(configured)
    traces = TraceLog.of(configured)
    shadow = Shadow.of(configured, releases, redact=guardrails.stored)
    assistant = Assistant(
        releases,
        requests,
        find_in_postgres(connections[2], configured),
        chat_places=configured.assistant_places,
        seconds=configured.assistant_seconds,
        guardrails=guardrails,
        limits=Limits(PerMinute(most) if most else None, budget),
        traces=traces,
        shadow=shadow,
    )
    feedback = FeedbackBox(connections[3], requests, parse_reviewers(configured.assistant_reviewers))
    releases.start()
    if budget is not None:
        budget.start()
    try:
        yield assistant, feedback
    finally:
        assistant.close()
        requests.close()  # first of what may wait: rows that are neither written nor spooled are lost
        traces.close()
        shadow.close()
        if budget is not None:
            budget.close()
        releases.close()
        for connection in connections:
            connection.close()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises OptionError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # A connection whose other side takes nothing ends, and a stop does not wait for it. Milliseconds; inherited by each.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OptionError(
            f"expected {host}:{port} to be free, found {error.strerror or error}. "
            "Next: stop what listens there, or choose another --port."
        ) from error
    listener.listen(128)
    listener.setblocking(False)
    return listener


def _number(text: str, name: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise OptionError(f"expected --{name} from {least} to {most}, found {text!r}. Next: correct it.")
    return int(text)
