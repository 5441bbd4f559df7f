"""What every DAG promises: it imports, it is listed, it is documented, its edges are the ones that were meant."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.airflow]
REPOSITORY = Path(__file__).resolve().parents[2]
DAGS = REPOSITORY / "dags"
HEADINGS = ["What it does", "Parameters", "Assets in and out", "When it fails"]
HEAVY = {
    "torch", "transformers", "mlflow", "great_expectations", "evidently", "pandas", "trl", "peft", "deepspeed",
    "datasets", "sentence_transformers", "boto3", "tasks", "kubernetes",
}  # fmt: skip

EDGES = {
    "sync_knowledge": {
        "list_documents": ["parts_to_read", "read_documents"],
        "parts_to_read": ["read_documents"],
        "read_documents": ["validate_documents"],
        "validate_documents": ["parts_to_index"],
        "parts_to_index": ["index_documents"],
        "index_documents": ["check_index"],
        "check_index": ["switch_index"],
        "switch_index": [],
    },
    "fine_tune": {
        "preflight": ["build_dataset"],
        "build_dataset": ["validate_dataset"],
        "validate_dataset": ["plan_training"],
        "plan_training": ["train"],
        "train": ["evaluate"],
        "evaluate": ["gate"],
        "gate": ["register"],
        "register": [],
    },
    "promote_release": {"propose": ["approve"], "approve": ["promote"], "promote": ["announce"], "announce": []},
    "watch_drift": {
        "collect_requests": ["report_drift"],
        "report_drift": ["decide"],
        "decide": ["trigger"],
        "trigger": [],
    },
    "roll_back": {
        "list_releases": ["choose"],
        "choose": ["roll_back"],
        "roll_back": ["announce_rollback"],
        "announce_rollback": [],
    },
    "housekeeping": {"retire": []},
}
SCHEDULES = {"sync_knowledge": "0 2 * * *", "watch_drift": "0 4 * * *", "housekeeping": "0 5 * * 0"}
OUTLETS = {
    ("sync_knowledge", "switch_index"): "knowledge_index",
    ("fine_tune", "register"): "candidate_model",
    ("promote_release", "promote"): "release",
    ("roll_back", "roll_back"): "release",
    ("watch_drift", "decide"): "drift_decision",
}
# The gate of each edge that changes what users get: every path to the second task passes the first.
GUARDS = [
    ("sync_knowledge", "check_index", "switch_index"),
    ("fine_tune", "preflight", "train"),
    ("fine_tune", "plan_training", "train"),
    ("fine_tune", "gate", "register"),
    ("promote_release", "propose", "promote"),
    ("promote_release", "approve", "promote"),
    ("watch_drift", "decide", "trigger"),
    ("roll_back", "choose", "roll_back"),
]


@pytest.fixture(scope="module")
def dagbag() -> Any:
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(str(DAGS))


@pytest.fixture(params=sorted(EDGES))
def dag(request: pytest.FixtureRequest, dagbag: Any) -> Any:
    return dagbag.dags[request.param]


def test_every_file_is_a_dag_that_imports(dagbag: Any) -> None:
    assert dagbag.import_errors == {}
    assert {path.stem for path in DAGS.glob("*.py")} == set(dagbag.dags) == set(EDGES)


def test_tasks_and_edges(dag: Any) -> None:
    assert {task.task_id: sorted(task.downstream_task_ids) for task in dag.tasks} == EDGES[dag.dag_id]


@pytest.mark.parametrize(("dag_id", "guard", "guarded"), GUARDS)
def test_no_path_leads_around_a_gate(dagbag: Any, dag_id: str, guard: str, guarded: str) -> None:
    dag = dagbag.dags[dag_id]
    task = dag.get_task(guarded)
    assert task.trigger_rule == "all_success"  # any other rule would run it after a skipped gate
    seen, border = set(), [guarded]
    while border:
        for upstream in dag.get_task(border.pop()).upstream_task_ids - {guard} - seen:
            seen.add(upstream)
            border.append(upstream)
    before_guard = dag.get_task(guard).get_flat_relative_ids(upstream=True)
    assert not seen & before_guard
    assert not [task_id for task_id in seen if not dag.get_task(task_id).upstream_task_ids]
    assert guard in task.get_flat_relative_ids(upstream=True)


def test_every_task_runs_a_known_stage(dag: Any) -> None:
    from tasks.registry import STAGES

    named = {task.task_id for task in dag.tasks} - {"parts_to_read", "parts_to_index", "approve", "choose", "trigger"}
    assert named <= set(STAGES)


def test_every_option_is_one_of_the_stage(dagbag: Any) -> None:
    from tasks.registry import load_stage

    for dag in dagbag.dags.values():
        for task in dag.tasks:
            values = task.partial_kwargs if task.is_mapped else vars(task)
            if "stage" in values and values["options"]:
                known = set(load_stage(values["stage"]).options.model_fields)
                assert set(values["options"]) <= known, f"{dag.dag_id}.{task.task_id}"


def test_one_run_at_a_time_and_no_catching_up(dag: Any) -> None:
    assert dag.max_active_runs == 1
    assert dag.catchup is False
    assert dag.dagrun_timeout is not None
    for task in dag.tasks:
        assert task.owner == "millrace"
        assert task.retries >= 1


def test_schedules(dag: Any) -> None:
    expected = SCHEDULES.get(dag.dag_id)
    assert getattr(dag.timetable, "expression", None) == expected
    if dag.dag_id == "promote_release":
        assert {asset.name for asset in dag.timetable.asset_condition.objects} == {
            "candidate_model",
            "knowledge_index",
        }


def test_outlets(dagbag: Any) -> None:
    found = {
        (dag.dag_id, task.task_id): outlet.name
        for dag in dagbag.dags.values()
        for task in dag.tasks
        for outlet in task.outlets
    }
    assert found == OUTLETS


def test_the_schedule_starts_when_the_installation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from millrace_defaults import FALLBACK_START, schedule_start

    monkeypatch.delenv("MILLRACE_SCHEDULE_START", raising=False)
    assert schedule_start() == FALLBACK_START
    monkeypatch.setenv("MILLRACE_SCHEDULE_START", "2026-11-20T08:00:00+00:00")
    assert schedule_start().isoformat() == "2026-11-20T08:00:00+00:00"
    monkeypatch.setenv("MILLRACE_SCHEDULE_START", "yesterday")
    with pytest.raises(ValueError, match="expected MILLRACE_SCHEDULE_START"):
        schedule_start()


def test_the_page_has_the_fixed_headings(dag: Any) -> None:
    assert re.findall(r"^\*\*(.+)\*\*$", dag.doc_md, re.MULTILINE) == HEADINGS
    parameters = dag.doc_md.split("**Parameters**")[1].split("**Assets in and out**")[0]
    assert set(re.findall(r"^- `(\w+)`:", parameters, re.MULTILINE)) == {
        name for name in dag.params if name != "reason" or dag.dag_id == "roll_back"
    }


def test_every_parameter_has_a_form(dag: Any) -> None:
    for name in dag.params:
        parameter = dag.params.get_param(name)
        assert parameter.schema.get("title"), name
        assert parameter.description, name
        assert parameter.schema.get("type"), name


def test_tags_are_from_the_enum(dag: Any) -> None:
    from millrace_defaults import Tag

    assert dag.tags
    assert dag.tags <= {tag.value for tag in Tag}


def test_a_dag_is_the_same_at_every_parse(dag: Any) -> None:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.serialization.serialized_objects import DagSerialization

    again = DagBag(str(DAGS / f"{dag.dag_id}.py")).dags[dag.dag_id]
    first, second = DagSerialization.serialize_dag(dag), DagSerialization.serialize_dag(again)
    for one in (first, second):
        one.pop("relative_fileloc", None)  # relative to the folder that was asked for
    assert json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert DagSerialization.deserialize_dag(first).task_ids == dag.task_ids


@pytest.mark.parametrize("path", sorted(DAGS.glob("*.py")), ids=lambda path: path.name)
def test_a_file_reads_in_one_screen_or_two(path: Path) -> None:
    assert 40 <= len(path.read_text(encoding="utf-8").splitlines()) <= 90
    if path.stem in {dag_id for dag_id, _task in OUTLETS} | {"housekeeping"}:
        assert "# Dangerous edge:" in path.read_text(encoding="utf-8")


def parsed(**environment: str) -> set[str]:
    """Return the modules that importing all DAGs adds to what Airflow itself has loaded."""
    code = (
        "import sys, airflow, json; from airflow.dag_processing.dagbag import DagBag; before = set(sys.modules);"
        f"bag = DagBag({str(DAGS)!r}); assert not bag.import_errors, bag.import_errors;"
        "print('MODULES', json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before}"
        " | {name for name in sys.modules if name.startswith('airflow.providers.cncf.kubernetes.operators')})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return set(json.loads(result.stdout.rsplit("MODULES ", 1)[1]))


def test_parsing_loads_nothing_heavy() -> None:
    modules = parsed(MILLRACE_LAUNCHER="process")
    assert not modules & HEAVY
    assert "millrace_process" in modules
    assert "millrace_pod" not in modules  # neither launcher needs the other's packages
    assert not [name for name in modules if name.startswith("airflow.providers.cncf.kubernetes.operators")]


def test_all_dags_parse_for_kubernetes() -> None:
    modules = parsed(MILLRACE_LAUNCHER="kubernetes", MILLRACE_STAGE_IMAGE="registry.example/stage:1")
    assert "millrace_pod" in modules
    assert "millrace_process" not in modules


def test_an_unknown_launcher_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from millrace_stage import stage

    monkeypatch.setenv("MILLRACE_LAUNCHER", "docker")
    with pytest.raises(ValueError, match="expected MILLRACE_LAUNCHER to be one of process, kubernetes, found 'docker'"):
        stage("train")


def test_ruffs_airflow_rules_pass() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "AIR", "--ignore", "AIR001", "--preview", "dags", "plugins"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout


def test_the_page_about_the_dags_is_up_to_date() -> None:
    result = subprocess.run(
        [sys.executable, "docs/make_dags_md.py", "--check"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_form_suggests_every_recipe() -> None:
    from millrace_defaults import RECIPES

    from tasks.training.recipes import names

    assert sorted(RECIPES) == sorted(names())
