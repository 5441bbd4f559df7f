"""The form of the DAG roll_back: which of the earlier releases, and why.

A DAG's own parameters are fixed when it is parsed, where nothing may be read; so the list is made by the stage
`list_releases` in the run, and asked for by a human-in-the-loop task. Its `options` and `params` are no template fields in
Airflow 3.3.2, but they are sent with the request and kept with it: set in `execute`, they make a list in the form. When the
answer arrives the operator is built anew, so `execute_complete` sets them again, from the same XCom, and Airflow checks the
answer against them. Where the run names a release already nothing is asked, and who triggered it is who says so.
No answer within an hour, or Cancel, skips what follows: the live release stays.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

if TYPE_CHECKING:
    from airflow.sdk import Context

RESTORE, CANCEL = "Restore", "Cancel"


class ReleaseChoice(HITLOperator):
    """Asks which release to restore. The XCom: `release`, `reason`, `by`."""

    def __init__(self, *, listing: str = "list_releases", **kwargs: Any) -> None:
        kwargs.pop("params", None)  # those of the DAG
        super().__init__(
            subject="Which release shall answer again?",
            body=f"{{{{ ti.xcom_pull(task_ids='{listing}')['facts'].get('body', '') }}}}",
            options=[RESTORE, CANCEL],
            defaults=CANCEL,
            response_timeout=timedelta(hours=1),
            **kwargs,
        )
        self.listing = listing

    def execute(self, context: "Context") -> Any:
        """Take the release that the run names, or ask for one."""
        facts, run = self._facts(context), context["dag_run"]
        if facts["choose"] is False:
            if not str(context["params"]["reason"] or "").strip():
                raise AirflowFailException(
                    "expected a reason with the release, found none. Next: trigger it with both."
                )
            return {
                "release": context["params"]["release"],
                "reason": context["params"]["reason"],
                "by": getattr(run, "triggering_user_name", None) or "unknown",
            }
        self._make_form(facts, context["params"].get("reason") or "")
        return super().execute(context)

    def execute_complete(self, context: "Context", event: dict[str, Any]) -> Any:
        """Return what was chosen, or skip what follows."""
        self._make_form(self._facts(context), "")
        if event.get("chosen_options") == [CANCEL]:  # a timeout comes with a form that nobody filled
            raise AirflowSkipException("no release was chosen: the live one stays")
        answer = super().execute_complete(context, event)
        chosen = answer["params_input"]
        if not str(chosen.get("reason") or "").strip() or not chosen.get("release"):
            raise AirflowException("expected a release and a reason, found one missing: they are asked for again.")
        return {
            "release": int(chosen["release"]),
            "reason": chosen["reason"].strip(),
            "by": answer["responded_by_user"]["name"],
        }

    def _facts(self, context: "Context") -> dict[str, Any]:
        facts: dict[str, Any] = (context["ti"].xcom_pull(task_ids=self.listing) or {}).get("facts", {})
        if facts.get("choose") not in (True, False):
            raise AirflowFailException(f"expected {self.listing} to say whether to ask, found {facts}. Next: clear it.")
        return facts

    def _make_form(self, facts: dict[str, Any], reason: str) -> None:
        choices = facts.get("choices", {})
        self.params = ParamsDict(
            {
                # A list from which one is chosen; without a first value the form's buttons stay grey until one is.
                "release": Param(
                    "", type="string", title="Release", description="The release that shall answer again.",
                    enum=["", *choices], values_display={"": "choose one", **choices}, source="task",
                ),
                "reason": Param(
                    reason, type="string", maxLength=2000, title="Reason", description="Why; kept in the ledger.",
                    source="task",
                ),
            }
        )  # fmt: skip
