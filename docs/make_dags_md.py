"""Writes docs/DAGS.md from the DAG files: `python docs/make_dags_md.py`, or with `--check` only compares.

Reads `dags/` as Airflow reads it (nothing runs, no database). Exits 1 where a DAG does not import, or where
`--check` finds that the page is out of date.
"""

import atexit
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "DAGS.md"
ORDER = ["sync_knowledge", "fine_tune", "promote_release", "watch_drift", "roll_back", "housekeeping"]
HEAD = """# The DAGs

<!-- Written by docs/make_dags_md.py from the DAG files; do not edit. -->

Each is one file of `dags/`. The text below is what the Airflow UI shows on the page of the DAG.

| DAG | starts | makes |
| --- | --- | --- |
"""


def load() -> dict[str, Any]:
    """Return all DAGs by name, in the order of the loop."""
    home = tempfile.mkdtemp(prefix="millrace-docs-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ |= {
        "AIRFLOW_HOME": home,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "plugins"),
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        "MILLRACE_LAUNCHER": "process",  # the page says when and in what order, whatever launches the stages
    }
    os.environ.pop("MILLRACE_SCHEDULE_START", None)
    sys.path.append(str(REPOSITORY / "plugins"))
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(REPOSITORY / "dags"))
    if bag.import_errors:
        raise SystemExit(f"expected all DAGs to import, found {bag.import_errors}")
    return {name: bag.dags[name] for name in sorted(bag.dags, key=lambda name: (ORDER + [name]).index(name))}


def starts(dag: Any) -> str:
    """Say when a DAG starts."""
    if expression := getattr(dag.timetable, "expression", None):
        return f"`{expression}` UTC, by hand"
    if condition := getattr(dag.timetable, "asset_condition", None):
        return " or ".join(sorted(f"asset `{asset.name}`" for asset in condition.objects)) + ", by hand"
    return "by hand" + (", by `watch_drift`" if "decision" in dag.params else "")


def makes(dag: Any) -> str:
    """Say which assets a DAG makes."""
    names = sorted({outlet.name for task in dag.tasks for outlet in task.outlets})
    return ", ".join(f"`{name}`" for name in names) or "nothing"


def chain(dag: Any) -> str:
    """Draw the order of the tasks; a mapped task is marked."""
    tasks = dag.topological_sort()
    names = [f"{task.task_id} (one per part)" if task.is_mapped else task.task_id for task in tasks]
    return " > ".join(names)


def section(dag: Any) -> str:
    """Return the part of the page about one DAG."""
    text = re.sub(r"^\*\*(.+)\*\*$", r"### \1", dag.doc_md.strip(), flags=re.MULTILINE)
    forms = ""
    if dag.params:
        rows = [row(name, dag.params.get_param(name)) for name in dag.params]
        forms = "| parameter | form | default |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"
        text = text.replace("\n\n### Assets", f"\n\n{forms}\n### Assets".replace("\n\n\n", "\n\n"), 1)
    return f"## {dag.dag_id}\n\n```\n{chain(dag)}\n```\n\n{text}\n"


def row(name: str, parameter: Any) -> str:
    """Return the table row of a parameter."""
    schema = parameter.schema
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    form = " or ".join(f"`{value}`" for value in schema["enum"]) if "enum" in schema else kinds[-1]
    if "minimum" in schema:
        form += (
            f", {schema['minimum']} to {schema['maximum']}" if "maximum" in schema else f", from {schema['minimum']}"
        )
    default = "empty" if "null" in kinds else f"`{parameter.value}`" if parameter.has_value else "required"
    return f"| `{name}` | {form} | {default} |"


def main(arguments: list[str]) -> int:
    """Write the page, or compare it."""
    dags = load()
    table = "".join(f"| [{name}](#{name}) | {starts(dag)} | {makes(dag)} |\n" for name, dag in dags.items())
    page = HEAD + table + "\n" + "\n".join(section(dag) for dag in dags.values())
    if "--check" in arguments:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page:
            print(
                "expected docs/DAGS.md to say what the DAG files say, found it out of date. Next: python docs/make_dags_md.py"
            )
            return 1
        return 0
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
