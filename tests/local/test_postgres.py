"""Postgres does not run as root, wherever the checkout stands."""

import os
import shutil
import subprocess
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
