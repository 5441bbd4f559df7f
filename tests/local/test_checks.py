"""Ports and disk: the messages name what a person needs."""

import os
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from local import checks
from local.checks import check_disk, check_ports, free_port_base, held_by, holder, port_free, tail
from local.errors import LocalError
from local.parts import Part
from local.settings import load_settings


def test_a_port_in_use_is_named_with_its_holder_and_its_variable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        assert not port_free(port)
        assert f"(pid {os.getpid()})" in str(holder(port))
        part = Part("mlflow", (), ["true"], {}, ports={"mlflow": port})
        with pytest.raises(LocalError, match=f"port {port} of mlflow is held by .*MILLRACE_LOCAL_MLFLOW_PORT") as found:
            check_ports([part])
        assert found.value.exit_code == 2
    assert port_free(port)
    check_ports([part])


def test_a_listener_on_all_addresses_counts() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen(1)
        assert not port_free(taken.getsockname()[1])


def test_a_process_that_ends_has_a_moment_to_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as ending:  # bound, and no listener that could be named
        ending.bind(("127.0.0.1", 0))
        port = ending.getsockname()[1]
        monkeypatch.setattr(checks, "_LETS_GO", 0.2)
        assert held_by(port) == "a process that cannot be named"
        monkeypatch.setattr(checks, "_LETS_GO", 20.0)
        later = threading.Timer(0.3, ending.close)
        later.start()
        assert held_by(port) is None
        later.join()


def test_two_parts_cannot_share_a_port() -> None:
    port = free_port_base()
    parts = [Part("mlflow", (), [], {}, ports={"mlflow": port}), Part("s3", (), [], {}, ports={"filer": port})]
    with pytest.raises(LocalError, match="MILLRACE_LOCAL_MLFLOW_PORT and by MILLRACE_LOCAL_S3_PORT"):
        check_ports(parts)


def test_a_full_disk(tmp_path: Path) -> None:
    settings = load_settings({"MILLRACE_LOCAL_DIR": str(tmp_path / "not" / "made" / "yet")})
    check_disk(replace(settings, min_free_gb=0))
    with pytest.raises(LocalError, match="expected 1e\\+06 GB .*MILLRACE_LOCAL_MIN_FREE_GB"):
        check_disk(replace(settings, min_free_gb=1e6))
    assert not (tmp_path / "not").exists()


def test_tail(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"\xff\n" + b"".join(b"%d\n" % number for number in range(100)))
    assert tail(tmp_path / "log", 2) == "98\n99"
    assert tail(tmp_path / "none") == "(no log)"
