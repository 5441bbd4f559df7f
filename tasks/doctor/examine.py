"""How checks are run: side by side, each on its own, each with a time limit, and nothing left behind.

A check is a function of `Place` that returns what it found, and raises an error of `tasks.errors` for what
is to be mended (BadInput) or does not answer (TryAgain), and `NotChecked` for what cannot be checked here.
What it makes, it hands to `place.undo` first; that is run when the check ends, fails, or is out of time.
"""

import importlib
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from tasks.doctor.report import BUG, Finding, mend, ok, skip, without_secrets
from tasks.errors import BadInput, MillraceError, ServiceUnavailable
from tasks.observability.redaction import hidden
from tasks.settings import Settings

log = logging.getLogger(__name__)
UNDO_SECONDS = 15.0


class NotChecked(Exception):
    """This cannot be checked here; the text says why."""


class Stopped(Exception):
    """Ctrl-C or SIGTERM came; the text says what could not be removed of what the checks had made, or nothing."""


@dataclass(frozen=True)
class Wanted:
    """What the caller is going to do, as far as checks depend on it."""

    free_gb: float = 2.0
    gpus: int = 1
    account: str = "millrace-launcher"


@dataclass(frozen=True)
class Place:
    """What a check works with. `undo` takes back what the check makes; it is called whatever happens."""

    settings: Settings
    wanted: Wanted
    undo: ExitStack = field(default_factory=ExitStack)
    # Held while it is taken back: who comes second waits for the first, who may be in the middle of it.
    undoing: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def making(place: Place, remove: Callable[[], object]) -> Iterator[None]:
    """Hand on how to remove what the block makes; forget it again where the block was refused."""
    place.undo.callback(remove)
    try:
        yield
    except Exception:
        place.undo.pop_all()
        raise


@dataclass(frozen=True)
class Check:
    """A named check. It returns what it found, or findings of its own.

    `needs` are the packages it works with. They are imported before any check starts: two threads that import
    parts of one package at the same time can lock each other out (`kubernetes.client` does).
    """

    name: str
    run: Callable[[Place], str | list[Finding]]
    seconds: float = 30.0
    needs: tuple[str, ...] = ()


@dataclass
class _Started:
    """A check that runs in a thread of its own: a library that hangs cannot be stopped, only be left alone."""

    check: Check
    place: Place
    since: float = field(default_factory=time.monotonic)
    thread: threading.Thread | None = None
    findings: list[Finding] = field(default_factory=list)


def examine(checks: Sequence[Check], settings: Settings, wanted: Wanted) -> list[Finding]:
    """Run all checks side by side; return their findings, in the order of the checks.

    Raises Stopped after Ctrl-C, and what a handler of SIGTERM raises: nothing that a check made may stay then either.
    """
    absent = {check.name: _absent(check) for check in checks}
    # All of them stand before the first one starts, so that an interrupt finds what it has to take back.
    planned = [_Started(check, Place(settings, wanted)) for check in checks]
    try:
        for each in planned:
            _start(each, absent[each.check.name])
        for each in planned:
            if each.thread is not None:
                each.thread.join(max(0.0, each.since + each.check.seconds - time.monotonic()))
    except BaseException as error:
        left = "; ".join(problem for problem in (_take_back(each.place) for each in planned) if problem)
        if isinstance(error, KeyboardInterrupt):
            raise Stopped(left) from error
        if left:
            log.error("not removed: %s", left)
        raise
    return [without_secrets(finding) for each in planned for finding in _end(each)]


def _absent(check: Check) -> str:
    """Import what a check needs; return the package that is not installed, or nothing."""
    try:
        for name in check.needs:
            importlib.import_module(name)
    except ImportError as error:
        return error.name or str(error)
    return ""


def _start(each: _Started, absent: str) -> None:
    check, place = each.check, each.place
    each.since = time.monotonic()

    def run() -> None:
        found = _taken_back(check, place, _findings(check, place))
        seconds = round(time.monotonic() - each.since, 2)
        each.findings = [replace(finding, seconds=finding.seconds or seconds) for finding in found]

    if absent:
        each.findings = [skip(check.name, f"the package {absent} is not installed here")]
        return
    each.thread = threading.Thread(target=run, name=f"doctor-{check.name}", daemon=True)
    each.thread.start()


def _findings(check: Check, place: Place) -> list[Finding]:
    try:
        found = check.run(place)
    except MillraceError as error:
        return [mend(check.name, error)]
    except NotChecked as reason:
        return [skip(check.name, str(reason))]
    except Exception as error:  # noqa: BLE001 - one check that crashes must not hide what the others found
        log.error("check=%s\n%s", check.name, hidden(traceback.format_exc()))
        step = "report it, with the traceback above."
        return [Finding(check.name, "mend", f"a bug in this check: {type(error).__name__}: {error}", step, BUG)]
    return [ok(check.name, found)] if isinstance(found, str) else found


def _end(each: _Started) -> list[Finding]:
    """Return the findings of a check; take back what one made that is still at it."""
    check, limit = each.check, each.check.seconds
    if each.findings:
        return each.findings
    late = ServiceUnavailable(
        f"expected an answer within {limit:g} s, found none. Next: see whether the service hangs; try again."
    )
    found = replace(mend(check.name, late), seconds=round(time.monotonic() - each.since, 2))
    return _taken_back(check, each.place, [found])


def _taken_back(check: Check, place: Place, found: list[Finding]) -> list[Finding]:
    """Return the findings after removing what the check made; what cannot be removed is to be mended."""
    problem = _take_back(place)
    if not problem:
        return found
    left = BadInput(f"expected to remove what this check made, found {problem}. Next: allow deleting; remove it.")
    kept = [finding for finding in found if finding.check != check.name or finding.status != "ok"]
    return [*kept, mend(check.name, left)]


def _take_back(place: Place) -> str:
    """Run what is to be undone; return what went wrong, or nothing."""
    problems = [f"no end after {UNDO_SECONDS:g} s"]

    def run() -> None:
        try:
            with place.undoing:
                place.undo.close()
        except Exception as error:  # noqa: BLE001 - whatever it was, it is told
            problems[0] = (str(error) or type(error).__name__).partition(" Next: ")[0]
        else:
            problems.clear()

    thread = threading.Thread(target=run, name="doctor-undo", daemon=True)
    thread.start()
    thread.join(UNDO_SECONDS)
    return problems[0] if problems else ""
