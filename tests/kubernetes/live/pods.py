"""DAGs for tests/kubernetes/test_pods.py: the real operator around the fixture stage, in the real image.

Troubles are borne for seconds instead of minutes; what is done about them is the same.
"""

import os
from dataclasses import replace
from datetime import timedelta

from airflow.sdk import dag
from kubernetes.client import models as k8s
from millrace_job import JobStage
from millrace_pod import PodStage
from millrace_watch import Limits

OPTIONS = {
    "end": "{{ params.get('end', 'complete') if ti.try_number == 1 else params.get('then', 'complete') }}",
    "seconds": "{{ params.get('seconds', '') }}",
    "pids": "/tmp/pids",
}
IMAGE = f"{{{{ params.get('image') or '{os.environ['MILLRACE_STAGE_IMAGE']}' }}}}"
LIMITS = Limits(poll=1, say=5, schedule=25, bad_start=15, lost_node=20)


def with_fixture(spec):
    """Give a pod the fixture stage, from a config map."""
    source = k8s.V1ConfigMapVolumeSource(name="fixture-stage")
    spec.volumes.append(k8s.V1Volume(name="fixture", config_map=source))
    container = spec.containers[0]
    container.volume_mounts.append(k8s.V1VolumeMount(name="fixture", mount_path="/fixture"))
    container.env.append(k8s.V1EnvVar(name="PYTHONPATH", value="/fixture:/opt/millrace"))


class FixtureStage(PodStage):
    """A stage whose code comes from a config map."""

    module = "fixture_stage"
    limits = LIMITS

    def build_pod_request_obj(self, context=None, *, dry_run=False):
        pod = super().build_pod_request_obj(context, dry_run=dry_run)
        with_fixture(pod.spec)
        return pod


class PatientStage(FixtureStage):
    """One that waits longer for a node: until the lost one is back."""

    limits = replace(LIMITS, schedule=180)


class FixtureJob(JobStage):
    """Two such pods of one Job. Where Jobs have no index (Kubernetes before 1.21), both are node 0."""

    module = "fixture_stage"
    limits = LIMITS

    def render(self, context):
        job, service = super().render(context)
        spec = job.spec.template.spec
        with_fixture(spec)
        for variable in spec.containers[0].env:
            if variable.name == "MILLRACE_NODE_RANK":
                variable.value, variable.value_from = "0", None
        return job, service


def tried(kind=FixtureStage, **given):
    arguments = {
        "task_id": "tried", "stage": "tried", "options": OPTIONS, "gpus": "{{ params.get('gpus', 1) }}", "grace": 10,
        "retry_delay": timedelta(seconds=1), "execution_timeout": timedelta(minutes=10),
    }  # fmt: skip
    return kind(**arguments | given)


@dag(schedule=None)
def once():
    """One try; `params.image` replaces the image."""
    tried(retries=0, image=IMAGE)


@dag(schedule=None)
def again():
    """Two tries; the second ends as `params.then` says."""
    tried(PatientStage, retries=1)


@dag(schedule=None)
def short():
    """A time-out of half a minute."""
    tried(retries=0, execution_timeout=timedelta(seconds=30))


@dag(schedule=None)
def several():
    """Two nodes; `params.image` replaces the image."""
    tried(FixtureJob, retries=0, nodes=2, image=IMAGE)


once()
again()
short()
several()
