"""`promote` counts answers: the ledger stays as it was where one does not count."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks.database import connect
from tasks.errors import ApprovalError, ApprovalExpired, ApprovalReused
from tasks.release import approval, ledger

pytestmark = [pytest.mark.integration]


def live(house: Any) -> ledger.Release | None:
    with ledger.ledger(house.settings) as connection:
        return ledger.live(connection)


def test_only_an_answer_that_counts_makes_a_release_and_it_makes_one(house: Any) -> None:
    house.index()
    candidate, run, other = house.candidate(b"one").uri, house.run("promote_release"), house.run("promote_release")
    proposal = house.stage("propose", run, candidate=candidate)
    assert proposal.facts["approvers"] == [] and proposal.facts["corpus"] == "default"
    assert "May approve: whoever may answer in Airflow." in proposal.facts["body"]
    house.stage("propose", other, candidate=candidate)
    now = datetime.now(UTC)
    good = {"approved_by": "ada", "reason": "r", "proposal_sha256": approval.shown(proposal), "answered_at": str(now)}
    with pytest.raises(ApprovalExpired):
        house.stage("promote", run, **(good | {"answered_at": str(now - timedelta(hours=49))}))
    with pytest.raises(ApprovalReused):
        house.stage("promote", other, **good)
    with pytest.raises(ApprovalError, match="MILLRACE_APPROVERS"):
        house.with_settings(approvers="grace").stage("promote", run, **good)
    assert live(house) is None
    assert house.with_settings(approvers="grace,ada").stage("promote", run, **good).facts["approved_by"] == "ada"
    # Repeated, even when it has expired, the answer makes nothing new.
    again = house.stage("promote", run, **(good | {"answered_at": str(now - timedelta(hours=49))}))
    assert (again.facts["release"], again.facts["made_before"]) == (1, True)


def test_a_model_of_a_named_corpus_is_released_by_its_verdict(house: Any) -> None:
    house.index()
    auto, run = house.with_settings(auto_promote="default"), house.run("promote_release")
    proposal = auto.stage("propose", run, candidate=house.candidate(b"one").uri)
    assert (proposal.facts["needs_approval"], proposal.facts["policy"]) == (False, "MILLRACE_AUTO_PROMOTE")
    # Taken back meanwhile: the person is needed again.
    assert house.stage("promote", run, approved_by="policy").status == "refused" and live(house) is None
    # The same again, by the setting as it is now: a refusal does not stand.
    assert auto.stage("promote", run, approved_by="policy").facts["approved_by"] == "policy"


def test_the_list_for_a_rollback_shows_what_can_answer_again(house: Any) -> None:
    house.index()
    assert house.stage("list_releases", house.run("roll_back")).status == "refused"
    house.promote(house.candidate(b"one").uri, reason="the first | of all " + "x" * 80)
    house.promote(house.candidate(b"two", champion=1).uri)
    run = house.run("roll_back")
    listed = house.stage("list_releases", run).facts
    assert (listed["choose"], listed["live"], list(listed["choices"])) == (True, 2, ["1"])
    assert listed["choices"]["1"].startswith("1: 20") and "by Ada: the first | of all xx" in listed["choices"]["1"]
    body = listed["body"].splitlines()
    assert body[2].startswith("| 2 | ") and body[2].endswith("| live |") and "the first / of all" in body[3]
    assert house.stage("list_releases", run, release="1").facts["choose"] is False
    back = house.run("roll_back")
    house.stage("roll_back", back, release="1", reason="worse", approved_by="Ada")
    told = house.stage("announce_rollback", back)
    assert "back to release 1" in house.storage.get(told.outputs["announcement"]).decode()
    # What answers like the live one is shown, and cannot be chosen; nor can a release whose index version is gone.
    listed = house.stage("list_releases", run).facts
    assert list(listed["choices"]) == ["2"] and "| answers like the live one |" in listed["body"]
    with connect(house.url) as connection:
        connection.execute("UPDATE index_versions SET status = 'retired'")
    assert house.stage("list_releases", run).status == "refused"
