"""Renders infra/kubernetes as kustomize does: the small part of kustomize that is used there, and an error for all else.

There is no kustomize on PyPI, and a machine that runs the tests need not have kubectl. `test_rendering.py` compares this with the
real one where there is one. Known: resources, components, namespace, images, and patches in JSON Patch form (add, replace, remove).
"""

import copy
import json
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2] / "infra" / "kubernetes"
KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "images", "patches"}
CLUSTER_WIDE = {"Namespace", "PriorityClass"}
KINDS = {"Kustomization": "kustomize.config.k8s.io/v1beta1", "Component": "kustomize.config.k8s.io/v1alpha1"}

Object = dict[str, Any]


class Unknown(Exception):
    """Something of kustomize that this renderer does not know, or a name that fits nothing."""


def render(folder: Path) -> list[Object]:
    """Return the objects of a kustomization, in the order of its files."""
    found = _build(folder.resolve(), [], "Kustomization")
    names = [identity(each) for each in found]
    for name in names:
        if names.count(name) > 1:
            raise Unknown(f"{'/'.join(name)} stands there twice")
    return found


def identity(each: Object) -> tuple[str, str, str]:
    """Return apiVersion, kind and name."""
    return each["apiVersion"], each["kind"], each["metadata"]["name"]


def _build(folder: Path, before: list[Object], kind: str) -> list[Object]:
    given = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    if unknown := set(given) - KNOWN:
        raise Unknown(f"{folder}: {', '.join(sorted(unknown))}")
    if (given["kind"], given["apiVersion"]) != (kind, KINDS[kind]):
        raise Unknown(f"{folder}: expected a {kind}, found {given['kind']} {given['apiVersion']}")
    found = list(before)
    for name in given.get("resources", ()):
        found += _resources(folder / name)
    for name in given.get("components", ()):
        found = _build((folder / name).resolve(), found, "Component")
    for patch in given.get("patches", ()):
        _patch(found, patch)
    for image in given.get("images", ()):
        _set_image(found, image)
    if "namespace" in given:
        _move(found, given["namespace"])
    return found


def _resources(path: Path) -> list[Object]:
    if path.is_dir():
        return _build(path.resolve(), [], "Kustomization")
    documents = yaml.load_all(path.read_text(encoding="utf-8"), Unshared)
    # What shares a YAML anchor is changed in one place only: JSON knows no sharing.
    return [json.loads(json.dumps(each)) for each in documents if each]


class Unshared(yaml.SafeLoader):
    """A loader that refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _value in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise Unknown(f"the key {key!r} stands there twice: {node.start_mark}")
        return super().construct_mapping(node, deep=deep)


def _patch(found: list[Object], given: Object) -> None:
    if set(given) != {"target", "patch"} or set(given["target"]) != {"group", "version", "kind", "name"}:
        raise Unknown(f"a patch is known with target (group, version, kind, name) and patch, found {given}")
    target = given["target"]
    version = f"{target['group']}/{target['version']}".removeprefix("/")
    chosen = [each for each in found if identity(each) == (version, target["kind"], target["name"])]
    if not chosen:
        raise Unknown(f"no object for the patch of {target}")
    for operation in yaml.safe_load(given["patch"]):
        for each in chosen:
            _apply(each, operation)


def _apply(each: Object, operation: Object) -> None:
    *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:])
    place: Any = each
    for part in parents:
        place = place[int(part) if isinstance(place, list) else part]
    kind = operation["op"]
    if isinstance(place, list) or kind not in {"add", "replace", "remove"}:
        raise Unknown(f"{kind} at {operation['path']}")
    if kind != "add" and last not in place:
        raise Unknown(f"nothing at {operation['path']} of {identity(each)}")
    if kind == "remove":
        del place[last]
    else:
        place[last] = copy.deepcopy(operation["value"])


def _set_image(found: list[Object], given: Object) -> None:
    if set(given) - {"name", "newName", "newTag", "digest"}:
        raise Unknown(f"of an image: {given}")
    used = False
    for container in (container for each in found for container in containers(each)):
        if repository(container["image"]) == given["name"]:
            used = True
            new = given.get("newName", given["name"])
            container["image"] = f"{new}@{given['digest']}" if "digest" in given else f"{new}:{given['newTag']}"
    if not used:
        raise Unknown(f"no container has the image {given['name']}")


def repository(image: str) -> str:
    """Return the name of an image without its tag and digest."""
    name = image.partition("@")[0]
    return name if ":" not in name.rpartition("/")[2] else name.rpartition(":")[0]


def _move(found: list[Object], namespace: str) -> None:
    accounts = {each["metadata"]["name"] for each in found if each["kind"] == "ServiceAccount"}
    for each in found:
        if each["kind"] == "Namespace":
            each["metadata"]["name"] = namespace
        elif each["kind"] not in CLUSTER_WIDE:
            each["metadata"]["namespace"] = namespace
        for subject in each.get("subjects", ()):
            if subject["kind"] == "ServiceAccount" and subject["name"] in accounts:
                subject["namespace"] = namespace


def pod_of(each: Object) -> Object | None:
    """Return the pod template of an object (metadata and spec), if it has one."""
    if each["kind"] not in {"CronJob", "Deployment", "Job"}:
        return None
    spec = each["spec"]["jobTemplate"]["spec"] if each["kind"] == "CronJob" else each["spec"]
    template: Object = spec["template"]
    return template


def containers(each: Object) -> list[Object]:
    """Return the containers of an object's pods, those that run first included."""
    pod = pod_of(each)
    return [] if pod is None else [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]
