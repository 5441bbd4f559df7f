"""Checks of the cluster: it answers, Airflow's account may do what the launcher does, GPU pods find nodes and quota.

Uses the Kubernetes client, which the stage image has not: there these checks are not made. The cluster is the
one of the service account this runs as, else of KUBECONFIG. Where an administrator asks, the permissions are
those of the launcher's account and not their own. Nothing is made: a pod is only asked for (dry run).
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tasks.doctor import podspec
from tasks.doctor.examine import NotChecked, Place
from tasks.errors import BadInput, ServiceUnavailable

TIMEOUT = 10
# What infra/kubernetes/base/launcher.yaml grants: group, resource, verbs.
VERBS = (
    ("", "pods", "create get list delete"),
    ("", "pods/log", "get"),
    ("", "events", "list"),
    ("batch", "jobs", "create list delete"),
    ("", "services", "create"),
)
_APPLY = "kubectl apply -k infra/kubernetes/base"


@contextmanager
def answering(what: str) -> Iterator[None]:
    """Translate the errors of the API: what is refused, what is not there, and an API server that is away differ."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        text = message(error)
        if error.status == 401:
            step = "sign in again, or correct KUBECONFIG."
        elif error.status == 404 and "namespaces" in text:
            step = f"{_APPLY}, or correct MILLRACE_KUBERNETES_NAMESPACE."
        elif error.status and error.status < 500 and error.status != 429:
            step = f"{_APPLY}; see docs/kubernetes.md."
        else:
            raise ServiceUnavailable(
                f"expected the API server to {what}, found {error.status} {text}. Next: try again."
            ) from error
        raise BadInput(f"expected the API server to {what}, found {error.status} {text}. Next: {step}") from error
    except HTTPError as error:
        found = str(getattr(error, "reason", None) or error)
        raise ServiceUnavailable(
            f"expected the API server to {what}, found {found}. Next: see KUBECONFIG and the network; try again."
        ) from error


def message(error: Any) -> str:
    """Return what the API server said."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


def connect() -> Any:
    """Return a client of the cluster. Raises NotChecked where none is known, BadInput where KUBECONFIG is wrong."""
    from kubernetes import config
    from kubernetes.client import ApiClient, Configuration

    configuration = Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException:
        try:
            config.load_kube_config(client_configuration=configuration)
        except config.ConfigException as error:
            if os.environ.get("KUBECONFIG"):
                raise BadInput(f"expected a cluster in KUBECONFIG, found: {error} Next: correct the file.") from error
            raise NotChecked("no cluster is known here; set KUBECONFIG, or run it in Airflow's pod") from error
    configuration.retries = 1
    return ApiClient(configuration)


def version(place: Place) -> str:
    """Ask the API server for its version."""
    from kubernetes.client import VersionApi

    with answering("tell its version"):
        api = connect()
        found = VersionApi(api).get_code(_request_timeout=TIMEOUT)
    number = f"{found.major}.{found.minor}" if found.major else found.git_version
    return f"Kubernetes {number} at {api.configuration.host}"


def permissions(place: Place) -> str:
    """Ask, verb by verb, whether the launcher may do what it does."""
    namespace = place.settings.kubernetes_namespace
    with answering("review permissions"):
        ask, who = _reviewer(connect(), namespace, place.wanted.account)
        wanted = [(group, resource, verb) for group, resource, verbs in VERBS for verb in verbs.split()]
        denied = [f"{verb} {resource}" for group, resource, verb in wanted if not ask(group, resource, verb)]
    if denied:
        words = "do any of them" if len(denied) == len(wanted) else ", ".join(denied)
        raise BadInput(
            f"expected {who} to be allowed {len(wanted)} things in {namespace}, found it may not {words}. "
            f"Next: {_APPLY}, and give Airflow that service account."
        )
    return f"{who} may do all {len(wanted)} things in {namespace} that the launcher does"


def _reviewer(api: Any, namespace: str, account: str) -> tuple[Callable[[str, str, str], bool], str]:
    """Return the question, and about whom it is asked: the launcher's account where we may ask about others, else us."""
    from kubernetes import client

    reviews = client.AuthorizationV1Api(api)

    def attributes(group: str, resource: str, verb: str) -> Any:
        name, _, sub = resource.partition("/")
        return client.V1ResourceAttributes(
            group=group, resource=name, subresource=sub or None, verb=verb, namespace=namespace
        )

    def about_us(group: str, resource: str, verb: str) -> bool:
        spec = client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes(group, resource, verb))
        body = client.V1SelfSubjectAccessReview(spec=spec)
        return bool(reviews.create_self_subject_access_review(body, _request_timeout=TIMEOUT).status.allowed)

    home, _, name = account.rpartition(":")
    home = home or namespace

    def about_the_launcher(group: str, resource: str, verb: str) -> bool:
        everyone = "system:serviceaccounts"
        spec = client.V1SubjectAccessReviewSpec(
            user=f"system:serviceaccount:{home}:{name}",
            groups=[everyone, f"{everyone}:{home}", "system:authenticated"],
            resource_attributes=attributes(group, resource, verb),
        )
        body = client.V1SubjectAccessReview(spec=spec)
        return bool(reviews.create_subject_access_review(body, _request_timeout=TIMEOUT).status.allowed)

    if about_us("authorization.k8s.io", "subjectaccessreviews", "create"):
        return about_the_launcher, f"account {account}"
    return about_us, "this account"


def gpu_nodes(place: Place) -> str:
    """Look for nodes of the GPU pool that take a pod of so many GPUs: label, taints, size."""
    from kubernetes import client

    label = place.settings.gpu_pool_label
    ours = f"the label {label}"
    with answering("list nodes"):
        api = connect()
        try:
            nodes = client.CoreV1Api(api).list_node(label_selector=label, _request_timeout=TIMEOUT).items
        except client.ApiException as error:
            if error.status != 403:
                raise
            raise NotChecked("this account may not see nodes, and need not: ask once as an administrator") from error
    if not nodes:
        raise NotChecked(f"no node has {ours} now: a pool that starts from nothing, or a wrong MILLRACE_GPU_POOL_LABEL")
    reasons = {node.metadata.name: podspec.why_not(node, place.settings, place.wanted.gpus) for node in nodes}
    fit = [name for name, reason in reasons.items() if not reason]
    if not fit:
        name, reason = next(iter(reasons.items()))
        raise BadInput(
            f"expected a node with {ours} to take a pod of {place.wanted.gpus} GPUs, found none of {len(nodes)} ({name}: {reason}). "
            "Next: correct the node group, or MILLRACE_GPU_POD_CPUS, MILLRACE_GPU_POD_MEMORY_GB and --gpus."
        )
    open_ = [node.metadata.name for node in nodes if podspec.GPU not in {taint.key for taint in node.spec.taints or []}]
    note = f"; without the taint {podspec.GPU}, so that other pods may fill them: {', '.join(open_)}" if open_ else ""
    return f"{len(fit)} of {len(nodes)} nodes with {ours} take a pod of {place.wanted.gpus} GPUs{note}"


def gpu_quota(place: Place) -> str:
    """Ask for a pod with so many GPUs, without making it: quota, limits and pod security say what they think."""
    from kubernetes import client

    gpus, namespace = place.wanted.gpus, place.settings.kubernetes_namespace
    body = podspec.pod(place.settings, "millrace-doctor-gpu", ["true"], gpus)
    with answering(f"take a pod of {gpus} GPUs (dry run)"):
        core = client.CoreV1Api(connect())
        try:
            core.create_namespaced_pod(namespace, body, dry_run="All", _request_timeout=TIMEOUT)
        except client.ApiException as error:
            if error.status == 403 and "exceeded quota" in message(error):
                return _quota(message(error), gpus)
            raise
    return f"a pod of {gpus} GPUs would be accepted now in {namespace}"


def _quota(text: str, gpus: int) -> str:
    """Tell a quota that is used up, which is waited for, from one that is too small."""
    limits, wanted = (dict(re.findall(r"([\w./-]+)=([^,\s]+)", part[0])) for part in _parts(text))
    if any(int(wanted[name]) > int(limit) for name, limit in limits.items() if limit.isdigit() and name in wanted):
        raise BadInput(
            f"expected a quota of {gpus} GPUs or more, found: {text}. Next: raise it, or ask for fewer GPUs."
        )
    return f"the quota is large enough, but used up now, so a pod would wait: {text}"


def _parts(text: str) -> list[list[str]]:
    """Return what is limited and what is requested, of `exceeded quota: Q, requested: a=1, used: a=1, limited: a=1`."""
    return [re.findall(rf"{word}: (.*?)(?:, (?:used|limited): |$)", text) or [""] for word in ("limited", "requested")]
