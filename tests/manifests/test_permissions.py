"""The roles against the calls of the code: no verb too few, and none that nothing uses."""

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.airflow_home import REPOSITORY
from tests.manifests.installations import filled
from tests.manifests.kustomize import ROOT, Object, render

Permission = tuple[str, str, str]
GROUPS = {"job": "batch"}
CALL = re.compile(r"\b(create|read|list|patch|replace|delete|watch|connect)_namespaced_(\w+)\b")


def granted(objects: list[Object], role: str) -> set[Permission]:
    """Return group, resource and verb of what a role grants."""
    found = next(each for each in objects if each["kind"] == "Role" and each["metadata"]["name"] == role)
    return {
        (group, resource, verb)
        for rule in found["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def called(sources: Iterable[Path]) -> set[Permission]:
    """Return what calls of the Kubernetes client in these files need."""
    found = set()
    for source in sources:
        for verb, what in CALL.findall(source.read_text(encoding="utf-8")):
            kind, _, sub = what.partition("_")
            resource = f"{kind}s" + (f"/{sub}" if sub else "")
            found.add((GROUPS.get(kind, ""), resource, "get" if verb == "read" else verb))
    return found


def test_the_launcher_may_do_what_its_code_does_and_no_more() -> None:
    sources = sorted((REPOSITORY / "plugins").glob("millrace_*.py"))
    assert granted(render(ROOT / "base"), "millrace-launcher") == called(sources)


@pytest.mark.airflow
def test_the_executor_may_do_what_its_code_does_and_no_more() -> None:
    found = importlib.util.find_spec("airflow.providers.cncf.kubernetes")
    assert found is not None and found.submodule_search_locations
    executors = Path(next(iter(found.submodule_search_locations))) / "executors"
    sources = [executors / name for name in ("kubernetes_executor.py", "kubernetes_executor_utils.py")]
    # The watcher is a list with `watch`; what runs is read for its log by the API server, not by the scheduler.
    calls = called(sources) | {("", "pods", "watch")}
    objects = filled("eks")
    assert granted(objects, "airflow-executor") == calls - {("", "pods/log", "get")}
    assert granted(objects, "airflow-task-logs") == {("", "pods", "list"), ("", "pods/log", "get")}


def test_nobody_else_may_anything_and_nothing_is_granted_by_a_star() -> None:
    objects = filled("eks-vllm")
    bound = {s["name"] for each in objects if each["kind"] == "RoleBinding" for s in each["subjects"]}
    assert bound == {"millrace-launcher", "airflow-scheduler", "airflow-api-server"}
    assert not [each for each in objects if each["kind"] in {"ClusterRole", "ClusterRoleBinding"}]
    for each in objects:
        if each["kind"] == "Role":
            assert not [
                p for p in granted(objects, each["metadata"]["name"]) if "*" in p or "secrets" in p or "exec" in p[1]
            ]
    accounts = {each["metadata"]["name"]: each for each in objects if each["kind"] == "ServiceAccount"}
    without = {name for name, each in accounts.items() if each.get("automountServiceAccountToken") is False}
    assert set(accounts) - without == bound
