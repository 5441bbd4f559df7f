"""The Kubernetes launcher: a stage as a pod, through KubernetesPodOperator.

Needs `MILLRACE_STAGE_IMAGE`; reads what `millrace_podspec.py` says. The stage's environment comes from a secret, by
reference: no value passes through Airflow. The operator stays with its pod and follows it by `millrace_watch.py`
(docs/adr/0004 says why it is not deferred).

| what happens                                  | what follows |
| quota is used up; no node has room            | it waits, and says for what, up to `MILLRACE_POD_WAIT_MINUTES`; then tried again |
| more GPUs than a node has, or than the quota  | fails at once |
| image that cannot be pulled, secret missing   | told at once; after two minutes tried again, or failed where the registry says "not there" |
| out of memory, evicted, deleted, node lost    | tried again, with that name |
| worker killed hard                            | the next try goes on with the same pod |
| marked failed, cleared, timed out, worker stopped | the pod is deleted, with its time to save a checkpoint |
| anything else                                 | as `millrace_outcome.py` says, by the manifest |

Whatever happens, its log, events and last state are told first, and the pod is deleted.
Only `millrace_stage.py` imports this module, and only for `MILLRACE_LAUNCHER=kubernetes`: it costs a second.
"""

import logging
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk.exceptions import AirflowException
from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException
from millrace_outcome import BAD_INPUT, REFUSED, RETURN_VALUE, MlflowRunLink, StageOutcome, command_line, run_uri, words
from millrace_pods import Pods
from millrace_podspec import confinement, connection, environment, gpus_of_a_pod, machine, namespace, required, size
from millrace_status import Ending, ending
from millrace_sweep import annotations, sweep_before
from millrace_trace import trace_environment
from millrace_watch import Limits, PodWatch
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from airflow.sdk import Context

THE_STAGES_WORD = {0, BAD_INPUT, REFUSED}  # of a pod that ended while nobody watched, these are believed
TAIL = 200  # lines of the log that are told again after a worker was killed


class PodStage(StageOutcome, KubernetesPodOperator):
    """Runs one stage as a pod."""

    template_fields = (*KubernetesPodOperator.template_fields, "options", "part", "gpus")
    template_fields_renderers = {**KubernetesPodOperator.template_fields_renderers, "options": "json"}
    operator_extra_links = (MlflowRunLink(),)
    ui_color = "#e3eef9"
    module = "tasks"
    limits = Limits()

    def __init__(
        self,
        *,
        stage: str,
        options: dict[str, Any] | None = None,
        part: str | None = None,
        on_refusal: Literal["fail", "skip"] = "fail",
        skip_when: str | None = None,
        grace: int = 30,
        gpus: int | str = 0,
        **kwargs: Any,
    ) -> None:
        timeout: timedelta = kwargs.get("execution_timeout") or timedelta(hours=6)
        waits = size("MILLRACE_POD_WAIT_MINUTES") * 60
        super().__init__(
            **{
                "name": f"millrace-{stage.replace('_', '-')}",
                "image": required("MILLRACE_STAGE_IMAGE"),
                "image_pull_policy": "IfNotPresent",
                "namespace": namespace(),
                "kubernetes_conn_id": connection(),
                "cmds": ["python", "-m", self.module],
                "labels": {"app.kubernetes.io/part-of": "millrace", "millrace/stage": stage},
                "termination_grace_period": grace,
                # Should every watcher be gone for good, Kubernetes itself ends what costs money.
                "active_deadline_seconds": int(timeout.total_seconds() + waits),
                "schedule_timeout_seconds": int(waits),
                "deferrable": False,
                "log_pod_spec_on_failure": False,  # it would print the environment
                "termination_message_policy": "FallbackToLogsOnError",
                "do_xcom_push": False,  # no sidecar: the result is the manifest
                "on_failure_callback": remove_what_is_left,
                **environment(stage),
                **confinement(),
                **kwargs,
            }
        )
        self.stage = stage
        self.options = options or {}
        self.part = part
        self.on_refusal = on_refusal
        self.skip_when = skip_when
        self.gpus = gpus
        self.reference = None
        self._pod_name: str | None = None

    def execute(self, context: "Context") -> dict[str, Any]:
        """Run the stage in a pod; return the reference of its verified manifest."""
        self.arguments = self.pod_arguments(context)
        self.name = self._set_name(self.name)
        request = self.build_pod_request_obj(context)
        sweep_before(lambda: self.client, context, self.log)
        pods = self.pods(context)
        kept, watch = self._earlier(pods, request), None
        try:
            if kept is None:
                self._pod_name = request.metadata.name  # known before it exists: on_kill may come between
                self.log.info("pod %s: python -m %s %s", self._pod_name, self.module, " ".join(self.arguments))
                pods.create(request)
            assert self._pod_name is not None
            watch = self.watch(pods, self._pod_name, self.log, tail=None if kept is None else TAIL)
            end = watch.follow()
        except BaseException as error:
            self.log.error("the pod is given up: %s: %s", type(error).__name__, error)
            self._remove(pods)
            raise
        self.log.log(logging.INFO if end.exit_code == 0 else logging.ERROR, "the pod ended: %s", end)
        self._remove(pods, at_once=end.reason == "NodeLost")
        return self._judge(context, end, " | ".join(map(words, watch.last))[-1500:])

    def pod_arguments(self, context: "Context") -> list[str]:
        """Return the stage's arguments. Kubernetes expands $(NAME) in them from the environment, and that holds
        secrets: an option typed by a user must not, so it is escaped."""
        arguments = command_line(self.stage, run_uri(context), self.part, self.options)
        return [argument.replace("$(", "$$(") for argument in arguments]

    def build_pod_request_obj(self, context: "Context | None" = None, *, dry_run: bool = False) -> Any:
        """Return the pod."""
        self.prepare(context)
        return super().build_pod_request_obj(context, dry_run=dry_run)

    def prepare(self, context: "Context | None") -> None:
        """Set what is known only when the task runs: whose pod it is, its trace, and what it asks of a node (`gpus`, rendered)."""
        if context is not None:
            self.annotations = {**self.annotations, **annotations(context)}
            trace = trace_environment(context)
            kept = [variable for variable in self.env_vars if variable.name not in trace]
            self.env_vars = kept + [k8s.V1EnvVar(name=name, value=value) for name, value in trace.items()]
        for name, value in machine(gpus_of_a_pod(self.gpus)).items():
            setattr(self, name, value)

    def on_kill(self) -> None:
        """Delete the pod; it has its grace period to save a checkpoint, and the next try waits for its end."""
        self._killed = True
        if self._pod_name is not None:
            self.log.info("the task is stopped: deleting the pod %s", self._pod_name)
            Pods(lambda: self.client, self.namespace, "", self.log, self.limits).delete(self._pod_name)

    def pods(self, context: "Context") -> Pods:
        """Return the pods of this task instance, of whatever try."""
        selector = self._build_find_pod_label_selector(context)
        limits = replace(self.limits, schedule=min(self.limits.schedule, self.schedule_timeout_seconds))
        return Pods(lambda: self.client, self.namespace, selector, self.log, limits, lambda: self._killed)

    def _earlier(self, pods: Pods, request: Any) -> Any:
        """Return the pod of a try whose worker was killed, if it can be gone on with; remove what cannot."""
        kept = None
        for pod in pods.alive():
            end, name = ending(pod, self.base_container_name), pod.metadata.name
            same = pod.spec.containers[0].args == request.spec.containers[0].args
            if kept is None and same and (end is None or end.exit_code in THE_STAGES_WORD):
                self.log.info("pod %s of an earlier try, whose worker is gone: this try goes on with it", name)
                kept, self._pod_name = pod, name
            else:
                self.log.warning("pod %s of an earlier try is removed: %s", name, end or "it runs something else")
                pods.delete(name)
        if kept is None:
            pods.wait_until_gone()
        return kept

    def watch(self, pods: Pods, name: str, log: Any, tail: int | None) -> PodWatch:
        """Return the watcher of a pod; it tells the task log, or another that knows which pod speaks."""
        return PodWatch(
            client=lambda: self.client,
            refresh=self._refresh_cached_properties,
            name=name,
            namespace=self.namespace,
            container=self.base_container_name,
            log=log,
            limits=pods.limits,
            stopped=lambda: self._killed,
            tail=tail,
        )

    def _remove(self, pods: Pods, at_once: bool = False) -> None:
        """Delete the pod. An API server that is away must not hide how the stage ended."""
        if self._pod_name is None:
            return
        try:
            pods.delete(self._pod_name, at_once=at_once)
        except (ApiException, HTTPError) as error:
            self.log.warning("the pod %s could not be deleted: %s", self._pod_name, error)

    def remove_leftovers(self, context: "Context") -> None:
        """Delete what a try left whose worker was killed."""
        pods = self.pods(context)
        for pod in pods.alive():
            self.log.info("deleting the pod %s of a failed task", pod.metadata.name)
            pods.delete(pod.metadata.name)

    def _judge(self, context: "Context", end: Ending, last_words: str) -> dict[str, Any]:
        if end.exit_code is None:
            raise AirflowException(f"{self.stage}: its pod ended as {end}. It is tried again. {last_words}")
        words = f"Kubernetes says {end}. {last_words}" if end.exit_code else last_words
        moments = {"command_started_at": end.started_at, "command_ended_at": end.ended_at}
        times = {name: moment.isoformat() for name, moment in moments.items() if moment is not None}
        reference = self.conclude(context, end.exit_code, words, times)
        # `do_xcom_push` would add a sidecar to the pod; without it, Airflow keeps no return value by itself.
        context["ti"].xcom_push(key=RETURN_VALUE, value=reference)
        return reference


def remove_what_is_left(context: "Context") -> None:
    """Delete the pods of a task that failed for good. Airflow calls this also, in the DAG processor, for a task
    whose worker was killed and that has no try left: then nobody else would."""
    operator = context["task"]
    if isinstance(operator, PodStage):
        operator.remove_leftovers(context)
