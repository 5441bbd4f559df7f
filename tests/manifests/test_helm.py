"""The values for Airflow's chart against what they have to fit: the accounts, labels and policies of this repository, and Airflow's
own names of settings. The chart is not at hand: `KEYS` are those of its documentation, its release notes up to 1.22, and values
that others publish for it; no template is rendered here."""

import json
import re
from typing import Any

import pytest
import yaml

from tests.airflow_home import REPOSITORY
from tests.manifests.installations import Network, filled
from tests.manifests.kustomize import ROOT

HELM = ROOT / "helm"
KEYS = {
    "executor", "airflowVersion", "labels", "securityContexts", "rbac", "allowPodLaunching", "allowJobLaunching", "data",
    "fernetKeySecretName", "apiSecretKeySecretName", "jwtSecretName", "postgresql", "redis", "statsd", "createUserJob",
    "migrateDatabaseJob", "env", "extraEnv", "config", "dagProcessor", "scheduler", "apiServer", "triggerer", "workers", "logs",
    "cleanup",
}  # fmt: skip
COMPONENTS = ("scheduler", "apiServer", "dagProcessor", "triggerer")


def values(*names: str) -> dict[str, Any]:
    """Return values files as Helm merges them: maps by key, the rest by the last."""
    merged: dict[str, Any] = {}
    for name in names:
        merged = merge(merged, yaml.safe_load((HELM / f"{name}.yaml").read_text(encoding="utf-8")))
    return merged


def merge(one: Any, other: Any) -> Any:
    if not isinstance(one, dict) or not isinstance(other, dict):
        return other
    return one | {key: merge(one.get(key), value) for key, value in other.items()}


def test_the_keys_are_the_charts() -> None:
    assert set(values("airflow")) == KEYS
    assert set(values("airflow", "local-executor", "secrets-manager")) == KEYS


def test_the_accounts_are_there_and_the_launcher_is_who_starts_stages() -> None:
    accounts = {each["metadata"]["name"] for each in filled("eks") if each["kind"] == "ServiceAccount"}
    given = values("airflow")
    named = {name: given[name]["serviceAccount"] for name in COMPONENTS} | {
        "workers": given["workers"]["kubernetes"]["serviceAccount"]
    }
    for name, account in named.items():
        assert account["create"] or account["name"] in accounts, name
    # Tasks, and the callbacks of tasks whose worker was killed.
    assert named["workers"]["name"] == named["dagProcessor"]["name"] == "millrace-launcher"
    assert named["scheduler"]["name"] != "millrace-launcher"
    assert values("airflow", "local-executor")["scheduler"]["serviceAccount"]["name"] == "millrace-launcher"


@pytest.mark.parametrize("overlay", ["eks", "small"])
def test_the_policies_know_its_pods(overlay: str) -> None:
    network = Network(filled(overlay))
    labels = values("airflow")["labels"] | {"tier": "airflow", "component": "worker"}
    assert network.leaves(labels, 5432, address="192.0.2.10")
    assert network.leaves(labels, 443, address="192.0.2.30")
    assert network.leaves(labels, 22, address="192.0.2.40")


def test_every_component_says_what_it_takes_and_is_confined() -> None:
    given = values("airflow")
    whole = given["securityContexts"]
    assert whole["pod"]["runAsNonRoot"] is True and whole["pod"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for context in (
        whole["containers"],
        whole["container"],
        given["workers"]["kubernetes"]["securityContexts"]["container"],
    ):
        assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for each in [*(given[name] for name in COMPONENTS), given["workers"]["kubernetes"], given["migrateDatabaseJob"]]:
        assert each["resources"]["requests"]["memory"] == each["resources"]["limits"]["memory"]
    classes = {each["metadata"]["name"] for each in filled("eks") if each["kind"] == "PriorityClass"}
    assert {given[name]["priorityClassName"] for name in COMPONENTS} <= classes


@pytest.mark.airflow
def test_the_settings_are_airflows() -> None:
    from airflow.configuration import conf
    from airflow.providers.cncf.kubernetes.get_provider_info import get_provider_info

    executor = get_provider_info()["config"]["kubernetes_executor"]["options"]
    for section, options in values("airflow", "secrets-manager")["config"].items():
        for option in options:
            known = executor if section == "kubernetes_executor" else conf.configuration_description[section]["options"]
            assert option in known, f"{section}.{option}"


def test_the_environment_is_the_launchers() -> None:
    from tasks.settings import variable_names

    given = values("airflow")
    environment = given["env"] + yaml.safe_load(given["extraEnv"])
    names = [each["name"] for each in environment]
    assert len(names) == len(set(names))
    assert {name for name in names if name.startswith("MILLRACE_")} <= set(variable_names())
    priority = next(each["value"] for each in environment if each["name"] == "MILLRACE_POD_PRIORITY_CLASS")
    assert ("PriorityClass", priority) in {(each["kind"], each["metadata"]["name"]) for each in filled("small")}


def test_secrets_are_named_and_no_value_is_one() -> None:
    text = (HELM / "airflow.yaml").read_text(encoding="utf-8")
    assert not re.search(r"(?i)(password|secret|token)\w*: *[^\s{#][^\s]*[0-9a-f]{8}", text)
    backend = values("airflow", "secrets-manager")["config"]["secrets"]
    assert json.loads(backend["backend_kwargs"]) == {
        "connections_prefix": "millrace/connections", "variables_prefix": None, "config_prefix": None,
    }  # fmt: skip


def test_terraform_gives_the_rest_and_overrides_no_account() -> None:
    text = (REPOSITORY / "infra" / "terraform" / "outputs_helm.tf").read_text(encoding="utf-8")
    output = text[text.index('output "airflow_helm_values"') : text.index('output "mlflow_artifacts"')]
    assert "serviceAccount" not in output and "executor" not in output
    for needed in ("MILLRACE_LAUNCHER", "remote_base_log_folder", "AIRFLOW_CONN_"):
        assert needed in text
