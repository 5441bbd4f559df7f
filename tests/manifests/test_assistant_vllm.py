"""vLLM beside the assistant: nobody else reaches it, both see one folder of adapters, and the names are those of the code."""

import re
from typing import Any

import pytest

from tasks.settings import load_settings
from tests.manifests.installations import filled
from tests.manifests.kustomize import Object, pod_of


@pytest.fixture(scope="module")
def pod() -> Object:
    """The pod of the assistant."""
    assistant = next(
        each
        for each in filled("eks-assistant-vllm")
        if (each["kind"], each["metadata"]["name"]) == ("Deployment", "assistant")
    )
    found = pod_of(assistant)
    assert found is not None
    spec: Object = found["spec"]
    return spec


def named(pod: Object, name: str) -> Object:
    """Return a container."""
    found: Object = next(each for each in [*pod["initContainers"], *pod["containers"]] if each["name"] == name)
    return found


def variables(container: Object) -> dict[str, str]:
    """Return what its environment says."""
    return {each["name"]: each["value"] for each in container["env"]}


def mounts(container: Object) -> dict[str, Any]:
    """Return volume and whether it may write there, by path."""
    return {each["mountPath"]: (each["name"], not each.get("readOnly", False)) for each in container["volumeMounts"]}


def test_it_starts_after_its_model_is_there_and_before_the_assistant(pod: Object) -> None:
    assert [each["name"] for each in pod["initContainers"]] == ["fetch", "vllm"]
    assert named(pod, "vllm")["restartPolicy"] == "Always" and "restartPolicy" not in named(pod, "fetch")
    assert [each["name"] for each in pod["containers"]] == ["assistant"]
    assert mounts(named(pod, "fetch"))["/models"] == ("models", True)


def test_nobody_outside_the_pod_reaches_it_and_it_has_no_secret(pod: Object) -> None:
    vllm = named(pod, "vllm")
    arguments = dict(zip(vllm["args"], vllm["args"][1:], strict=False))
    assert arguments["--host"] == "127.0.0.1" and "ports" not in vllm
    assert "envFrom" not in vllm and not [
        name for name in variables(vllm) if re.search("KEY|SECRET|TOKEN|MILLRACE", name)
    ]
    url = variables(named(pod, "assistant"))["MILLRACE_GENERATION_URL"]
    assert url == f"http://127.0.0.1:{arguments['--port']}/v1"
    for kind in ("startup", "liveness"):
        assert f"127.0.0.1:{arguments['--port']}/health" in vllm[f"{kind}Probe"]["exec"]["command"][-1]


def test_both_see_the_adapters_at_one_path_and_only_the_assistant_writes_them(pod: Object) -> None:
    assistant, vllm = named(pod, "assistant"), named(pod, "vllm")
    path = variables(assistant)["MILLRACE_GENERATION_ADAPTERS"]
    assert mounts(assistant)[path] == ("adapters", True) and mounts(vllm)[path] == ("adapters", False)
    assert variables(vllm)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1" and "--enable-lora" in vllm["args"]
    assert mounts(vllm)["/models"] == ("models", False)
    assert vllm["resources"]["limits"]["nvidia.com/gpu"] == "1" and "/dev/shm" in mounts(vllm)


def test_the_settings_are_settings_and_the_code_of_the_first_container_is_code(pod: Object) -> None:
    own = {name: value for name, value in variables(named(pod, "assistant")).items() if name.startswith("MILLRACE_")}
    needed = {"MILLRACE_DATABASE_URL": "postgresql://a@b/c", "MILLRACE_MLFLOW_TRACKING_URI": "http://a"}
    assert load_settings(own | needed).assistant_places == 64
    code = named(pod, "fetch")["command"][-1]
    compile(code, "fetch", "exec")
    for line in re.findall(r"^from .+ import .+$", code, re.MULTILINE):
        exec(line, {})  # what it imports is there
    assert "served.name" in code and "served.name" in " ".join(named(pod, "vllm")["command"])
