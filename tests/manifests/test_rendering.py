"""The renderer of these tests against the real kustomize, where there is one; and what it refuses."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.manifests.kustomize import ROOT, Unknown, identity, render

FOLDERS = ["base", *(f"overlays/{path.name}" for path in sorted((ROOT / "overlays").iterdir()))]


def kustomize() -> list[str]:
    """Return the command of the real one: kustomize, or a kubectl that carries version 4 or later, or nothing."""
    if program := shutil.which("kustomize"):
        return [program, "build"]
    if program := shutil.which("kubectl"):
        asked = [program, "version", "--client", "-o", "json"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
        carried = json.loads(done.stdout).get("kustomizeVersion", "") if done.returncode == 0 else ""
        if carried >= "v4":
            return [program, "kustomize"]
    return []


@pytest.mark.parametrize("folder", FOLDERS)
def test_it_renders_what_kustomize_renders(folder: str) -> None:
    if not (command := kustomize()):
        pytest.skip("needs kustomize 4 or later, or a kubectl that carries it (1.22 or later)")
    done = subprocess.run([*command, str(ROOT / folder)], check=True, capture_output=True, text=True, timeout=60)
    theirs = {identity(each): each for each in yaml.safe_load_all(done.stdout)}
    assert {identity(each): each for each in render(ROOT / folder)} == theirs


PLAIN = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"


@pytest.mark.parametrize(
    ("kustomization", "told"),
    [
        ("namePrefix: x-\n", "namePrefix"),
        ("resources: [one.yaml, one.yaml]\n", "stands there twice"),
        ("resources: [one.yaml]\nimages: [{name: other, newTag: '1'}]\n", "no container has the image other"),
        (
            "resources: [one.yaml]\npatches: [{target: {group: '', version: v1, kind: Pod, name: x}, patch: ''}]\n",
            "no object",
        ),
        ("resources: [double.yaml]\n", "'name' stands there twice"),
    ],
)
def test_it_refuses_what_it_does_not_know(kustomization: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text(PLAIN + kustomization)
    (tmp_path / "one.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one}\n")
    (tmp_path / "double.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one, name: two}\n")
    with pytest.raises(Unknown, match=told):
        render(tmp_path)
