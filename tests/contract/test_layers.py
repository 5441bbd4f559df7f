"""DESIGN.md, principle 9: DAGs say when, plugins say how, tasks say what; and imports show it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.registry import STAGES, TOOLS
from tasks.settings import REPOSITORY

HEAVY = {"torch", "transformers", "deepspeed", "mlflow", "great_expectations", "evidently", "pandas", "trl", "peft"}


def files(folder: str) -> list[Path]:
    return sorted((REPOSITORY / folder).rglob("*.py"))


def imported(node: ast.AST) -> set[str]:
    """Return the top-level packages that an import statement names."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").split(".")[0]}
    return set()


def everywhere(path: Path) -> set[str]:
    """Return the packages a file imports anywhere, functions included."""
    return set().union(*(imported(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))))


def at_top(path: Path) -> set[str]:
    """Return the packages a file imports when it is itself imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    return set().union(*(imported(node) for node in ast.walk(tree) if id(node) not in inside))


@pytest.mark.parametrize("path", files("tasks"), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_tasks_never_import_airflow_dags_or_plugins(path: Path) -> None:
    found = {
        name
        for name in everywhere(path)
        if name in {"airflow", "dags", "plugins", "local"} or name.startswith("millrace_")
    }
    assert not found


@pytest.mark.parametrize("path", files("dags") + files("plugins"), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_dags_and_plugins_import_nothing_heavy_at_the_top(path: Path) -> None:
    assert not at_top(path) & (HEAVY | {"tasks", "boto3"})


def test_there_is_something_to_check() -> None:
    assert len(files("dags")) == 6
    assert len(files("plugins")) >= 2


@pytest.mark.parametrize("module", sorted({*STAGES.values(), *(place.split(":")[0] for place in TOOLS.values())}))
def test_naming_a_stage_loads_nothing_heavy(module: str) -> None:
    """A stage's module is imported to show its help; torch and the like are imported by its work."""
    code = f"import sys, {module}; print(sorted(sys.modules.keys() & {HEAVY!r}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
