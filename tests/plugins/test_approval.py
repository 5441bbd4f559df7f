"""The approval: a person where the proposal asks for one, the policy elsewhere, nobody never."""

from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = [pytest.mark.airflow]


def answer(reference: Any) -> Any:
    from airflow.sdk import DAG
    from millrace_approval import ReleaseApproval

    with DAG("promote_release", schedule=None, params={"candidate": ""}):
        operator = ReleaseApproval(task_id="approve")
    ti = SimpleNamespace(id="no such task instance", xcom_pull=lambda task_ids: reference)
    return operator, lambda: ReleaseApproval.execute.__wrapped__(operator, {"ti": ti, "task_instance": ti})


def test_policy_approves_what_needs_no_person() -> None:
    _operator, execute = answer({"facts": {"needs_approval": False}})
    given = execute()
    assert given["chosen_options"] == ["Approve"]
    assert given["responded_by_user"]["name"] == "policy"


def test_a_person_is_asked_where_the_proposal_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.standard.operators import hitl
    from airflow.sdk.exceptions import TaskAwaitingInput

    asked: dict[str, Any] = {}
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **detail: asked.update(detail))
    operator, execute = answer({"facts": {"needs_approval": True}})
    with pytest.raises(TaskAwaitingInput) as caught:
        execute()
    assert caught.value.timeout == operator.response_timeout
    assert asked["defaults"] == ["Reject"]  # no answer in time is a no
    assert list(asked["params"]) == ["reason"]


@pytest.mark.parametrize("reference", [None, {"facts": {}}, {"facts": {"needs_approval": "no"}}])
def test_what_is_not_said_is_not_allowed(reference: Any) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    _operator, execute = answer(reference)
    with pytest.raises(AirflowFailException, match="needs_approval"):
        execute()


def test_two_days_are_given_by_default() -> None:
    operator, _execute = answer(None)
    assert operator.response_timeout.days == 2
    assert operator.template_fields == ("subject", "body")
