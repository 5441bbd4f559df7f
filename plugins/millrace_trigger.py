"""The last task of watch_drift: starts the DAG that was decided, or is skipped where none was."""

from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.trigger_dagrun import DagIsPaused, TriggerDagRunOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

if TYPE_CHECKING:
    from airflow.sdk import Context


_COUNT = "ti.get_dr_count(dag_id='{}', states=['queued', 'running'])"
# How many runs of the DAGs that a decision leads to have not ended (a candidate may wait for its approval); rendered when
# the task runs.
RUNNING = "{{ " + " + ".join(_COUNT.format(name) for name in ("sync_knowledge", "fine_tune", "promote_release")) + " }}"


class TriggerDecided(TriggerDagRunOperator):
    """Triggers `facts.dag_id` of the decision with its run id and conf.

    The run id is made from the decision's id, so a rerun cannot start a second run; a paused DAG fails the
    task at once instead of leaving a run that never starts. The started run's note links to the run that started it.
    """

    template_fields = (*TriggerDagRunOperator.template_fields, "note")

    def __init__(self, *, decision: str = "decide", **kwargs: Any) -> None:
        facts = f"ti.xcom_pull(task_ids='{decision}')['facts']"
        super().__init__(
            trigger_dag_id=f"{{{{ {facts}['dag_id'] }}}}",
            trigger_run_id=f"{{{{ {facts}['dag_run_id'] }}}}",
            conf=f"{{{{ {facts}['conf'] | tojson }}}}",  # type: ignore[arg-type]  # the operator reads JSON text too
            note="Started by drift, in [{{ dag.dag_id }} {{ run_id }}]"
            f"(/dags/{{{{ dag.dag_id }}}}/runs/{{{{ run_id | urlencode }}}}): "
            # Airflow keeps 1,000 characters of a note: the gist is the first line, and the rest is with the decision.
            f"{{{{ {facts}['reason'].splitlines()[0] | truncate(400) }}}}",
            fail_when_dag_is_paused=True,
            skip_when_already_exists=True,
            **kwargs,
        )
        self.decision = decision

    def execute(self, context: "Context") -> Any:
        """Trigger, or skip where the decision names no DAG."""
        if not self.trigger_dag_id:
            raise AirflowSkipException("the decision names no DAG to run")
        try:
            return super().execute(context)
        except DagIsPaused as error:
            raise AirflowFailException(
                f"expected {self.trigger_dag_id} to be unpaused, found it paused: what was decided is not done. "
                f"Next: unpause {self.trigger_dag_id}, then clear this task."
            ) from error
