"""Modules that load at their first use."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.lazy_imports import lazily


def test_a_named_module_loads_when_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "waits.py").write_text("import loaded_by_it\nanswer = 42\n")
    (tmp_path / "loaded_by_it.py").write_text("")
    (tmp_path / "at_once.py").write_text("import waits\n")
    monkeypatch.syspath_prepend(tmp_path)
    with lazily("waits"):
        import at_once  # type: ignore[import-not-found]
    assert "loaded_by_it" not in sys.modules
    assert at_once.waits.answer == 42
    assert "loaded_by_it" in sys.modules
    for name in ("waits", "at_once", "loaded_by_it"):
        del sys.modules[name]


def test_one_that_is_not_there_is_missed_as_ever_and_nothing_is_left_behind() -> None:
    before = list(sys.meta_path)
    with pytest.raises(ModuleNotFoundError), lazily("no_such_module_at_all"):
        import no_such_module_at_all  # type: ignore[import-not-found] # noqa: F401
    assert sys.meta_path == before and gc.isenabled()


def test_a_suite_is_validated_without_what_it_does_not_need(tmp_path: Path) -> None:
    """And what waited works when it is asked for."""
    code = """
import sys
from tasks.validation import validate
report = validate(sys.argv[1], [{"text": "words"}])
print(len(report.rows), [name for name in ("altair.vegalite", "scipy.stats._stats_py") if name in sys.modules])
import scipy.stats
print(round(float(scipy.stats.norm.cdf(0)), 3))
"""
    rule = {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "text"}}
    suite = tmp_path / "suite.json"
    suite.write_text(
        json.dumps({"name": "s", "expectations": [rule | {"meta": {"rule": "text_is_there", "expected": "text"}}]})
    )
    done = subprocess.run([sys.executable, "-c", code, str(suite)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1 []", "0.5"], done.stdout + done.stderr
