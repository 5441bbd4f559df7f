"""The pods of one task instance: created under a quota, found again, deleted.

Reads and writes pods through the API of the cluster. Waits where waiting helps (a used-up quota, the end of a pod
that saves its checkpoint) and says every minute for what. Raises AirflowFailException for a pod that the cluster
will never take, and AirflowException, which is tried again, when it waited too long.
"""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException
from kubernetes.client.exceptions import ApiException
from kubernetes.utils.quantity import parse_quantity
from millrace_status import ever_ran, said
from millrace_watch import AWAY, TIMEOUT, Limits
from urllib3.exceptions import HTTPError

QUOTA = re.compile(
    r"exceeded quota: (?P<name>[^,]+), requested: (?P<requested>\S+), used: (?P<used>\S+), limited: (?P<limited>\S+)"
)


class Pods:
    """What a try may do with the pods of its task instance."""

    def __init__(
        self,
        client: Callable[[], Any],
        namespace: str,
        selector: str,
        log: Any,
        limits: Limits,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.client, self.namespace, self.selector = client, namespace, selector
        self.log, self.limits, self.stopped = log, limits, stopped

    def alive(self) -> list[Any]:
        """Return the pods that nobody is deleting."""
        return [pod for pod in self._all() if pod.metadata.deletion_timestamp is None]

    def create(self, pod: Any) -> None:
        """Create the pod; while the quota is used up, wait for it."""
        deadline, told = time.monotonic() + self.limits.schedule, 0.0
        while not self.stopped():
            text = self._try_to_create(pod)
            if text is None:
                return
            if time.monotonic() > deadline:
                raise AirflowException(f"the pod was not accepted within {self.limits.schedule:.0f} s: {text}")
            if time.monotonic() - told >= self.limits.say:
                told = time.monotonic()
                self.log.warning("the pod waits to be accepted: %s", text)
            time.sleep(self.limits.poll)
        raise AirflowException("the task was told to stop before its pod was accepted")

    def delete(self, name: str, at_once: bool = False) -> None:
        """Delete a pod, with its grace period; `at_once` for one whose node is lost and can confirm nothing.

        One whose container never ran has nothing to save, and goes at once: a node takes a minute over it, and
        longer while it waits for an image.
        """
        try:
            pod = self.client().read_namespaced_pod(name, self.namespace, _request_timeout=TIMEOUT)
            grace = {"grace_period_seconds": 0} if at_once or not ever_ran(pod) else {}
            self.client().delete_namespaced_pod(name, self.namespace, **grace, _request_timeout=TIMEOUT)
        except ApiException as error:
            if error.status != 404:
                raise

    def wait_until_gone(self) -> None:
        """Wait for the end of pods that are being deleted: two trainers must never write one checkpoint."""
        told = 0.0
        while not self.stopped():
            ending = self._all()
            if not ending:
                return
            for pod in ending:
                # Its node has had the grace period, and more: it is lost, and will not confirm.
                last = (pod.metadata.deletion_timestamp or datetime.now(UTC)) + timedelta(seconds=self.limits.lost_node)
                if datetime.now(UTC) > last:
                    self.log.warning("pod %s of an earlier try: its node is lost", pod.metadata.name)
                    self.delete(pod.metadata.name, at_once=True)
            if time.monotonic() - told >= self.limits.say:
                told = time.monotonic()
                names = ", ".join(pod.metadata.name for pod in ending)
                self.log.info("waiting for the end of an earlier try, it may be saving a checkpoint: %s", names)
            time.sleep(self.limits.poll)

    def _all(self) -> list[Any]:
        found = self.client().list_namespaced_pod(
            self.namespace, label_selector=self.selector, _request_timeout=TIMEOUT
        )
        return list(found.items)

    def _try_to_create(self, pod: Any) -> str | None:
        """Return None when the pod exists, else what it waits for."""
        try:
            self.client().create_namespaced_pod(self.namespace, pod, _request_timeout=TIMEOUT)
        except HTTPError as error:
            return f"the API server does not answer: {error}"
        except ApiException as error:
            if error.status == 409 and "already exists" in said(error):
                return None  # created by a request whose answer was lost
            if error.status in AWAY or error.status == 409:
                return f"the API server does not answer: {error.status} {said(error)}"
            text = said(error)
            if error.status == 403 and "exceeded quota" in text:
                if never_fits(text):
                    raise AirflowFailException(f"the quota is smaller than this pod: {text}") from error
                return text
            raise AirflowFailException(f"the cluster refuses the pod: {error.status} {text}") from error
        return None


def never_fits(text: str) -> bool:
    """Say whether more is requested than the quota would allow if nothing were used."""
    found = QUOTA.search(text)
    if found is None:
        return False
    amounts = {
        kind: dict(item.split("=", 1) for item in found[kind].split(",") if "=" in item)
        for kind in ("requested", "limited")
    }
    return any(
        parse_quantity(amount) > parse_quantity(amounts["limited"][name])
        for name, amount in amounts["requested"].items()
        if name in amounts["limited"]
    )
