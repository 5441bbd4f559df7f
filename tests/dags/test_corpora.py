"""A corpus of corpora.yaml is a DAG of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.airflow]
REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, sys
sys.path[:0] = ["plugins"]
from airflow.dag_processing.dagbag import DagBag
bag = DagBag("dags/sync_knowledge.py")
print(json.dumps({"errors": list(bag.import_errors.values()), "dags": {name: {
    "schedule": getattr(dag.timetable, "expression", None), "params": sorted(dag.params),
    "corpus": dag.get_task("list_documents").options["corpus"],
    "outlets": [asset.name for asset in dag.get_task("switch_index").outlets]} for name, dag in bag.dags.items()}}))
"""


def parsed(path: Path) -> dict[str, object]:
    environment = {**os.environ, "MILLRACE_CORPORA": str(path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_each_corpus_has_its_dag_schedule_and_name(tmp_path: Path) -> None:
    path = tmp_path / "corpora.yaml"
    path.write_text("corpora:\n  handbook: {source: /x, golden_questions: /y, schedule: '30 2 * * 1-5'}\n  notes: {}\n")
    assert parsed(path) == {
        "errors": [],
        "dags": {
            "sync_knowledge": {
                "schedule": None, "params": ["confirm_removal", "confirm_unmeasured", "corpus", "decision"], "corpus": "{{ params.corpus }}",
                "outlets": ["knowledge_index"],
            },
            "sync_knowledge_handbook": {
                "schedule": "30 2 * * 1-5", "params": ["confirm_removal", "confirm_unmeasured", "decision"], "corpus": "handbook", "outlets": [],
            },
            "sync_knowledge_notes": {
                "schedule": None, "params": ["confirm_removal", "confirm_unmeasured", "decision"], "corpus": "notes", "outlets": [],
            },
        },
    }  # fmt: skip


def test_a_file_without_corpora_is_an_import_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "corpora.yaml"
    path.write_text("corpora: []\n")
    found = parsed(path)
    assert found["dags"] == {}
    assert "expected `corpora:` with entries in corpora.yaml" in str(found["errors"])
