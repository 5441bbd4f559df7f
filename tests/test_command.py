"""`python -m tasks`: parsing, help, and the exit codes a person sees."""

import subprocess
import sys

import pytest

from tasks.errors import OptionError
from tasks.options import parse_options
from tasks.settings import REPOSITORY


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tasks", *arguments],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_options_are_read_in_both_forms() -> None:
    assert parse_options(["--confirm-removal", "yes", "--corpus=a=b"]) == {"confirm_removal": "yes", "corpus": "a=b"}


@pytest.mark.parametrize(
    ("arguments", "found"),
    [(["corpus"], "'corpus'"), (["--"], "'--'"), (["--a"], "the end"), (["--a", "1", "--a", "2"], "twice")],
)
def test_a_malformed_option_is_refused(arguments: list[str], found: str) -> None:
    with pytest.raises(OptionError, match=found):
        parse_options(arguments)


def test_without_arguments_the_stages_are_listed() -> None:
    result = command()
    assert result.returncode == 0
    assert "list_documents" in result.stdout


def test_an_unknown_stage_exits_2_with_the_nearest_name() -> None:
    result = command("lst_documents", "--run", "s3://b/runs/x/y")
    assert result.returncode == 2
    assert "Did you mean 'list_documents'" in result.stderr


def test_a_run_that_is_not_s3_exits_2() -> None:
    result = command("list_documents", "--run", "somewhere")
    assert result.returncode == 2
    assert "expected --run s3://" in result.stderr


def test_missing_settings_exit_2_and_name_the_next_step() -> None:
    result = command("list_documents", "--run", "s3://b/runs/x/y")
    assert result.returncode == 2
    assert "MILLRACE_DATABASE_URL" in result.stderr
    assert "make up" in result.stderr
