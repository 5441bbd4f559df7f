"""How checks are run: independent, with a time limit, nothing left behind, and never ok without having looked."""

import importlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.doctor.examine import Check, NotChecked, Place, Stopped, Wanted, examine, making
from tasks.doctor.report import Finding, ok
from tasks.errors import BadInput, ServiceUnavailable

from .conftest import one, settings


def fails(error: Exception) -> Callable[[Place], str]:
    def check(_: Place) -> str:
        raise error

    return check


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BadInput("expected a, found b. Next: c."), "mend", 2),
        (ServiceUnavailable("expected a, found b. Next: c."), "mend", 75),
        (NotChecked("no client"), "skip", 0),
        (KeyError("x"), "mend", 1),
    ],
)
def test_how_a_check_ends_is_what_its_line_says(error: Exception, status: str, code: int) -> None:
    found = one(fails(error))
    assert (found.status, found.code) == (status, code)
    assert found.status != "skip" or found.found.startswith("not checked: ")


def test_a_package_that_is_missing_is_named_and_nothing_is_called_ok() -> None:
    checks = [Check("it", lambda _: "fine", needs=("json", "no_such_package")), Check("other", lambda _: "fine")]
    absent, other = examine(checks, settings(), Wanted())
    assert (absent.status, absent.found) == ("skip", "not checked: the package no_such_package is not installed here")
    assert other.status == "ok"


def test_packages_are_imported_before_any_check_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that import parts of one package at once may end with a _DeadlockError; `kubernetes` did, one time in six."""
    (tmp_path / "imported_where.py").write_text("import threading; name = threading.current_thread().name")
    monkeypatch.syspath_prepend(str(tmp_path))

    def check(_: Place) -> str:
        return str(importlib.import_module("imported_where").name)

    found = examine([Check("it", check, needs=("imported_where",))], settings(), Wanted())
    assert found[0].found == threading.main_thread().name


def test_one_check_that_fails_does_not_stop_the_others() -> None:
    checks = [Check("first", fails(ValueError("x"))), Check("second", lambda _: "fine")]
    assert [finding.status for finding in examine(checks, settings(), Wanted())] == ["mend", "ok"]


def test_a_check_that_hangs_is_given_up_after_its_time() -> None:
    release, since = threading.Event(), time.monotonic()
    hangs = Check("hangs", lambda _: str(release.wait(30)), seconds=0.3)
    late, other = examine([hangs, Check("other", lambda _: "fine")], settings(), Wanted())
    release.set()
    assert time.monotonic() - since < 10
    assert (late.status, late.code) == ("mend", 75)
    assert "within 0.3 s" in late.found
    assert other.status == "ok"


@pytest.mark.parametrize("how", ["passes", "fails later", "hangs"])
def test_what_a_check_made_is_taken_back_however_it_ends(how: str) -> None:
    there: list[str] = []
    release = threading.Event()

    def check(place: Place) -> str:
        with making(place, there.clear):
            there.append("made")
        if how == "fails later":
            raise BadInput("expected a, found b. Next: c.")
        if how == "hangs":
            release.wait(30)
        return "fine"

    examine([Check("it", check, seconds=0.5)], settings(), Wanted())
    release.set()
    assert there == []


def test_what_was_refused_is_not_taken_back() -> None:
    removed: list[str] = []

    def check(place: Place) -> str:
        with making(place, lambda: removed.append("removed")):
            raise BadInput("expected leave to write, found none. Next: allow it.")
        return "fine"

    assert one(check).code == 2
    assert removed == []


def test_what_cannot_be_removed_is_told_and_is_not_ok() -> None:
    def refused() -> None:
        raise BadInput("expected leave to delete, found AccessDenied. Next: allow it.")

    def check(place: Place) -> str:
        with making(place, refused):
            return "fine"

    found = one(check)
    assert (found.status, found.code) == ("mend", 2)
    assert "expected to remove what this check made, found expected leave to delete, found AccessDenied" in found.found


def interrupt(monkeypatch: pytest.MonkeyPatch, method: str, thread: str, when: threading.Event) -> None:
    """Raise KeyboardInterrupt where the main thread calls `method` of the thread with this name, once `when` is set."""
    before = getattr(threading.Thread, method)

    def interrupted(self: threading.Thread, *arguments: Any) -> None:
        if self.name == thread:
            when.wait(5)
            raise KeyboardInterrupt
        before(self, *arguments)

    monkeypatch.setattr(threading.Thread, method, interrupted)


def held(remove: Callable[[], object], made: threading.Event) -> Callable[[Place], str]:
    """Return a check that makes something, says so, and then takes its time."""

    def check(place: Place) -> str:
        with making(place, remove):
            made.set()
        threading.Event().wait(5)
        return "fine"

    return check


def test_an_interrupted_examination_takes_back_what_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    there, made = ["something"], threading.Event()
    interrupt(monkeypatch, "join", "doctor-it", made)
    with pytest.raises(Stopped, match="^$"):
        examine([Check("it", held(there.clear, made))], settings(), Wanted())
    assert there == []


def test_an_interrupt_while_checks_are_still_being_started_takes_back_what_was_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there, made = ["something"], threading.Event()
    interrupt(monkeypatch, "start", "doctor-second", made)
    checks = [Check("first", held(there.clear, made)), Check("second", lambda _: "fine")]
    with pytest.raises(Stopped, match="^$"):
        examine(checks, settings(), Wanted())
    assert there == []


def test_an_interrupt_waits_for_a_check_that_is_taking_back_what_it_made(monkeypatch: pytest.MonkeyPatch) -> None:
    there, removing = ["something"], threading.Event()

    def remove() -> None:
        removing.set()
        threading.Event().wait(0.5)
        there.clear()

    def check(place: Place) -> str:
        with making(place, remove):
            return "fine"

    interrupt(monkeypatch, "join", "doctor-it", removing)
    with pytest.raises(Stopped, match="^$"):
        examine([Check("it", check)], settings(), Wanted())
    assert there == []


def test_what_an_interrupt_could_not_take_back_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made = threading.Event()

    def refused() -> None:
        raise BadInput("expected leave to delete, found none. Next: allow it.")

    interrupt(monkeypatch, "start", "doctor-second", made)
    checks = [Check("first", held(refused, made)), Check("second", lambda _: "fine")]
    with pytest.raises(Stopped, match="expected leave to delete, found none"):
        examine(checks, settings(), Wanted())


def test_what_a_check_made_is_gone_before_slower_ones_end() -> None:
    there: list[str] = []
    seen: list[list[str]] = []

    def quick(place: Place) -> str:
        with making(place, there.clear):
            there.append("made")
        return "fine"

    def slow(_: Place) -> str:
        time.sleep(0.5)
        seen.append(list(there))
        return "fine"

    examine([Check("slow", slow), Check("quick", quick)], settings(), Wanted())
    assert seen == [[]]


def test_findings_of_a_pod_stay_when_it_cannot_be_removed() -> None:
    def refused() -> None:
        raise BadInput("expected leave to delete, found none. Next: allow it.")

    def check(place: Place) -> list[Finding]:
        with making(place, refused):
            return [ok("it", "ran"), ok("pod: database", "fine")]

    found = examine([Check("it", check)], settings(), Wanted())
    assert [(each.check, each.status) for each in found] == [("pod: database", "ok"), ("it", "mend")]


def test_a_secret_in_an_unexpected_error_is_hidden(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-key")
    assert "very-secret-key" not in one(fails(ValueError("with very-secret-key"))).found
    assert "ValueError: with ***" in caplog.text and "very-secret-key" not in caplog.text
