"""Follows one pod from its creation to its end, and puts what Kubernetes says about it into the task log.

Reads the pod, its events and its container's log through the API every few seconds; writes nothing, deletes
nothing. Polling rather than streaming: a stream hangs when the node is lost, and while it hangs nobody looks at
the pod. Returns an `Ending`, whatever ended the pod. Raises AirflowException (tried again) when the pod did not
start within its time or the API server stayed away, and AirflowFailException for an image that cannot exist;
each with the reason that Kubernetes gave.
"""

import math
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException
from kubernetes.client.exceptions import ApiException
from millrace_outcome import tell
from millrace_status import Ending, ending, node_is_lost, said, scheduled, waiting
from urllib3.exceptions import HTTPError

TIMEOUT = (5, 30)  # of one request: connect, read
AWAY = {401, 429, 500, 502, 503, 504}  # the API server will answer again
NEVER = {"InvalidImageName", "ErrImageNeverPull"}
BAD = {"ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
NOT_THERE = ("not found", "manifest unknown", "does not exist", "denied", "unauthorized")
OVERLAP = 10  # seconds of log that are read twice, and told once
LAST_LINES = 3
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:")


@dataclass(frozen=True)
class Limits:
    """How long each trouble is borne, in seconds. The defaults suit production; tests shorten them."""

    poll: float = 3.0
    say: float = 60.0
    # GPU nodes are added on demand, and may be sold out: MILLRACE_POD_WAIT_MINUTES says how long.
    schedule: float = math.inf
    start: float = 1800  # the image with CUDA and torch is large
    bad_start: float = 120  # an image or a secret that is not there may be there in a moment
    lost_node: float = 120  # a node may answer again
    away: float = 1800  # of the API server: an upgrade of the control plane


class Events:
    """What Kubernetes says about one object, each thing once."""

    def __init__(self, client: Callable[[], Any], namespace: str, name: str, log: Any, every: float) -> None:
        self.client, self.namespace, self.name, self.log, self.every = client, namespace, name, log, every
        self.told: set[tuple[str, str]] = set()
        self.looked = -math.inf

    def tell(self) -> None:
        """Log what is new, looking no more often than `every` seconds."""
        if time.monotonic() - self.looked < self.every:
            return
        self.looked = time.monotonic()
        selector = f"involvedObject.name={self.name}"
        found = self.client().list_namespaced_event(self.namespace, field_selector=selector, _request_timeout=TIMEOUT)
        for event in found.items:
            key = (event.reason or "", event.message or "")
            if key not in self.told:
                self.told.add(key)
                level = self.log.warning if event.type == "Warning" else self.log.info
                level("Kubernetes: %s: %s", *key)


class PodWatch:
    """One pod, as one try of a task sees it."""

    def __init__(
        self,
        *,
        client: Callable[[], Any],
        refresh: Callable[[], None],
        name: str,
        namespace: str,
        container: str,
        log: Any,
        limits: Limits,
        stopped: Callable[[], bool],
        tail: int | None = None,
    ) -> None:
        self.client, self.refresh, self.stopped = client, refresh, stopped
        self.name, self.namespace, self.container = name, namespace, container
        self.log, self.limits, self.tail = log, limits, tail
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self.began = time.monotonic()
        self.since: dict[str, float] = {}  # when a trouble began
        self.said: dict[str, float] = {}  # when something was said last
        self.events = Events(client, namespace, name, log, min(5 * limits.poll, 10))
        self.image_message = ""
        self.log_read: float | None = None
        # The lines of the last two answers: what overlaps is told once. Not by the newest moment: a container's two outputs
        # come through pipes of their own, so a line may stand in the log behind one of a later moment.
        self.told: tuple[set[str], set[str]] = set(), set()

    def follow(self) -> Ending:
        """Watch until the pod has ended."""
        while not self.stopped():
            end = self.step()
            if end is not None:
                return end
            time.sleep(self.limits.poll)
        return Ending(None, "Killed", "the task was told to stop")

    def step(self) -> Ending | None:
        """Look once; return how the pod ended, if it has."""
        pod = self.ask(self._pod)
        if pod is None:
            return None
        self.ask(self.events.tell)
        end = self._look(pod)
        if end is not None:
            self.events.looked = -math.inf  # the last ones say why
            self.ask(self.events.tell)
        return end

    def ask(self, request: Callable[[], Any]) -> Any:
        """Return the answer of the API server, or None while it is away."""
        try:
            answer = request()
        except (ApiException, HTTPError) as error:
            status = getattr(error, "status", None)
            if isinstance(error, ApiException) and status not in AWAY:
                raise AirflowException(f"expected the API server to answer, found {status}: {said(error)}") from error
            if status == 401:
                self.refresh()  # a token that has run out
            self.say("api", f"the API server does not answer: {said(error)}", warning=True)
            if self.lasted("api") > self.limits.away:
                raise AirflowException(f"the API server did not answer for {self.limits.away:.0f} s") from error
            return None
        self.since.pop("api", None)
        return answer

    def say(self, topic: str, text: str, warning: bool = False) -> None:
        """Log a text when it is new, and again every minute while it holds."""
        now = time.monotonic()
        key = f"{topic}: {text}"
        if now - self.said.get(key, -math.inf) >= self.limits.say:
            self.said[key] = now
            (self.log.warning if warning else self.log.info)("%s", text)

    def lasted(self, trouble: str) -> float:
        """Return for how many seconds a trouble has lasted; the first call starts it."""
        return time.monotonic() - self.since.setdefault(trouble, time.monotonic())

    def _pod(self) -> Any:
        try:
            return self.client().read_namespaced_pod(self.name, self.namespace, _request_timeout=TIMEOUT)
        except ApiException as error:
            if error.status == 404:
                return Ending(None, "Deleted", f"the pod {self.name} was deleted by somebody else")
            raise

    def _look(self, pod: Any) -> Ending | None:
        if isinstance(pod, Ending):
            return pod
        end = ending(pod, self.container)
        wait = waiting(pod, self.container) if end is None else None
        if wait is not None:
            self._judge_start(pod, *wait)
        else:
            self._tell_log()
        if end is None:
            end = self._judge_node(pod)
        return end

    def _judge_start(self, pod: Any, reason: str, message: str) -> None:
        """Say what the pod waits for; raise when it has waited long enough."""
        if reason == "ErrImagePull":
            self.image_message = message  # the back-off that follows no longer says why
        detail = self.image_message if reason == "ImagePullBackOff" and self.image_message else message
        waits = time.monotonic() - self.began
        text = f"{reason}: {detail}" if detail else reason
        trouble = reason in NEVER | BAD or not scheduled(pod)
        self.say(f"waits for {reason}", f"the pod waits for {waits:.0f} s: {text}"[:2000], warning=trouble)
        if reason in NEVER:
            raise AirflowFailException(f"the pod cannot start: {text}")
        if reason in BAD and self.lasted("bad start") >= self.limits.bad_start:
            gone = any(word in detail.lower() for word in NOT_THERE)
            raise (AirflowFailException if gone else AirflowException)(f"the pod did not start: {text}")
        phase, limit = ("start", self.limits.start) if scheduled(pod) else ("schedule", self.limits.schedule)
        if self.lasted(phase) >= limit:
            raise AirflowException(f"the pod did not {phase} within {limit:.0f} s: {text}")

    def _judge_node(self, pod: Any) -> Ending | None:
        """Return the end of a pod whose node does not answer any more."""
        deleted = pod.metadata.deletion_timestamp
        if deleted is not None:
            self.say("deleted", f"the pod is being deleted; it has until {deleted:%H:%M:%S} UTC to save and end")
            if datetime.now(UTC) > deleted + timedelta(seconds=self.limits.lost_node):
                return Ending(None, "NodeLost", f"the node {pod.spec.node_name} did not confirm the deletion")
        if not node_is_lost(pod, self.container):
            self.since.pop("node", None)
            return None
        lasted = self.lasted("node")
        self.say("node", f"NodeNotReady: the node {pod.spec.node_name} does not report", warning=True)
        if lasted < self.limits.lost_node:
            return None
        return Ending(None, "NodeLost", f"the node {pod.spec.node_name} did not report for {lasted:.0f} s")

    def _tell_log(self) -> None:
        """Log the lines since the last look. A log that cannot be read is no reason to give a pod up."""
        asked = time.monotonic()
        since = None if self.log_read is None else math.ceil(asked - self.log_read) + OVERLAP
        tail = {"tail_lines": self.tail} if self.tail and since is None else {}
        try:
            answer = self.client().read_namespaced_pod_log(
                self.name, self.namespace, container=self.container, timestamps=True,
                **({"since_seconds": since} if since else {}), **tail,
                _preload_content=False, _request_timeout=TIMEOUT,
            )  # fmt: skip
            text = answer.data.decode("utf-8", "backslashreplace")
        except (ApiException, HTTPError) as error:
            if self.log_read is not None:
                self.say("log", f"the log of the pod cannot be read now: {said(error)}", warning=True)
            return
        self.log_read = asked
        lines = [line for line in text.split("\n") if line]
        for line in lines:
            if line not in self.told[0] and line not in self.told[1]:
                self._tell_line(line)
        dated = {line for line in lines if MOMENT.match(line.partition(" ")[0])}
        if dated:  # a log that is away for a moment is not forgotten
            self.told = self.told[1], dated

    def _tell_line(self, line: str) -> None:
        moment, _, text = line.partition(" ")
        if not MOMENT.match(moment):  # a node answers so when it has thrown the log away
            self.say("log", f"the log of the pod cannot be read now: {line}"[:500], warning=True)
            return
        text = text.rstrip().rsplit("\r", 1)[-1]  # of a progress bar that rewrites its line, the last state
        if text:
            self.last.append(text)
            tell(self.log, text)
