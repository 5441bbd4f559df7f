"""The Indexed Jobs of one task instance: created with their service, found again, followed pod by pod, deleted.

Reads Jobs, pods, events and logs through the API of the cluster; writes Jobs and services. The service belongs to its
Job, so that it goes with it. `JobWatch` returns the `Ending` that says most about how the Job ended; it raises what
`millrace_watch.py` raises.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException
from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException
from millrace_outcome import words
from millrace_pods import Pods
from millrace_status import Ending, said
from millrace_watch import TIMEOUT, Events, PodWatch

# Which of several ends is the cause, and which only its echo: a rank whose peer is gone ends with an error of its own.
SAYS_MOST = (2, 3)
ECHO = (75, 1, 143)


class Jobs:
    """What a try may do with the Jobs of its task instance."""

    def __init__(self, pods: Pods, client: Callable[[], Any]) -> None:
        self.pods, self.client = pods, client
        self.namespace, self.log = pods.namespace, pods.log

    def alive(self) -> list[Any]:
        """Return the Jobs that nobody is deleting."""
        found = self.client().list_namespaced_job(
            self.namespace, label_selector=self.pods.selector, _request_timeout=TIMEOUT
        )
        return [job for job in found.items if job.metadata.deletion_timestamp is None]

    def earlier(self, request: Any) -> str | None:
        """Return the name of the Job of a try whose worker was killed; remove what cannot be gone on with."""
        kept = None
        for job in self.alive():
            same = arguments(job) == arguments(request)
            if kept is None and same and not failed(job):
                kept = str(job.metadata.name)
                self.log.info("job %s of an earlier try, whose worker is gone: this try goes on with it", kept)
            else:
                self.log.warning("job %s of an earlier try is removed", job.metadata.name)
                self.delete(job.metadata.name)
        if kept is None:
            self.pods.wait_until_gone()
        return kept

    def create(self, job: k8s.V1Job, service: k8s.V1Service) -> None:
        """Create the Job, and the service that goes with it."""
        try:
            made = self.client().create_namespaced_job(self.namespace, job, _request_timeout=TIMEOUT)
            service.metadata.owner_references = [
                k8s.V1OwnerReference(
                    api_version="batch/v1", kind="Job", name=made.metadata.name, uid=made.metadata.uid, controller=True
                )
            ]
            self.pods.client().create_namespaced_service(self.namespace, service, _request_timeout=TIMEOUT)
        except ApiException as error:
            kind = AirflowFailException if error.status in {400, 403, 404, 422} else AirflowException
            raise kind(f"the cluster refuses the job: {error.status} {said(error)}") from error

    def delete(self, name: str, at_once: bool = False) -> None:
        """Delete a Job with its pods and its service. A pod whose node is lost cannot confirm: `at_once`.

        Kubernetes deletes the pods after the Job, with their grace period; a pod that never ran does not need one.
        """
        try:
            self.client().delete_namespaced_job(
                name, self.namespace, propagation_policy="Background", _request_timeout=TIMEOUT
            )
        except ApiException as error:
            if error.status != 404:
                raise
        for pod in self.of(name):
            try:
                self.pods.delete(pod.metadata.name, at_once=at_once)
            except ApiException as error:  # Kubernetes deletes it too, only later
                self.log.warning("pod %s could not be deleted at once: %s", pod.metadata.name, said(error))

    def of(self, name: str) -> list[Any]:
        """Return the pods of a Job."""
        found = self.pods.client().list_namespaced_pod(
            self.namespace, label_selector=f"job-name={name}", _request_timeout=TIMEOUT
        )
        return list(found.items)


class JobWatch:
    """Follows all pods of one Job; each line of the task log says which node speaks."""

    def __init__(self, jobs: Jobs, name: str, nodes: int, watch: Callable[[str, Any], PodWatch]) -> None:
        self.jobs, self.name, self.nodes, self.watch = jobs, name, nodes, watch
        self.watches: dict[str, PodWatch] = {}
        self.endings: dict[str, Ending] = {}
        limits = jobs.pods.limits
        # A quota refuses the pods and not the Job: the controller then says so in an event of the Job.
        self.events = Events(jobs.pods.client, jobs.namespace, name, jobs.log, limits.poll)
        self.limits, self.began = limits, time.monotonic()

    @property
    def last_words(self) -> str:
        """The last lines of node 0, or of whoever spoke."""
        return next((" | ".join(map(words, watch.last))[-1500:] for watch in self.watches.values() if watch.last), "")

    def follow(self) -> Ending:
        """Watch until every pod has ended well, or one has not."""
        while not self.jobs.pods.stopped():
            self.events.tell()
            for pod in sorted(self.jobs.of(self.name), key=lambda pod: str(pod.metadata.name)):
                self._look(pod)
            bad = [end for end in self.endings.values() if end.exit_code != 0]
            if bad:
                return cause(bad)
            if len(self.endings) == self.nodes:
                return next(iter(self.endings.values()))
            if len(self.watches) < self.nodes and time.monotonic() - self.began > self.limits.schedule:
                raise AirflowException(
                    f"expected {self.nodes} pods of the job within {self.limits.schedule:.0f} s, found {len(self.watches)}: "
                    f"{'; '.join(sorted(message for _reason, message in self.events.told))}"
                )
            time.sleep(self.limits.poll)
        return Ending(None, "Killed", "the task was told to stop")

    def _look(self, pod: Any) -> None:
        name = pod.metadata.name
        if name not in self.watches:
            node = (pod.metadata.annotations or {}).get("batch.kubernetes.io/job-completion-index", "?")
            self.watches[name] = self.watch(name, Speaker(self.jobs.log, f"node {node}"))
        if name not in self.endings:
            end = self.watches[name].step()
            if end is not None:
                self.endings[name] = end


class Speaker:
    """A logger that says who speaks."""

    def __init__(self, log: Any, who: str) -> None:
        self.inner, self.who = log, who

    def log(self, level: int, form: str, *values: Any) -> None:
        """Log a line at a level."""
        self.inner.log(level, f"[{self.who}] {form}", *values)

    def info(self, form: str, *values: Any) -> None:
        """Log a line."""
        self.log(logging.INFO, form, *values)

    def warning(self, form: str, *values: Any) -> None:
        """Log a line that deserves attention."""
        self.log(logging.WARNING, form, *values)


def arguments(job: Any) -> list[str]:
    """Return the arguments of the stage."""
    return list(job.spec.template.spec.containers[0].args or [])


def failed(job: Any) -> bool:
    """Say whether Kubernetes gave the Job up."""
    return any(c.type == "Failed" and c.status == "True" for c in job.status.conditions or [])


def cause(ends: list[Ending]) -> Ending:
    """Return the end that says most: bad input first, then what Kubernetes did, then what followed from it."""

    def rank(end: Ending) -> int:
        if end.exit_code in SAYS_MOST:
            return 0
        return 2 if end.exit_code in ECHO and end.reason == "Error" else 1

    return min(ends, key=rank)
