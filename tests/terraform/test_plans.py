"""The code of infra/terraform is formatted, valid, described, and plans what its own tests (infra/terraform/tests) expect."""

import re
import shutil
import subprocess

import pytest

from .conftest import FOLDER, Terraform

FILES = sorted(FOLDER.glob("*.tf"))
BLOCK = re.compile(r'^variable "(\w+)" \{\n(.*?)^\}', re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.terraform


def test_files_are_formatted(planner: Terraform) -> None:
    planner("fmt", "-check", "-recursive", "-diff")


def test_the_configuration_is_valid(planner: Terraform) -> None:
    planner("validate")


@pytest.mark.slow
def test_the_plans_are_what_they_should_be(planner: Terraform) -> None:
    """`terraform test`: pools, safety, and input that is refused, with a mocked provider."""
    printed = planner("test", "-no-color")
    assert re.search(r"Success! [1-9]\d+ passed, 0 failed", printed), printed[-4000:]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_one_subject(path) -> None:  # type: ignore[no-untyped-def]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# "), "the first line says what the file is about"
    assert len(lines) <= 150


def test_every_variable_is_typed_and_described() -> None:
    variables = [match for path in FILES for match in BLOCK.findall(path.read_text(encoding="utf-8"))]
    assert len(variables) > 15
    for name, body in variables:
        assert re.search(r"^  description\s+= ", body, re.MULTILINE), f"{name} has no description"
        assert re.search(r"^  type\s+= ", body, re.MULTILINE), f"{name} has no type"


def test_every_exception_from_checkov_has_a_reason() -> None:
    for path in FILES:
        for line in path.read_text(encoding="utf-8").splitlines():
            if "checkov:skip" in line:
                assert re.search(r"checkov:skip=CKV2?_AWS_\d+: \S.{20,}", line), f"{path.name}: {line}"


@pytest.mark.slow
def test_checkov_finds_nothing() -> None:
    """Runs where `checkov` is installed (not in .venv: its own packages do not fit ours)."""
    if shutil.which("checkov") is None:
        pytest.skip("checkov is not installed")
    done = subprocess.run(
        ["checkov", "-d", FOLDER, "--framework", "terraform", "--compact", "--quiet", "--skip-download"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-6000:]
