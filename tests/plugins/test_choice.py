"""The form of roll_back: a list that is made in the run, checked again when the answer arrives."""

from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = [pytest.mark.airflow]
LISTED = {"facts": {"choose": True, "body": "| table |", "live": 3, "choices": {"2": "2: yesterday", "1": "1: before"}}}


def choice(reference: Any, **params: Any) -> tuple[Any, dict[str, Any]]:
    from airflow.sdk import DAG
    from millrace_choice import ReleaseChoice

    with DAG("roll_back", schedule=None, params={"release": None, "reason": None}):
        operator = ReleaseChoice(task_id="choose")
    ti = SimpleNamespace(id="no such task instance", xcom_pull=lambda task_ids: reference)
    run = SimpleNamespace(triggering_user_name="ada")
    given = {"release": None, "reason": None} | params
    return operator, {"ti": ti, "task_instance": ti, "dag_run": run, "params": given}


def execute(operator: Any, context: dict[str, Any]) -> Any:
    return type(operator).execute.__wrapped__(operator, context)


def event(option: str, **params: Any) -> dict[str, Any]:
    from datetime import UTC, datetime

    return {
        "chosen_options": [option], "params_input": params, "timedout": False,
        "responded_at": datetime.now(UTC), "responded_by_user": {"id": "grace", "name": "grace"},
    }  # fmt: skip


def test_the_earlier_releases_are_a_list_in_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.standard.operators import hitl
    from airflow.sdk.exceptions import TaskAwaitingInput

    asked: dict[str, Any] = {}
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **detail: asked.update(detail))
    with pytest.raises(TaskAwaitingInput):
        execute(*choice(LISTED, reason="worse answers"))
    assert asked["options"] == ["Restore", "Cancel"] and asked["defaults"] == ["Cancel"]
    schema = asked["params"]["release"]["schema"]
    assert schema["enum"] == ["", "2", "1"] and schema["values_display"]["2"] == "2: yesterday"
    assert asked["params"]["release"]["value"] == ""  # nothing is chosen for anybody
    assert asked["params"]["reason"]["value"] == "worse answers"


def test_the_choice_is_handed_on_with_who_and_why() -> None:
    operator, context = choice(LISTED)
    given = operator.execute_complete(context, event("Restore", release="2", reason=" worse "))
    assert given == {"release": 2, "reason": "worse", "by": "grace"}


@pytest.mark.parametrize(("release", "reason"), [("", "r"), ("2", ""), ("2", "  ")])
def test_half_an_answer_is_asked_for_again(release: str, reason: str) -> None:
    from airflow.sdk.exceptions import AirflowException, AirflowFailException

    operator, context = choice(LISTED)
    with pytest.raises(AirflowException, match="found one missing") as caught:
        operator.execute_complete(context, event("Restore", release=release, reason=reason))
    assert not isinstance(caught.value, AirflowFailException)


@pytest.mark.parametrize("release", ["3", "7", 2, None])
def test_what_is_not_in_the_list_cannot_be_chosen(release: Any) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    operator, context = choice(LISTED)
    with pytest.raises(ParamValidationError):
        operator.execute_complete(context, event("Restore", release=release, reason="r"))


def test_cancel_and_no_answer_skip_what_follows() -> None:
    from airflow.sdk.exceptions import AirflowSkipException

    operator, context = choice(LISTED)
    with pytest.raises(AirflowSkipException, match="the live one stays"):
        operator.execute_complete(context, event("Cancel", release="", reason=""))


def test_a_named_release_is_not_asked_for() -> None:
    from airflow.sdk.exceptions import AirflowFailException

    named = {"facts": {"choose": False}}
    given = execute(*choice(named, release=2, reason="worse"))
    assert given == {"release": 2, "reason": "worse", "by": "ada"}
    with pytest.raises(AirflowFailException, match="expected a reason"):
        execute(*choice(named, release=2))


@pytest.mark.parametrize("reference", [None, {"facts": {}}, {"facts": {"choose": "no"}}])
def test_a_listing_that_says_nothing_restores_nothing(reference: Any) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    with pytest.raises(AirflowFailException, match="whether to ask"):
        execute(*choice(reference, release=2, reason="r"))
