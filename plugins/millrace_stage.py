"""`stage("train", gpus=4, ...)`: one task of a DAG that runs one stage, whatever launches it.

`MILLRACE_LAUNCHER` says how, when the DAG is parsed: `process` (default) gives a child process of the
worker, `kubernetes` a pod, or for several nodes a Job. All run the same command and end with the same proof (`millrace_outcome.py`).
Raises ValueError for another launcher.
"""

import importlib
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal

from airflow.sdk import task

LAUNCHERS = {"process": ("millrace_process", "ProcessStage"), "kubernetes": ("millrace_pod", "PodStage")}
SEVERAL_NODES = ("millrace_job", "JobStage")
PARTS_AT_ONCE = 4


def stage(
    name: str,
    *,
    task_id: str | None = None,
    gpus: int | str = 0,
    nodes: int | str = 1,
    on_refusal: Literal["fail", "skip"] = "fail",
    skip_when: str | None = None,
    retries: int = 2,
    outlets: Sequence[Any] = (),
    timeout: timedelta = timedelta(hours=2),
    trigger_rule: str = "all_success",
    **options: Any,
) -> Any:
    """Return the task that runs the stage `name`. Its XCom is the reference of the manifest.

    `options` become `--option value` of the command and may be templates; an empty one is not given. `gpus` (of
    each node) and `nodes` matter to pods only, and may be templates. `on_refusal` says what a gate's "no" does to
    the DAG run; `skip_when` names a fact that, where true, marks the task skipped (and emits no asset event).
    """
    arguments = _arguments(name, gpus, on_refusal, options)
    several = str(nodes) != "1" and _name() == "kubernetes"
    launcher = _import(SEVERAL_NODES) if several else _launcher()
    return launcher(
        task_id=task_id or name,
        retries=retries,
        outlets=list(outlets),
        execution_timeout=timeout,
        trigger_rule=trigger_rule,
        skip_when=skip_when,
        **({"nodes": nodes} if several else {}),
        **arguments,
    )


def stage_parts(
    name: str, *, parts: Any, retries: int = 2, timeout: timedelta = timedelta(hours=2), **options: Any
) -> Any:
    """Return the mapped task that runs the stage `name` once for each of `parts` (see `parts_of`)."""
    return (
        _launcher()
        .partial(
            task_id=name,
            retries=retries,
            execution_timeout=timeout,
            max_active_tis_per_dagrun=PARTS_AT_ONCE,
            map_index_template="{{ task.part }}",
            **_arguments(name, 0, "fail", options),
        )
        .expand(part=parts)
    )


@task(task_id="parts", multiple_outputs=False)
def parts_of(reference: dict[str, Any]) -> list[str]:
    """Return the parts a stage planned (its fact `parts`): Airflow maps only over a whole XCom."""
    parts: list[str] = reference["facts"]["parts"]
    return parts


def fact(task_id: str, name: str) -> str:
    """Return the template of a fact in an earlier stage's reference, for an option or `gpus`."""
    return f"{{{{ ti.xcom_pull(task_ids='{task_id}')['facts']['{name}'] }}}}"


def sweep() -> Any:
    """Return the task that removes pods of tasks that have ended; None where stages are processes, which their warden ends."""
    if _name() != "kubernetes":
        return None
    return _import(("millrace_sweep", "sweep_pods"))()


def _arguments(
    name: str, gpus: int | str, on_refusal: Literal["fail", "skip"], options: dict[str, Any]
) -> dict[str, Any]:
    grace = 300 if str(gpus) != "0" else 30  # long enough to save a checkpoint
    arguments = {"stage": name, "options": options, "on_refusal": on_refusal, "grace": grace}
    return arguments | ({"gpus": gpus} if _name() == "kubernetes" else {})


def _launcher() -> Any:
    """Return the operator class; the other launcher's module, and its packages, are never imported."""
    return _import(LAUNCHERS[_name()])


def _import(place: tuple[str, str]) -> Any:
    module, operator = place
    return getattr(importlib.import_module(module), operator)


def _name() -> str:
    name = os.environ.get("MILLRACE_LAUNCHER") or "process"
    if name not in LAUNCHERS:
        raise ValueError(
            f"expected MILLRACE_LAUNCHER to be one of {', '.join(LAUNCHERS)}, found {name!r}. Next: correct it."
        )
    return name
