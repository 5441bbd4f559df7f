"""`make setup`: the marker, the messages, what a broken-off installation leaves."""

import subprocess
import sys
from pathlib import Path

import pytest

from local import setup
from local.settings import REPOSITORY


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    folder = tmp_path / "requirements"
    folder.mkdir()
    for name in setup.LOCKS:
        (folder / name).write_text("")
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index at a port where nobody listens, and no other place to find packages."""
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")


def test_a_wrong_python_gets_one_message() -> None:
    with pytest.raises(setup.SetupError, match=r"expected Python 3.11, found 3.8 .*\n.*make setup PYTHON="):
        setup.check_python((3, 8))
    setup.check_python((3, 11))


def test_no_space_gets_one_message(tmp_path: Path) -> None:
    with pytest.raises(setup.SetupError, match="free disk space"):
        setup.check_disk(tmp_path, 1e6)
    assert setup.least_free({"MILLRACE_LOCAL_MIN_FREE_GB": "0.5"}) == 0.5
    assert setup.least_free({}) == setup.FREE_GB
    with pytest.raises(setup.SetupError, match="expected a number"):
        setup.least_free({"MILLRACE_LOCAL_MIN_FREE_GB": "much"})


def test_the_digest_follows_every_lock(requirements: Path) -> None:
    seen = {setup.digest(requirements)}
    for name in setup.LOCKS:
        (requirements / name).write_text("x==1\n")
        seen.add(setup.digest(requirements))
    assert len(seen) == len(setup.LOCKS) + 1


def test_installed_once_it_is_up_to_date_until_a_lock_changes(tmp_path: Path, requirements: Path) -> None:
    venv, wanted = tmp_path / ".venv", setup.digest(requirements)
    assert not setup.up_to_date(venv, wanted)
    setup.install(venv, requirements, wanted)
    assert setup.up_to_date(venv, wanted)
    assert not setup.up_to_date(venv, "another digest")


@pytest.mark.usefixtures("offline")
def test_an_index_that_does_not_answer_and_the_next_try(tmp_path: Path, requirements: Path) -> None:
    venv = tmp_path / ".venv"
    (requirements / "local.txt").write_text("attrs==26.1.0\n")
    with pytest.raises(setup.SetupError, match="found a package index that does not answer") as found:
        setup.install(venv, requirements, setup.digest(requirements))
    assert str(venv / "setup.log") in str(found.value)
    assert not setup.usable(venv)
    (venv / "left-over").write_text("from the broken-off try")
    (requirements / "local.txt").write_text("")
    setup.install(venv, requirements, setup.digest(requirements))
    assert setup.up_to_date(venv, setup.digest(requirements))
    assert not (venv / "left-over").exists()


def test_up_to_date_takes_under_a_second() -> None:
    """Also shows that the file runs as a script, from anywhere, without the packages."""
    command = [sys.executable, "-I", str(REPOSITORY / "local" / "setup.py")]
    if not setup.up_to_date(REPOSITORY / ".venv", setup.digest(setup.REQUIREMENTS)):
        pytest.skip("the environment was not made by `make setup`")
    assert subprocess.run(command, cwd="/", timeout=60, check=True, capture_output=True).stdout == b""
