"""The approval: a person where the proposal asks for one, the policy elsewhere, nobody never."""

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = [pytest.mark.airflow]
ASKING = {"needs_approval": True, "approvers": [{"id": "ada", "name": "ada"}], "approval_hours": 6}


class Instance(SimpleNamespace):
    """A task instance with XComs, of which `propose` has left one."""

    def __init__(self, reference: Any) -> None:
        super().__init__(id="no such task instance", map_index=-1, kept={("propose", "return_value"): reference})

    def xcom_pull(self, task_ids: str, key: str = "return_value") -> Any:
        return self.kept.get((task_ids, key))

    def xcom_push(self, key: str, value: Any) -> None:
        self.kept["approve", key] = value


def answer(reference: Any) -> Any:
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG
    from millrace_approval import ReleaseApproval

    with DAG("promote_release", schedule=None, params={"candidate": ""}):
        operator: Any = ReleaseApproval(task_id="approve")
        operator >> EmptyOperator(task_id="promote")  # as in the DAG: a no is told by an exception there
    ti = Instance(reference)
    context = {"ti": ti, "task_instance": ti, "task": operator}
    return operator, context, lambda: type(operator).execute.__wrapped__(operator, context)


def asked(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> tuple[dict[str, Any], Any, Any]:
    """Ask, and return what Airflow was told, the operator and its context."""
    from airflow.providers.standard.operators import hitl
    from airflow.sdk.exceptions import TaskAwaitingInput

    told: dict[str, Any] = {}
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **detail: told.update(detail))
    operator, context, execute = answer({"sha256": "5" * 64, "facts": ASKING | facts})
    with pytest.raises(TaskAwaitingInput) as caught:
        execute()
    return told | {"timeout": caught.value.timeout}, operator, context


def event(option: str, *, reason: str = "better", at: datetime | None = None) -> dict[str, Any]:
    """What Airflow resumes the task with."""
    return {
        "chosen_options": [option], "params_input": {"reason": reason}, "timedout": False,
        "responded_at": at or datetime.now(UTC), "responded_by_user": {"id": "ada", "name": "ada"},
    }  # fmt: skip


def rejected(operator: Any, context: Any, told: dict[str, Any]) -> dict[str, Any]:
    """Resume the task with an answer that counts as a no, and return what is kept of it."""
    from airflow.sdk.exceptions import DownstreamTasksSkipped

    with pytest.raises(DownstreamTasksSkipped) as skipped:
        operator.execute_complete(context, told)
    assert [task if isinstance(task, str) else task[0] for task in skipped.value.tasks] == ["promote"]
    kept: dict[str, Any] = context["ti"].kept["approve", "return_value"]
    json.dumps(kept)
    return kept


def test_who_said_no_and_why_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    _told, operator, context = asked(monkeypatch)
    kept = rejected(operator, context, event("Reject", reason="answers about leave got worse"))
    assert kept["chosen_options"] == ["Reject"] and kept["responded_by_user"]["name"] == "ada"
    assert kept["params_input"] == {"reason": "answers about leave got worse"}
    assert kept["proposal_sha256"] == "5" * 64 and datetime.fromisoformat(kept["responded_at"]).tzinfo is not None
    assert "late" not in kept


def test_policy_approves_what_needs_no_person() -> None:
    reference = {"sha256": "5" * 64, "facts": {"needs_approval": False, "policy": "MILLRACE_AUTO_PROMOTE"}}
    _operator, _context, execute = answer(reference)
    given = execute()
    assert given["chosen_options"] == ["Approve"]
    assert given["responded_by_user"]["name"] == "policy"
    assert given["params_input"]["reason"] == "needs no person (MILLRACE_AUTO_PROMOTE)"
    assert given["proposal_sha256"] == "5" * 64


def test_those_who_may_are_asked_where_the_proposal_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    told, _operator, _context = asked(monkeypatch)
    assert told["timeout"] == timedelta(hours=6)
    assert told["defaults"] == ["Reject"]  # no answer in time is a no
    assert told["assigned_users"] == [{"id": "ada", "name": "ada"}]
    assert list(told["params"]) == ["reason"]
    reason = told["params"]["reason"]
    assert reason["value"] == "" and reason["schema"]["type"] == "string"  # a required field of the form
    assert asked(monkeypatch, approvers=[])[0]["assigned_users"] is None  # whoever may answer


def test_the_answer_names_the_proposal_that_was_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    _told, operator, context = asked(monkeypatch)
    context["ti"].kept["propose", "return_value"] = {"sha256": "6" * 64, "facts": ASKING}  # proposed again meanwhile
    given = operator.execute_complete(context, event("Approve", at=datetime.now(UTC)))
    assert given["proposal_sha256"] == "5" * 64
    assert datetime.fromisoformat(given["responded_at"]).tzinfo is not None
    assert given["responded_by_user"]["name"] == "ada" and given["params_input"] == {"reason": "better"}


def test_a_late_approval_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler that should have ended the waiting was down, so Airflow took the answer."""
    _told, operator, context = asked(monkeypatch)
    late = rejected(operator, context, event("Approve", at=datetime.now(UTC) + timedelta(hours=6.1)))
    assert late["chosen_options"] == ["Reject"] and late["late"] is True


def test_an_approval_without_a_reason_is_asked_for_again_and_a_rejection_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from airflow.sdk.exceptions import AirflowException, AirflowFailException

    _told, operator, context = asked(monkeypatch)
    with pytest.raises(AirflowException, match="reason") as caught:
        operator.execute_complete(context, event("Approve", reason=" "))
    assert not isinstance(caught.value, AirflowFailException)  # tried again, which asks again
    assert rejected(operator, context, event("Reject", reason=""))["chosen_options"] == ["Reject"]
    timed_out = event("Reject", reason="") | {"timedout": True, "responded_by_user": None}
    assert rejected(operator, context, timed_out)["responded_by_user"] is None


@pytest.mark.parametrize(
    "reference",
    [None, {"facts": {}}, {"facts": {"needs_approval": "no"}}, {"facts": {"needs_approval": True}}],
)
def test_what_is_not_said_is_not_allowed(reference: Any) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    _operator, _context, execute = answer(reference)
    with pytest.raises(AirflowFailException, match="needs_approval"):
        execute()


def test_the_form_is_made_of_the_proposal() -> None:
    operator, _context, _execute = answer(None)
    assert operator.template_fields == ("subject", "body")
    assert "task_ids='propose'" in operator.subject and "['body']" in operator.body


def test_the_dag_gives_a_person_the_longest_time_that_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.dag_processing.dagbag import DagBag

    from tasks.errors import SettingsError
    from tasks.settings import load_settings
    from tests.airflow_home import REPOSITORY
    from tests.test_settings import LEAST

    dag: Any = DagBag(str(REPOSITORY / "dags" / "promote_release.py")).dags["promote_release"]
    hours = dag.dagrun_timeout.total_seconds() / 3600
    with pytest.raises(SettingsError, match="APPROVAL_HOURS"):
        load_settings(LEAST | {"MILLRACE_APPROVAL_HOURS": str(hours)})
    assert load_settings(LEAST | {"MILLRACE_APPROVAL_HOURS": str(hours - 24)}).approval_hours == hours - 24
