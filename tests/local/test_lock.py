"""The lock files: exact, complete, and free of what belongs to one machine."""

import re

import pytest

from local.lock import LOCKS, REQUIREMENTS, strip_local_versions

PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", re.MULTILINE | re.IGNORECASE)


def pins(name: str) -> dict[str, str]:
    return dict(PIN.findall((REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", LOCKS)
def test_only_exact_pins_and_comments(name: str) -> None:
    text = (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        assert not line or line.lstrip().startswith("#") or PIN.match(line), line
    assert "://" not in text
    assert not re.search(r"==\S*\+", text), "a local version such as +cpu"


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_asked_for_is_locked(name: str) -> None:
    source = (REQUIREMENTS / f"{name}.in").read_text(encoding="utf-8")
    asked = {line.split("[")[0] for line in re.findall(r"^[a-z][a-z0-9._\[\]-]*", source, re.MULTILINE)}
    assert asked <= set(pins(name))


@pytest.mark.parametrize("name", ["stage", "airflow", "development"])
def test_one_version_of_a_package_everywhere(name: str) -> None:
    local = pins("local")
    assert {k: v for k, v in pins(name).items() if k in local} == {k: local[k] for k in pins(name) if k in local}


def test_the_images_hold_what_they_need_and_no_more() -> None:
    assert not {"torch", "mlflow", "pandas", "transformers"} & set(pins("airflow"))
    assert not [one for one in pins("stage") if one.startswith("apache-airflow")]


def test_local_versions_are_stripped() -> None:
    lock = "torch==2.13.0+cpu\n    # via x\npkg==1.0+cu128.a ; python_version < '4'\nplain==1.0\n"
    expected = "torch==2.13.0\n    # via x\npkg==1.0 ; python_version < '4'\nplain==1.0\n"
    assert strip_local_versions(lock) == expected
