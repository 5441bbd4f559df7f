"""The person before a release: opened only where the proposal asks for one.

Reads the reference that `propose` returned: whether a person must approve, who that may be, and how long it may take are
facts of it (from the stages' settings; nothing is read while DAGs are parsed). Where a person is needed the task waits for
Approve or Reject, without a worker slot; no answer in time is a Reject, and so is one that came later than it. Elsewhere it
approves at once in the name of `policy`. Its XCom says what was answered, by whom, when, why, and to which proposal: the
digest of the manifest that was shown. Reject skips what follows; the run ends as a success without a release, and the XCom
says who rejected and why (`late` where an approval came too late to count).
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowException, AirflowFailException

if TYPE_CHECKING:
    from airflow.sdk import Context

POLICY = "policy"
ASKED = "asked"  # the XCom that keeps what was shown, and when; it stays while the task waits


class ReleaseApproval(ApprovalOperator):
    """Asks a person to approve what `proposal` (a task id) proposed, where the policy says so."""

    def __init__(self, *, proposal: str = "propose", **kwargs: Any) -> None:
        facts = f"ti.xcom_pull(task_ids='{proposal}')['facts']"
        kwargs.pop("params", None)  # those of the DAG; Airflow adds them again, and the form shows the task's own
        super().__init__(
            subject=f"{{{{ {facts}['subject'] }}}}",
            body=f"{{{{ {facts}['body'] }}}}",
            defaults=self.REJECT,
            # A plain string without a value is a required field: the form's buttons stay grey until it is filled.
            params={
                "reason": Param("", type="string", maxLength=2000, title="Reason", description="Kept with the release.")
            },
            **kwargs,
        )
        self.proposal = proposal

    def execute(self, context: "Context") -> Any:
        """Approve by policy, or wait for a person."""
        reference = context["ti"].xcom_pull(task_ids=self.proposal) or {}
        facts, now = reference.get("facts", {}), datetime.now(UTC)
        needs_approval = facts.get("needs_approval")
        if needs_approval is False:
            self.log.info("approved by policy: this proposal needs no person")
            return {
                "chosen_options": [self.APPROVE],
                "params_input": {"reason": f"needs no person ({facts.get('policy') or 'MILLRACE_APPROVAL'})"},
                "responded_at": now.isoformat(),
                "responded_by_user": {"id": POLICY, "name": POLICY},
                "proposal_sha256": reference["sha256"],
            }
        if needs_approval is not True or not {"approvers", "approval_hours"} <= facts.keys():
            # Fail closed: what is not said is not allowed.
            raise AirflowFailException(
                f"expected {self.proposal} to say in its facts needs_approval, approvers and approval_hours, found "
                f"{needs_approval!r} and {sorted(facts)}. Next: see its manifest."
            )
        self.assigned_users = facts["approvers"] or None
        self.response_timeout = timedelta(hours=facts["approval_hours"])
        until = (now + self.response_timeout).isoformat()
        context["ti"].xcom_push(key=ASKED, value={"sha256": reference["sha256"], "until": until})
        return super().execute(context)

    def execute_complete(self, context: "Context", event: dict[str, Any]) -> Any:
        """Return the answer with what it was about; a late one is a no, and one without a reason is asked for again."""
        asked = context["ti"].xcom_pull(task_ids=self.task_id, key=ASKED)
        answered: datetime | None = event.get("responded_at")
        about = {"responded_at": answered.isoformat() if answered else "", "proposal_sha256": asked["sha256"]}
        if event.get("chosen_options") == [self.APPROVE]:
            if answered is None or answered > datetime.fromisoformat(asked["until"]):
                self.log.warning("the approval came at %s, after %s: it counts as a no", answered, asked["until"])
                event, about = event | {"chosen_options": [self.REJECT]}, about | {"late": True}
            elif not str((event.get("params_input") or {}).get("reason") or "").strip():
                raise AirflowException("expected a reason with the approval, found none: it is asked for again.")
        if event.get("chosen_options") == [self.REJECT]:
            # What follows is skipped by an exception, after which Airflow keeps no return value.
            said = {name: event.get(name) for name in ("chosen_options", "params_input", "responded_by_user")}
            context["ti"].xcom_push(key="return_value", value=said | about)
        return dict(super().execute_complete(context, event)) | about
