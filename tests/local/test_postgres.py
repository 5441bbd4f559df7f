"""Postgres does not run as root, wherever the checkout stands; what an earlier server left is told from its own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from local import postgres

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user starts Postgres as itself")


def private_copy(tmp_path: Path) -> Path:
    """Copy Postgres below a folder that only its owner may enter, as a checkout below /root is."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    package = postgres.binaries().parents[1]
    for folder in package.parent.glob(package.name + "*"):  # the libraries lie beside the package
        if folder.suffix != ".dist-info":
            shutil.copytree(folder, private / folder.name)
    return private / postgres.binaries().relative_to(package.parent)


@root_only
@pytest.mark.integration
def test_a_checkout_that_only_root_may_enter_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = private_copy(tmp_path)
    monkeypatch.setattr(postgres, "binaries", lambda: programs)
    data = tmp_path / "private" / "data"
    postgres.initialise(data, "password")
    assert (data / "PG_VERSION").read_text().strip() == "18"
    shown = subprocess.run(postgres.as_service_user(["id", "-u"], data), capture_output=True, text=True, check=True)
    assert shown.stdout.strip() != "0"


@root_only
def test_without_user_namespaces_the_message_says_where_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "only_root_may_enter", lambda: True)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(postgres.LocalError, match="move the checkout"):
        postgres.as_service_user(["true"], tmp_path)


def test_a_young_process_that_took_over_the_pid_of_postgres_is_left_alone(tmp_path: Path) -> None:
    """It would have the age of the server by chance; it serves another folder."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        lock = tmp_path / "postmaster.pid"
        lock.write_text(f"{other.pid}\n{tmp_path}\n{int(time.time())}\n")
        postgres.clear_stale_pid(tmp_path)
        assert other.poll() is None
        assert not lock.exists()
        other.kill()


def test_a_server_of_the_same_folder_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(60)", "-D", str(tmp_path)]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()  # a process that has only just been started shows no command line for a moment
        (tmp_path / "postmaster.pid").write_text(f"{server.pid}\n{tmp_path}\n{int(time.time())}\n")
        postgres.clear_stale_pid(tmp_path)
        assert server.wait(10) == -signal.SIGKILL
