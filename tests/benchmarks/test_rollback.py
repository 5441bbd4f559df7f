"""The benchmark of the way back, with small numbers: its releases are signed, and its figure says what was gone back to."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

SMALL = """
from benchmarks import rollback
rollback.ADAPTER, rollback.MODEL, rollback.CHUNKS, rollback.ROUNDS, rollback.SECONDS = 1_000_000, 2_000_000, 10, 1, 600.0
found = rollback.rollback_time()
print(found.figure, "|", found.bound, "|", found.holds)
"""


def test_it_goes_back_to_signed_releases() -> None:
    done = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    figure, bound, holds = done.stdout.splitlines()[-1].split(" | ")
    assert figure.endswith("s to a model of 2 MB or an adapter of 1 MB, signed")
    assert (bound, holds) == ("600 s", "True")
