"""The log on stderr: lines for people (`text`, the default), or one JSON object a line (`MILLRACE_LOG_FORMAT=json`).

A JSON line has `time` (UTC), `level`, `logger`, `message`, `host`, what the process is (`about`: DAG, run, stage, part,
try, trace), what the request is (`request`), and `exception`. Libraries that hang handlers of their own on their loggers
(MLflow, Transformers) would print lines in forms of their own: in JSON mode their lines go the same way as all others.
Secrets of the environment are hidden in both forms. Reads the environment; writes stderr.
"""

import json
import logging
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from tasks.observability.redaction import hider

TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
NOISY = ("botocore", "boto3", "urllib3", "httpx", "s3transfer")
VARIABLE = "MILLRACE_LOG_FORMAT"

log = logging.getLogger(__name__)
_process: dict[str, Any] = {}
_request: ContextVar[Mapping[str, Any] | None] = ContextVar("request", default=None)
Hide = Callable[[str], str]


def configure(environment: Mapping[str, str] | None = None) -> None:
    """Send the log of this process to stderr in the form the environment asks for.

    A form that does not exist is text here: `tasks.settings` refuses it with a sentence.
    """
    environment = os.environ if environment is None else environment
    as_json = environment.get(VARIABLE) == "json"
    hide = hider(environment)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(hide) if as_json else TextLines(hide))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if as_json:
        _take_over()


def is_json() -> bool:
    """Return whether the log of this process is JSON."""
    return any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers)


def about(**fields: Any) -> None:
    """Add fields to every line of this process; those that are None are left out."""
    _process.update({name: value for name, value in fields.items() if value is not None})


@contextmanager
def request(**fields: Any) -> Iterator[None]:
    """Add fields to every line of one request, also on the threads that serve it; within another, to those it has."""
    token = _request.set({**(_request.get() or {}), **fields})
    try:
        yield
    finally:
        _request.reset(token)


def of_request(name: str) -> Any:
    """Return a field of the request that is served here, or None."""
    return (_request.get() or {}).get(name)


class TextLines(logging.Formatter):
    """Lines as people read them."""

    def __init__(self, hide: Hide) -> None:
        super().__init__(TEXT)
        self._hide = hide

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with its exception."""
        return self._hide(super().format(record))


class JsonLines(logging.Formatter):
    """One JSON object a line, never broken by what a message holds."""

    def __init__(self, hide: Hide) -> None:
        super().__init__()
        self._hide, self._host = hide, platform.node()

    def format(self, record: logging.LogRecord) -> str:
        """Return the object. The process's and the request's fields never replace those of the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": self._hide(record.getMessage()),
            "host": self._host,
        }
        line = {**_process, **(_request.get() or {}), **line}
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self._hide(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


class SharedLogger(logging.Logger):
    """A logger whose lines all reach the root handler, and no terminal by another way."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep propagation on, and drop handlers that are put in place (as MLflow does) and write to the terminal."""
        if name == "propagate":
            value = True
        elif name == "handlers":
            value = [handler for handler in value if not _to_terminal(handler)]
        super().__setattr__(name, value)

    def addHandler(self, hdlr: logging.Handler) -> None:
        """Take a handler, unless it writes to the terminal."""
        if not _to_terminal(hdlr):
            super().addHandler(hdlr)


def _to_terminal(handler: logging.Handler) -> bool:
    # Not by its stream: MLflow's is an object of its own that writes to stderr.
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)


def _take_over() -> None:
    """Bring loggers of libraries, warnings, and exceptions nobody caught into the one form."""
    logging.setLoggerClass(SharedLogger)
    for known in logging.Logger.manager.loggerDict.values():
        if isinstance(known, logging.Logger):
            known.propagate = True
            for handler in [handler for handler in known.handlers if _to_terminal(handler)]:
                known.removeHandler(handler)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda given: _uncaught(given.exc_type, given.exc_value, given.exc_traceback)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    log.critical("%s: %s", kind.__name__, error, exc_info=(kind, error or kind(), trace))
