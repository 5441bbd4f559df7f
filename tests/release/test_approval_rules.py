"""Which answer counts as an approval: of one who may, with a reason, in time, and of this very proposal."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.contracts import Manifest
from tasks.errors import ApprovalError, ApprovalExpired, ApprovalReused, SettingsError
from tasks.release import approval
from tasks.release.approval import Answer
from tasks.release.change import Change
from tasks.settings import Settings, load_settings

NOW = datetime(2026, 11, 22, 6, 30, tzinfo=UTC)
LEAST = {"MILLRACE_DATABASE_URL": "postgresql://u:p@127.0.0.1/m", "MILLRACE_MLFLOW_TRACKING_URI": "http://m"}


def settings(**values: str) -> Settings:
    return load_settings(LEAST | {f"MILLRACE_{name.upper()}": value for name, value in values.items()})


def proposal(run: str = "r", **facts: Any) -> Manifest:
    known = {
        "needs_approval": True, "subject": "Release m 3",
    }  # fmt: skip
    return Manifest(
        stage="propose", run=f"s3://b/runs/promote_release/{run}", status="complete", fingerprint="f", code_revision="c",
        host="h", started_at=NOW, ended_at=NOW, facts=known | facts,
    )  # fmt: skip


def refusal(of: Settings, to: Manifest, answer: Answer, **changes: Any) -> str | None:
    """Return what is said of an answer about a new model, unless `changes` say what else would change."""
    values: dict[str, Any] = {"model": True, "prompt_changed": False, "corpus": "default"}
    return approval.refusal(of, to, answer, Change(**(values | changes)), NOW)


def given(to: Manifest, **changes: str) -> Answer:
    values = {
        "approved_by": "ada", "reason": "better", "proposal_sha256": approval.shown(to),
        "answered_at": str(NOW - timedelta(hours=1)),
    }  # fmt: skip
    return Answer(**(values | changes))


def test_an_answer_of_today_to_this_proposal_counts() -> None:
    one = proposal()
    assert refusal(settings(), one, given(one)) is None
    assert refusal(settings(approvers="ada, 7=Grace"), one, given(one)) is None
    assert refusal(settings(approvers="ada, 7=Grace"), one, given(one, approved_by="Grace")) is None


def test_nobody_and_the_policy_are_refused_where_a_person_is_needed() -> None:
    one = proposal()
    for nobody in ("", " ", "policy"):
        assert "found none" in str(refusal(settings(), one, given(one, approved_by=nobody)))


@pytest.mark.parametrize("by", ["mallory", "Ada", "7", "ada,7=Grace"])
def test_an_approval_of_somebody_else_is_told(by: str) -> None:
    one = proposal()
    with pytest.raises(ApprovalError, match="MILLRACE_APPROVERS"):
        refusal(settings(approvers="ada, 7=Grace"), one, given(one, approved_by=by))


def test_an_expired_approval_is_told() -> None:
    one = proposal()
    old = given(one, answered_at=str(NOW - timedelta(hours=6, minutes=1)))
    with pytest.raises(ApprovalExpired, match="last 6 hours"):
        refusal(settings(approval_hours="6"), one, old)
    assert refusal(settings(approval_hours="7"), one, old) is None
    with pytest.raises(ApprovalError, match="clocks"):
        refusal(settings(), one, given(one, answered_at=str(NOW + timedelta(hours=1))))


def test_an_approval_of_another_or_a_changed_proposal_is_told() -> None:
    one, other, changed = proposal(), proposal(run="other"), proposal(index_version=5)
    for another in (other, changed):
        with pytest.raises(ApprovalReused, match="proposed again"):
            refusal(settings(), another, given(one))
    with pytest.raises(ApprovalReused):  # by policy too
        refusal(settings(auto_promote="default"), other, given(one, approved_by="policy"))


@pytest.mark.parametrize(
    "changes",
    [{"answered_at": ""}, {"answered_at": "missing"}, {"answered_at": "2026-11-22T06:00:00"}],
)
def test_half_an_origin_is_no_origin(changes: dict[str, str]) -> None:
    one = proposal()
    with pytest.raises(ApprovalError, match="moment of the approval"):
        refusal(settings(), one, given(one, **changes))
    with pytest.raises(ApprovalReused):
        refusal(settings(), one, given(one, proposal_sha256=""))


def test_a_reason_is_required_of_an_answer_in_airflow() -> None:
    one = proposal()
    with pytest.raises(ApprovalError, match="reason"):
        refusal(settings(), one, given(one, reason="  "))


def test_named_corpora_are_promoted_by_their_verdict() -> None:
    auto, one = settings(auto_promote="default"), proposal(needs_approval=False)
    by_policy = given(one, approved_by="policy")
    assert refusal(auto, one, by_policy) is None
    # The proposal alone cannot skip the person: the setting must say so when it is promoted, too.
    assert refusal(settings(), one, by_policy)
    assert refusal(settings(auto_promote="default", approval="always"), one, by_policy)
    asked = proposal()
    assert refusal(auto, asked, given(asked, approved_by="policy"))
    # What the parts say counts, whatever the proposal says of them.
    for changes in ({"corpus": "other"}, {"prompt_changed": True}, {"doubts": ("The verdict is review: few rows",)}):
        assert refusal(auto, one, by_policy, **changes), changes


def test_at_a_shell_a_reason_is_required_and_the_proposal_must_be_of_late() -> None:
    one = proposal()
    here = Answer(approved_by="ada", reason="better")
    assert refusal(settings(), one, here) is None
    with pytest.raises(ApprovalError, match="give --reason"):
        refusal(settings(), one, Answer(approved_by="ada"))
    old = one.model_copy(update={"ended_at": NOW - timedelta(hours=6, minutes=1)})
    with pytest.raises(ApprovalExpired, match="proposal of the last 6 hours"):
        refusal(settings(approval_hours="6"), old, here)
    assert refusal(settings(approval_hours="7"), old, here) is None


def test_a_reason_that_no_manifest_could_hold_is_refused() -> None:
    assert Answer(reason="x" * 2_000)
    for changes in ({"reason": "x" * 2_001}, {"approved_by": "x" * 201}):
        with pytest.raises(ValidationError):
            Answer(**changes)


def test_settings_that_name_nobody_or_no_corpus_are_told() -> None:
    for wrong in ("", "ada,", "=ada", "7="):
        with pytest.raises(SettingsError, match="MILLRACE_APPROVERS"):
            approval.approvers(settings(approvers=wrong))
    with pytest.raises(SettingsError, match="Did you mean 'default'"):
        approval.auto_promoted(settings(auto_promote="defualt"))
    with pytest.raises(SettingsError, match="MILLRACE_AUTO_PROMOTE"):
        approval.auto_promoted(settings(auto_promote=""))


def test_the_terms_are_in_one_line() -> None:
    assert approval.terms(settings(approvers="ada,7=Grace", approval_hours="6")) == (
        "May approve: ada, Grace. No answer within 6 hours is a no. A reason is required."
    )
    assert "whoever may answer" in approval.terms(settings())
