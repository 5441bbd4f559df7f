"""The launcher of a stage on several nodes: an Indexed Job, through KubernetesJobOperator.

Pod k of the Job is node k. Each runs the same command, and reads `MILLRACE_NODE_RANK` (its index in the Job) and
`MILLRACE_MASTER_ADDRESS` (the name of pod 0, which a headless service gives it). Node 0 writes the manifest of the
stage, node k that of its part `node-k`; the task succeeds only when all of them are verified. Settings, sizes,
waiting, reasons and deletion are those of one pod (`millrace_pod.py`), and for `nodes` 1 it is one pod. One pod that
ends badly ends the Job: the others are stopped with their time to save, and the whole is tried again.

Of KubernetesJobOperator the rendering is used. Its own execution looks for the pods once, before the Job's controller
has made them, and finds neither an earlier Job nor the reason of a failure.
"""

import logging
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.job import KubernetesJobOperator
from kubernetes.client import models as k8s
from kubernetes.client.exceptions import ApiException
from millrace_jobs import Jobs, JobWatch
from millrace_pod import TAIL, PodStage
from millrace_pods import Pods
from millrace_sweep import sweep_before
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from airflow.sdk import Context

INDEX = "batch.kubernetes.io/job-completion-index"
KEPT_SECONDS = 3600  # of a Job whose watchers are all gone
# Of the same arguments for every pod, only node 0 writes the manifest of the stage itself.
COMMAND = """rank=$MILLRACE_NODE_RANK
if [ "$rank" != 0 ]; then set -- "$@" --part "node-$rank"; fi
exec python -m $MODULE "$@"
"""


class JobStage(PodStage, KubernetesJobOperator):
    """Runs one stage as several pods that know each other."""

    template_fields = (*PodStage.template_fields, "nodes", "job_template_file")

    def __init__(self, *, nodes: int | str, **kwargs: Any) -> None:
        super().__init__(
            **{
                "completion_mode": "Indexed",
                "backoff_limit": 0,
                "ttl_seconds_after_finished": KEPT_SECONDS,
                "cmds": ["sh", "-c", COMMAND.replace("$MODULE", self.module), "node"],
                **kwargs,
            }
        )
        self.nodes = nodes
        self._job_name: str | None = None

    def execute(self, context: "Context") -> dict[str, Any]:
        """Run the stage on all nodes; return the reference of node 0's verified manifest."""
        if int(self.nodes) == 1:
            self.cmds = ["python", "-m", self.module]
            return super().execute(context)
        self.arguments = self.pod_arguments(context)
        self.name = self._set_name(self.name)
        job, service = self.render(context)
        sweep_before(lambda: self.client, context, self.log)
        jobs = self.jobs(context)
        kept = jobs.earlier(job)
        self._job_name = kept or job.metadata.name
        try:
            if kept is None:
                self.log.info("job %s: python -m %s %s", self._job_name, self.module, " ".join(self.arguments))
                jobs.create(job, service)
            watch = self._watch_job(jobs, tail=TAIL if kept else None)
            end = watch.follow()
        except BaseException as error:
            self.log.error("the job is given up: %s: %s", type(error).__name__, error)
            self._remove_job(jobs)
            raise
        self.log.log(logging.INFO if end.exit_code == 0 else logging.ERROR, "the job ended: %s", end)
        self._remove_job(jobs, at_once=end.reason == "NodeLost")
        if end.exit_code == 0:
            for rank in range(1, int(self.nodes)):
                self.verified("complete", context, part=f"node-{rank}")
        return self._judge(context, end, watch.last_words)

    def render(self, context: "Context") -> tuple[k8s.V1Job, k8s.V1Service]:
        """Return the Job and the service that gives its pods names."""
        self.prepare(context)
        self.parallelism = self.completions = int(self.nodes)
        job = self.build_job_request_obj(context)
        name, pod = job.metadata.name, job.spec.template
        # The Job has the labels of its pods, so that it is found by the task instance it belongs to.
        job.metadata.labels = {**(pod.metadata.labels or {}), **(job.metadata.labels or {})}
        pod.metadata.name = None
        pod.spec.subdomain = name
        index = k8s.V1EnvVarSource(field_ref=k8s.V1ObjectFieldSelector(field_path=f"metadata.annotations['{INDEX}']"))
        pod.spec.containers[0].env += [
            k8s.V1EnvVar(name="MILLRACE_NODE_RANK", value_from=index),
            k8s.V1EnvVar(name="MILLRACE_MASTER_ADDRESS", value=f"{name}-0.{name}.{job.metadata.namespace}.svc"),
        ]
        service = k8s.V1Service(
            api_version="v1",
            kind="Service",
            metadata=k8s.V1ObjectMeta(name=name, namespace=job.metadata.namespace, labels=job.metadata.labels),
            spec=k8s.V1ServiceSpec(
                cluster_ip="None",
                selector={"job-name": name},
                # The ranks look for node 0 before it is ready for anything.
                publish_not_ready_addresses=True,
            ),
        )
        return job, service

    def jobs(self, context: "Context") -> Jobs:
        """Return the Jobs of this task instance, of whatever try."""
        return Jobs(self.pods(context), lambda: self.job_client)

    def on_kill(self) -> None:
        """Delete the Job with its pods; they have their grace period, and the next try waits for their end."""
        if self._job_name is None:
            PodStage.on_kill(self)
            return
        self._killed = True
        self.log.info("the task is stopped: deleting the job %s", self._job_name)
        pods = Pods(lambda: self.client, self.namespace, "", self.log, self.limits)
        Jobs(pods, lambda: self.job_client).delete(self._job_name)

    def remove_leftovers(self, context: "Context") -> None:
        """Delete what a try left whose worker was killed."""
        super().remove_leftovers(context)
        jobs = self.jobs(context)
        for job in jobs.alive():
            self.log.info("deleting the job %s of a failed task", job.metadata.name)
            jobs.delete(job.metadata.name)

    def _watch_job(self, jobs: Jobs, tail: int | None) -> JobWatch:
        assert self._job_name is not None
        name = self._job_name
        return JobWatch(jobs, name, int(self.nodes), lambda pod, log: self.watch(jobs.pods, pod, log, tail))

    def _remove_job(self, jobs: Jobs, at_once: bool = False) -> None:
        assert self._job_name is not None
        try:
            jobs.delete(self._job_name, at_once=at_once)
        except (ApiException, HTTPError) as error:
            self.log.warning("the job %s could not be deleted: %s", self._job_name, error)
