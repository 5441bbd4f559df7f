"""The person before a release: opened only where the proposal asks for one.

Reads the reference that `propose` returned. Where `facts.needs_approval` is true the task waits for
Approve or Reject (without a worker slot); "no answer in time" counts as Reject. Elsewhere it approves at
once in the name of `policy`. Reject skips what follows; the run ends as a success without a release.
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowFailException

if TYPE_CHECKING:
    from airflow.sdk import Context

POLICY = "policy"


class ReleaseApproval(ApprovalOperator):
    """Asks a person to approve what `proposal` (a task id) proposed, where the policy says so."""

    def __init__(
        self, *, proposal: str = "propose", response_timeout: timedelta = timedelta(days=2), **kwargs: Any
    ) -> None:
        facts = f"ti.xcom_pull(task_ids='{proposal}')['facts']"
        kwargs.pop("params", None)  # those of the DAG; Airflow adds them again, and the form shows the task's own
        super().__init__(
            subject=f"{{{{ {facts}['subject'] }}}}",
            body=f"{{{{ {facts}['body'] }}}}",
            defaults=self.REJECT,
            response_timeout=response_timeout,
            params={
                "reason": Param(None, type=["null", "string"], title="Reason", description="Kept with the release.")
            },
            **kwargs,
        )
        self.proposal = proposal

    def execute(self, context: "Context") -> Any:
        """Approve by policy, or wait for a person."""
        reference = context["ti"].xcom_pull(task_ids=self.proposal)
        needs_approval = (reference or {}).get("facts", {}).get("needs_approval")
        if needs_approval is False:
            self.log.info("approved by policy: this proposal needs no person")
            return {
                "chosen_options": [self.APPROVE],
                "params_input": {"reason": "needs no person (MILLRACE_APPROVAL)"},
                "responded_at": datetime.now(UTC),
                "responded_by_user": {"id": POLICY, "name": POLICY},
            }
        if needs_approval is not True:  # fail closed: what is not said is not allowed
            raise AirflowFailException(
                f"expected {self.proposal} to say in facts.needs_approval whether a person must approve, "
                f"found {needs_approval!r}. Next: see its manifest."
            )
        return super().execute(context)
