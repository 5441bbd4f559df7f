"""What the status of a pod, and an answer of the API server, say: pure reading, used by all that watch pods.

Reads objects of the Kubernetes client; writes nothing, waits for nothing, raises nothing.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Ending:
    """How a pod ended; `exit_code` is None where the stage itself had no word."""

    exit_code: int | None
    reason: str
    message: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None

    def __str__(self) -> str:
        code = "" if self.exit_code is None else f" (exit code {self.exit_code})"
        return f"{self.reason}{code}" + (f": {self.message}" if self.message else "")


def ending(pod: Any, container: str) -> Ending | None:
    """Return how the pod ended, or None while it has not."""
    status = pod.status
    message = (status.message or "").strip()
    for one in status.container_statuses or []:
        if one.name == container and one.state and (end := one.state.terminated):
            # The pod's own reason (Evicted, DeadlineExceeded, ...) says more than the container's "Error".
            reason = status.reason or end.reason or "Error"
            return Ending(end.exit_code, reason, message, end.started_at, end.finished_at)
    if status.phase in {"Failed", "Succeeded"}:
        return Ending(None, status.reason or status.phase, message)
    return None


def waiting(pod: Any, container: str) -> tuple[str, str] | None:
    """Return (reason, message) of what keeps the pod from starting, or None once its container runs."""
    for one in pod.status.container_statuses or []:
        if one.name == container and one.state:
            if one.state.running:
                return None
            if one.state.waiting:
                return one.state.waiting.reason or "Pending", one.state.waiting.message or ""
    if not scheduled(pod):
        for condition in pod.status.conditions or []:
            if condition.type == "PodScheduled":
                return condition.reason or "Unschedulable", condition.message or ""
    return "Pending", ""


def scheduled(pod: Any) -> bool:
    """Say whether a node was chosen."""
    return bool(pod.spec.node_name)


def ever_ran(pod: Any) -> bool:
    """Say whether a container of the pod has run."""
    states = [one.state for one in pod.status.container_statuses or [] if one.state]
    return any(state.running or state.terminated for state in states)


def node_is_lost(pod: Any, container: str) -> bool:
    """Say whether the node stopped reporting: Kubernetes then marks the pod not ready, though its container,
    by the node's last word, is ready and runs."""
    runs = any(
        one.name == container and one.ready and one.state and one.state.running
        for one in pod.status.container_statuses or []
    )
    return runs and any(one.type == "Ready" and one.status == "False" for one in pod.status.conditions or [])


def said(error: Exception) -> str:
    """Return what the API server says, without headers and without the pod that was asked for."""
    body = getattr(error, "body", None)
    if isinstance(body, bytes):
        body = body.decode("utf-8", "replace")
    if isinstance(body, str) and '"message"' in body:
        try:
            return str(json.loads(body)["message"])
        except (ValueError, KeyError):
            return body[:500]
    return str(getattr(error, "reason", None) or error)[:500]
