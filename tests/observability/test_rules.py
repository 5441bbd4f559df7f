"""Alert rules, runbooks and dashboard agree with what is exported, and each rule fires when it should and only then.

`promtool` (Debian package `prometheus`) evaluates the rules; it is looked for on the path and in PROMTOOL.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.observability.catalog import ALL
from tasks.settings import REPOSITORY

from .airflow_names import NAMES
from .promql import labels, names

MONITORING = REPOSITORY / "infra" / "monitoring"
RUNBOOKS = REPOSITORY / "docs" / "runbooks" / "alerts"
RULES = sorted((MONITORING / "rules").glob("*.yaml"))
CASES: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "alert_cases.yaml").read_text(encoding="utf-8"))
DASHBOARD = MONITORING / "grafana" / "millrace.json"
HEADINGS = ["What it means", "Look here", "Do this", "When to escalate"]
OF_PROMETHEUS = {"instance", "job", "le"}
OF_A_PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}


def alerts() -> dict[str, dict[str, Any]]:
    return {
        rule["alert"]: rule
        for path in RULES
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    }


def exported() -> dict[str, set[str]]:
    """Return every series there is, with its labels: ours, Airflow's, and Prometheus's own `up`."""
    found: dict[str, set[str]] = {"up": set()} | {name: set() for name in OF_A_PROCESS} | NAMES
    for name, metric in ALL.items():
        ends = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        found |= {f"{name}{end}": set(metric.labels) for end in ends}
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """Return every expression with where it stands."""
    of_rules = [(name, str(rule["expr"])) for name, rule in alerts().items()]
    return of_rules + [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]


@pytest.mark.parametrize(("place", "expression"), queries())
def test_every_query_names_what_is_exported(place: str, expression: str) -> None:
    known = exported()
    named = names(expression)
    assert named and named <= set(known), f"{place} asks for what nobody exports"
    assert labels(expression) <= OF_PROMETHEUS.union(*(known[name] for name in named)), place


def test_the_reader_of_queries_sees_names_and_labels() -> None:
    expression = 'sum by (kind) (rate(a_total{route=~"x", code!="b_total"}[5m])) / on (job) c > 0.5 or absent(d)'
    assert names(expression) == {"a_total", "c", "d"}
    assert labels(expression) == {"kind", "route", "code", "job"}


def test_each_alert_has_a_runbook_and_each_runbook_its_alert() -> None:
    found = alerts()
    assert len(found) == 32
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == set(found) == set(CASES)
    for name, rule in found.items():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks/alerts/{name}.md"
        text = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS and text.startswith(f"# {name}\n")
        assert set(re.findall(r"`(millrace_\w+)", text)) <= set(exported()) | set(ALL), name


def test_every_scraped_job_is_one_the_rules_know() -> None:
    jobs = {job["job_name"] for job in yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]}
    named = {job for rule in alerts().values() for job in re.findall(r'job="([^"]+)"', str(rule["expr"]))}
    assert named == jobs - {"airflow"}


def test_the_dashboard_has_its_rows_and_panels_do_not_overlap() -> None:
    whole = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    rows = [panel["title"] for panel in whole["panels"] if panel["type"] == "row"]
    assert rows == ["Freshness of the loop", "Assistant", "Stages", "Cost", "Drift", "Airflow"]
    ids = [panel["id"] for panel in whole["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in whole["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    assert all(
        target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for p in panels()
        for target in p["targets"]
    )


def test_airflow_exports_only_what_is_asked_for_and_all_of_it() -> None:
    """The allow list of airflow-otel.env lets every name through that rules and dashboard use."""
    text = (MONITORING / "airflow-otel.env").read_text(encoding="utf-8")
    (allowed,) = re.findall(r"^AIRFLOW__METRICS__METRICS_ALLOW_LIST=(.*)$", text, re.MULTILINE)
    pattern = re.compile(allowed.replace(r"\.", "_").removeprefix("^").replace("(", "^airflow_("))
    used = {name for _place, expression in queries() for name in names(expression) if name.startswith("airflow_")}
    assert used <= set(NAMES) and all(pattern.match(name) for name in NAMES)


@pytest.fixture(scope="module")
def promtool() -> str:
    found = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if not found:
        pytest.skip("promtool is not here (Debian package prometheus; or PROMTOOL names it): rules are not evaluated")
    return found


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_the_rules_and_the_configuration(promtool: str) -> None:
    assert run(promtool, "check", "rules", *RULES).count("SUCCESS") == len(RULES)
    run(promtool, "check", "config", MONITORING / "prometheus.yml")


def test_promtool_takes_every_query_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    asked = [text.replace("$__rate_interval", "5m").replace("$__range", "1h") for text in expressions]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(asked)]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in run(promtool, "check", "rules", path)


@pytest.mark.parametrize("rules", RULES, ids=lambda path: path.stem)
def test_each_alert_fires_in_its_case_and_not_in_the_other(promtool: str, rules: Path, tmp_path: Path) -> None:
    names = [rule["alert"] for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]]
    tests = [case_of(name, word) for name in names for word in CASES[name] if word != "at"]
    assert all({"fires", "quiet"} <= set(CASES[name]) for name in names)
    path = tmp_path / "cases.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "5m", "tests": tests}))
    assert "SUCCESS" in run(promtool, "test", "rules", path)


def case_of(name: str, word: str) -> dict[str, Any]:
    """Return promtool's test of a case: whether the alert fires, whatever its labels are."""
    case = CASES[name]
    expression = f'count(ALERTS{{alertname="{name}", alertstate="firing"}})'
    return {
        "interval": "1m",
        "name": f"{name} {word}",
        "input_series": [{"series": series, "values": values} for series, values in case[word].items()],
        "promql_expr_test": [
            {
                "expr": f"{expression} > 0",
                "eval_time": case["at"],
                "exp_samples": [{"labels": "{}", "value": 1}] if word.startswith("fires") else [],
            }
        ],
    }
