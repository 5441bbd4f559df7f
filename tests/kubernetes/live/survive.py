"""A training long enough to be disturbed: the real stages in the real image, with a recipe from a config map."""

from datetime import timedelta

from airflow.sdk import chain, dag
from kubernetes.client import models as k8s
from millrace_pod import PodStage

RECIPE = "/recipe/long.yaml"


class RecipeStage(PodStage):
    """A stage that finds one recipe more."""

    def build_pod_request_obj(self, context=None, *, dry_run=False):
        pod = super().build_pod_request_obj(context, dry_run=dry_run)
        source = k8s.V1ConfigMapVolumeSource(name="recipe")
        pod.spec.volumes.append(k8s.V1Volume(name="recipe", config_map=source))
        mount = k8s.V1VolumeMount(name="recipe", mount_path="/recipe")
        pod.spec.containers[0].volume_mounts.append(mount)
        return pod


def part(name, gpus=0, retries=0, **options):
    return RecipeStage(
        task_id=name,
        stage=name,
        gpus=gpus,
        options=options,
        retries=retries,
        retry_delay=timedelta(seconds=1),
        grace=60,
    )


@dag(schedule=None)
def survive():
    before = [part("build_dataset", recipe=RECIPE), part("validate_dataset"), part("plan_training", recipe=RECIPE)]
    chain(*before, part("train", gpus=2, retries=4, recipe=RECIPE))


survive()
