"""Pods and Jobs whose task has ended, and that nobody watches any more: found, and removed.

A worker removes its own pod, and what a killed worker left goes with the next try, or with the failure of the task. One
gap remains: a task that somebody marks failed after its worker died and before Airflow noticed that. So every stage that
starts on the cluster, and `housekeeping`, look once for what such tasks left.

Reads the pods and Jobs of the namespace and, through the task's own API, what Airflow calls the state of their tasks.
Deletes those whose task has ended, with their grace period: a training still saves its checkpoint. What belongs to a DAG
run that this Airflow does not know is left alone and told: its deadline ends it. Two Airflows need a namespace each, as
they do for everything that finds pods by their labels.
Raises ApiException and HTTPError where the cluster does not answer, AirflowRuntimeError where Airflow does not.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
from airflow.sdk import get_current_context, task
from airflow.sdk.exceptions import AirflowRuntimeError
from kubernetes.client import BatchV1Api
from kubernetes.client.exceptions import ApiException
from millrace_jobs import Jobs
from millrace_pods import Pods
from millrace_podspec import connection, namespace
from millrace_watch import Limits
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from airflow.sdk import Context

SELECTOR = "app.kubernetes.io/part-of=millrace"
PREFIX = "millrace/"
ENDED = {"success", "failed", "skipped", "upstream_failed", "removed"}
States = Callable[..., dict[str, dict[str, str | None]]]


class Owner(NamedTuple):
    """The task instance that a pod belongs to, as its annotations say (labels cannot hold every run id)."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int

    @property
    def key(self) -> str:
        """What Airflow calls it among the states of its DAG run."""
        return self.task_id if self.map_index < 0 else f"{self.task_id}_{self.map_index}"


def annotations(context: "Context") -> dict[str, str]:
    """Return what a pod of this task instance is marked with."""
    ti: Any = context["ti"]
    owner = Owner(ti.dag_id, str(context["run_id"]), ti.task_id, ti.map_index)
    return {PREFIX + name.replace("_", "-"): str(value) for name, value in owner._asdict().items()}


def owner_of(thing: Any) -> Owner | None:
    """Return whose pod or Job this is, or None for one that no stage made."""
    found = thing.metadata.annotations or {}
    values = {name: found.get(PREFIX + name.replace("_", "-")) for name in Owner._fields}
    if any(value is None for value in values.values()):
        return None
    return Owner(**{**values, "map_index": int(values["map_index"] or -1)})


def sweep(jobs: Jobs, states: States) -> list[str]:
    """Delete the pods and Jobs whose task has ended; return their names."""
    whole = jobs.alive()
    single = [pod for pod in jobs.pods.alive() if not pod.metadata.owner_references]
    owners = {id(thing): owner for thing in (*whole, *single) if (owner := owner_of(thing)) is not None}
    # Asked after the list: a task that has ended by now left its pod, one that has begun since is not in the list.
    known = _states(owners.values(), states)
    removed = []
    for kind, delete, things in (("job", jobs.delete, whole), ("pod", jobs.pods.delete, single)):
        for thing in things:
            owner, name = owners.get(id(thing)), thing.metadata.name
            if owner is None:
                continue
            run = known.get((owner.dag_id, owner.run_id))
            if run is None:
                jobs.log.warning("%s %s is of a DAG run unknown here (%s): left alone", kind, name, owner.run_id)
            elif run.get(owner.key) in ENDED:
                jobs.log.warning("%s %s: its task %s of %s has ended: removed", kind, name, owner.key, owner.run_id)
                delete(name)
                removed.append(name)
    return removed


def _states(owners: Any, states: States) -> dict[tuple[str, str], dict[str, str | None]]:
    runs: dict[str, set[str]] = defaultdict(set)
    for owner in owners:
        runs[owner.dag_id].add(owner.run_id)
    return {
        (dag, run): found
        for dag, wanted in runs.items()
        for run, found in states(dag_id=dag, run_ids=sorted(wanted)).items()
    }


def sweep_before(client: Callable[[], Any], context: "Context", log: Any) -> None:
    """Sweep before a stage starts. Its own start does not depend on it: what goes wrong is told, and tried next time."""
    ti: Any = context["ti"]
    try:
        sweep(_everything(client, log), ti.get_task_states)
    except (ApiException, HTTPError, AirflowRuntimeError) as error:
        log.warning("pods without a task could not be looked for: %s", error)


@task
def sweep_pods() -> list[str]:
    """Remove the pods and Jobs whose task has ended; return their names."""
    hook = KubernetesHook(conn_id=connection())
    ti: Any = get_current_context()["ti"]
    return sweep(_everything(lambda: hook.core_v1_client, ti.log), ti.get_task_states)


def _everything(client: Callable[[], Any], log: Any) -> Jobs:
    pods = Pods(client, namespace(), SELECTOR, log, Limits())
    return Jobs(pods, lambda: BatchV1Api(client().api_client))
