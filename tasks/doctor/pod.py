"""The check from inside: a pod of the stages' image, with their secret, that runs the doctor itself.

Its start proves image, secret, admission and room; what it prints are the checks of the services from where
stages run. The pod is deleted when the check ends, however it ends. Its log holds no secret: the doctor's own.
"""

import time
import uuid
from typing import Any

from tasks.doctor import podspec
from tasks.doctor.cluster import answering, connect
from tasks.doctor.examine import Place, making
from tasks.doctor.report import Finding, from_json, mend, ok
from tasks.errors import BadInput, MillraceError, ServiceUnavailable

SECONDS = 600.0
COMMAND = ["python", "-m", "tasks", "doctor", "--ground", "process", "--format", "json"]
POLL = 1.0
# Reasons of a waiting container that will not go away by themselves.
IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
CONFIGURATION = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
NAME = "image"


def image(place: Place) -> list[Finding]:
    """Start the pod, wait for its end, return its findings after one of our own."""
    from kubernetes.client import CoreV1Api

    settings = place.settings
    if not settings.stage_image:
        raise BadInput("expected MILLRACE_STAGE_IMAGE to name the stages' image, found nothing. Next: set it.")
    name, namespace = f"millrace-doctor-{uuid.uuid4().hex[:10]}", settings.kubernetes_namespace
    with answering("run a pod of the stages' image"):
        core = CoreV1Api(connect())
        with making(place, lambda: core.delete_namespaced_pod(name, namespace, grace_period_seconds=0)):
            core.create_namespaced_pod(namespace, podspec.pod(settings, name, COMMAND), _request_timeout=30)
        since = time.monotonic()
        started = 0.0
        while True:
            pod = core.read_namespaced_pod(name, namespace, _request_timeout=10)
            state = _state(pod)
            if state is not None and not started and (state.running or state.terminated):
                started = time.monotonic() - since
            if pod.status.phase in {"Succeeded", "Failed"}:
                break
            _give_up(pod, state, settings.kubernetes_secret, time.monotonic() - since)
            time.sleep(POLL)
        # The client would read a log that is JSON, and give it back as Python writes it.
        log = core.read_namespaced_pod_log(name, namespace, _request_timeout=30, _preload_content=False).data.decode()
    return _told(log, settings.stage_image, pod.spec.node_name, started)


def _state(pod: Any) -> Any:
    """Return the state of the pod's container, or None before it has one."""
    statuses = pod.status.container_statuses or []
    return statuses[0].state if statuses else None


def _give_up(pod: Any, state: Any, secret: str, waited: float) -> None:
    """Raise what keeps the pod from starting, if it will not go away by itself."""
    waiting = state.waiting if state is not None else None
    if waiting is not None and waiting.reason in IMAGE:
        words = " ".join((waiting.message or "").split())[:300]
        raise BadInput(
            f"expected the image to be pulled, found {waiting.reason}: {words}. "
            "Next: push it, correct MILLRACE_STAGE_IMAGE, or let the nodes sign in to the registry."
        )
    if waiting is not None and waiting.reason in CONFIGURATION:
        raise BadInput(
            f"expected the pod's container to be made, found {waiting.reason}: {waiting.message}. "
            f"Next: make the secret {secret} (docs/kubernetes.md)."
        )
    if waited > SECONDS - 20:
        told = [c.message for c in pod.status.conditions or [] if c.status == "False" and c.message]
        found = (told or [f"phase {pod.status.phase}"])[0]
        raise ServiceUnavailable(
            f"expected the pod to end in {waited:.0f} s, found {found}. Next: see its node; try again."
        )


def _told(log: str, image: str, node: str | None, started: float) -> list[Finding]:
    """Return what the pod found, after the line of the image."""
    inside = from_json(log)
    if inside is None:
        words = " ".join(log.split())[-300:] or "no word"
        older = "expected a stage or tool" in log
        text = "an image older than this code: it has no `doctor`" if older else f"other last words: {words}"
        error: MillraceError = BadInput(
            f"expected the findings of the doctor from the pod, found {text}. Next: build and push the image again."
        )
        return [ok(NAME, f"{image} ran on {node}, {started:.0f} s after it was asked for"), mend("in the pod", error)]
    facts, findings = inside
    revision = str(facts.get("code_revision", "unknown"))[:12]
    first = ok(NAME, f"{image} (code {revision}) ran on {node}, {started:.0f} s after it was asked for")
    return [first, *(Finding(**{**vars(each), "check": f"pod: {each.check}"}) for each in findings)]
