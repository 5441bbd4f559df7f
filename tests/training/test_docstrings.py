"""Pairs from docstrings: real ones, parsed and never imported."""

import sys
from pathlib import Path

import pytest

from tasks.errors import DataError
from tasks.training.docstrings import MODULES, first_paragraph, pairs


def test_the_standard_library_gives_thousands() -> None:
    found = list(pairs())
    assert len(found) > 2000
    assert len({pair.name for pair in found}) == len(found)
    fill = next(pair for pair in found if pair.name == "textwrap.fill")
    assert fill.answer == "Fill a single paragraph of text, returning a new string."
    assert "`textwrap.fill`" in fill.question
    assert len({pair.question.split("`")[0] for pair in found}) > 4, "several wordings"
    assert found == list(pairs()), "the same every time"
    assert {pair.module for pair in found} <= set(MODULES)


def test_nothing_is_imported(tmp_path: Path) -> None:
    (tmp_path / "danger.py").write_text(
        'import sys\nsys.danger = True\ndef f():\n    """Do it.\n\n    More."""\ndef _g():\n    """Hidden."""\n'
        'class C:\n    """A thing."""\n    def m(self):\n        """Act on\n        it."""\n',
        encoding="utf-8",
    )
    found = {pair.name: pair.answer for pair in pairs(("danger",), tmp_path)}
    assert found == {"danger.f": "Do it.", "danger.C": "A thing.", "danger.C.m": "Act on it."}
    assert not hasattr(sys, "danger")


def test_packages_are_one_source_and_their_tests_none(tmp_path: Path) -> None:
    for name in ("__init__", "inner", "_hidden", "tests/test_x"):
        path = tmp_path / "pack" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('def f():\n    """Do it well."""\n', encoding="utf-8")
    found = list(pairs(("pack",), tmp_path))
    assert [pair.name for pair in found] == ["pack.f", "pack.inner.f"]
    assert {pair.module for pair in found} == {"pack"}


def test_a_python_without_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="MILLRACE_EXAMPLES"):
        list(pairs(folder=tmp_path))


def test_the_first_paragraph_is_one_line() -> None:
    assert first_paragraph("One\n    two.\n\n    Three.") == "One two."
