"""The stack itself: health, kill -9 of each part and of the daemon, what is kept, what is left behind."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import psutil
import psycopg
import pytest

from local.client import up
from local.errors import LocalError, PartFailed
from local.processes import Identity, alive, wait_gone
from local.settings import REPOSITORY
from local.stack import EmbeddedStack
from local.state import StackState, load

pytestmark = pytest.mark.integration
WHOLE = (
    "postgres",
    "s3",
    "mlflow",
    "airflow-api",
    "airflow-scheduler",
    "airflow-dag-processor",
    "airflow-triggerer",
    "assistant",
)


def state_of(stack: EmbeddedStack) -> StackState:
    return load(stack.folder / "state.json")


def servers(stack: EmbeddedStack) -> dict[str, Identity]:
    found = {name: part.identity for name, part in state_of(stack).parts.items() if part.kind == "server"}
    return {name: one for name, one in found.items() if one is not None}


def wait_healthy(stack: EmbeddedStack, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not stack.healthy():
        assert time.monotonic() < deadline, {n: (p.state, p.message) for n, p in state_of(stack).parts.items()}
        time.sleep(0.2)


def wait_replaced(stack: EmbeddedStack, name: str, before: Identity) -> None:
    deadline = time.monotonic() + 60
    while servers(stack).get(name, before) == before:
        assert time.monotonic() < deadline, f"{name} was not started again"
        time.sleep(0.1)


def s3(stack: EmbeddedStack):  # type: ignore[no-untyped-def]
    env = stack.env
    session = boto3.session.Session(env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1")
    return session.client("s3", endpoint_url=env["MILLRACE_S3_ENDPOINT_URL"])


def keep_something(stack: EmbeddedStack) -> None:
    with psycopg.connect(stack.database_url) as connection:
        connection.execute("CREATE TABLE kept (embedding vector(3))")
        connection.execute("INSERT INTO kept VALUES ('[1,2,3]')")
    s3(stack).put_object(Bucket="millrace", Key="kept/large", Body=b"x" * 9_000_000)


def check_kept(stack: EmbeddedStack) -> None:
    with psycopg.connect(stack.database_url) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1,)
    assert len(s3(stack).get_object(Bucket="millrace", Key="kept/large")["Body"].read()) == 9_000_000


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    """A stack that tests may hurt."""
    with EmbeddedStack(tmp_path_factory.mktemp("own"), parts=("postgres", "s3", "mlflow")) as started:
        keep_something(started)
        yield started


def again(stack: EmbeddedStack, **changes: str) -> list[str]:
    """What `make up` does; returns what it said."""
    said: list[str] = []
    up(stack.settings, {**stack.overrides, **changes}, {}, said.append, stack.parts, Identity.of(os.getpid()))
    return said


@pytest.mark.parametrize("name", ["postgres", "s3", "mlflow"])
def test_a_killed_part_is_started_again(own: EmbeddedStack, name: str) -> None:
    before = servers(own)
    family = state_of(own).parts[name].family
    os.kill(before[name].pid, signal.SIGKILL)
    wait_replaced(own, name, before[name])
    wait_healthy(own)
    assert wait_gone(family, 5) == []
    assert {n: one for n, one in servers(own).items() if n != name} == {n: o for n, o in before.items() if n != name}
    check_kept(own)


def test_up_again_changes_nothing(own: EmbeddedStack) -> None:
    before, daemon = servers(own), state_of(own).daemon
    began = time.monotonic()
    again(own)
    assert time.monotonic() - began < 3
    assert (servers(own), state_of(own).daemon) == (before, daemon)


def test_after_the_daemon_was_killed_the_parts_are_adopted(own: EmbeddedStack) -> None:
    before, daemon = servers(own), state_of(own).daemon
    assert daemon is not None
    os.kill(daemon.pid, signal.SIGKILL)
    wait_gone([daemon], 5)
    assert not own.healthy(), "status has to say that nobody watches"
    again(own)
    assert servers(own) == before
    assert own.healthy()
    # And an adopted part is watched like any other.
    os.kill(before["mlflow"].pid, signal.SIGKILL)
    wait_replaced(own, "mlflow", before["mlflow"])
    wait_healthy(own)


def test_after_everything_was_killed_up_mends_it(own: EmbeddedStack) -> None:
    state = state_of(own)
    members = [one for part in state.parts.values() for one in part.family]
    assert state.daemon is not None
    for one in (state.daemon, *members):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, signal.SIGKILL)
    wait_gone([state.daemon, *members], 10)
    # By now another process has the pid that Postgres wrote down.
    lock = own.folder / "postgres" / "postmaster.pid"
    lines = lock.read_text().splitlines()
    lock.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    again(own)
    assert own.healthy()
    assert psutil.pid_exists(os.getpid())
    check_kept(own)


def test_a_changed_setting_restarts_only_what_it_concerns(own: EmbeddedStack) -> None:
    before = servers(own)
    said = again(own, MILLRACE_CORPUS="/elsewhere")
    assert "MILLRACE_CORPUS is taken from your environment" in said
    assert own.env["MILLRACE_CORPUS"] == "/elsewhere"
    assert servers(own) == before
    again(own)


def test_an_unknown_setting_stops_before_anything_is_written(own: EmbeddedStack) -> None:
    before = (own.folder / "env").read_bytes()
    with pytest.raises(LocalError, match="MILLRACE_COPUS.*MILLRACE_CORPUS"):
        again(own, MILLRACE_COPUS="x")
    assert (own.folder / "env").read_bytes() == before
    assert own.healthy()


def test_nothing_but_the_loopback_and_only_known_ports(own: EmbeddedStack) -> None:
    pids = {one.pid for part in state_of(own).parts.values() for one in part.family}
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in pids]
    assert listening
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
    known = {*own.settings.ports.values(), *own.settings.s3_ports().values()}
    assert {connection.laddr.port for connection in listening} <= known


def test_wrong_credentials_are_refused(own: EmbeddedStack) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(own.database_url, password="wrong")
    session = boto3.session.Session("AKWRONG", "wrong", region_name="us-east-1")
    client = session.client("s3", endpoint_url=own.env["MILLRACE_S3_ENDPOINT_URL"])
    with pytest.raises(client.exceptions.ClientError, match="InvalidAccessKeyId"):
        client.list_buckets()
    with socket.create_connection(("127.0.0.1", own.settings.s3_ports()["filer"])) as filer:
        filer.sendall(b"GET /buckets/millrace/kept/large HTTP/1.0\r\n\r\n")
        assert b" 404 " in filer.recv(100), "the filer hands out files without credentials"


def test_down_leaves_no_process_and_keeps_the_data(own: EmbeddedStack) -> None:
    members = [one for part in state_of(own).parts.values() for one in part.family]
    own.stop()
    assert not [one for one in members if alive(one)]
    assert not own.healthy()
    own.stop()
    again(own)
    check_kept(own)


def test_a_start_that_was_killed_halfway_is_begun_anew(tmp_path: Path) -> None:
    """Half a data folder of Postgres, half a state file, a socket and options of another time."""
    for name in ("postgres.new", "s3", "logs"):
        (tmp_path / name).mkdir()
    (tmp_path / "postgres.new" / "PG_VERSION").write_text("18\n")
    (tmp_path / "state.json").write_text('{"daemon": {"pid"')
    (tmp_path / "s3" / "mini.options").write_text("s3.port=1\n")
    with socket.socket(socket.AF_UNIX) as stale:
        here = Path.cwd()
        os.chdir(tmp_path / "s3")
        stale.bind("s3.sock")
        os.chdir(here)
    with EmbeddedStack(tmp_path, parts=("postgres", "s3")) as stack:
        assert stack.healthy()
    assert not (tmp_path / "postgres.new").exists()


def test_a_part_that_cannot_start_is_shown_with_the_end_of_its_log(tmp_path: Path) -> None:
    stack = EmbeddedStack(tmp_path, parts=("postgres",))
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("12\n")
    with pytest.raises(
        PartFailed, match=r"initdb failed(.|\n)*expected data of Postgres 18, found version 12"
    ) as found:
        stack.start()
    assert str(tmp_path / "logs" / "initdb.log") in str(found.value)
    assert found.value.exit_code == 1
    shutil.rmtree(tmp_path / "postgres")
    with stack:
        assert stack.healthy()


OWNER = """
import sys, time
from local.stack import EmbeddedStack
stack = EmbeddedStack(sys.argv[1], parts=("postgres",)).start()
print("started", flush=True)
time.sleep(600)
"""


def test_the_stack_of_a_killed_test_run_stops_by_itself(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "started\n"
        state = load(tmp_path / "state.json")
        owner.kill()
    assert state.daemon is not None
    members = [state.daemon, *(one for part in state.parts.values() for one in part.family)]
    assert wait_gone(members, 30) == []


@pytest.mark.slow
@pytest.mark.airflow
def test_the_whole_stack_survives_the_kill_of_each_part(tmp_path: Path) -> None:
    with EmbeddedStack(tmp_path, parts=WHOLE) as stack:
        for name in WHOLE:
            before = servers(stack)[name]
            # It may have ended by itself over the loss of the one before, and be about to start again.
            with contextlib.suppress(ProcessLookupError):
                os.kill(before.pid, signal.SIGKILL)
            wait_replaced(stack, name, before)
        wait_healthy(stack)
        daemon = state_of(stack).daemon
        assert daemon is not None
        before_all = servers(stack)
        os.kill(daemon.pid, signal.SIGKILL)
        wait_gone([daemon], 5)
        again(stack)
        assert servers(stack) == before_all
        assert stack.healthy()
