"""An approval is bound to what was shown, and who must approve is worked out from the parts, not from what a proposal says."""

from typing import Any

import pytest
from pydantic import SecretStr

from tasks.contracts import Manifest
from tasks.database import connect
from tasks.errors import ApprovalReused, ManifestError, OptionError, ReleaseError, SignatureError
from tasks.release import approval, ledger
from tasks.release.signing_keys import make_pair
from tasks.stage import Stage, StageOptions, StageResult
from tests.release.test_promote import PROMPT

pytestmark = pytest.mark.integration
ADA = {"approved_by": "Ada", "reason": "better"}


def live(house: Any) -> ledger.Release:
    with connect(house.url) as connection:
        found = ledger.live(connection)
    assert found is not None
    return found


def switched(house: Any) -> str:
    """Return the manifest of a switch_index: it starts a proposal of the current index without MLflow."""
    stage = Stage("switch_index", StageOptions, lambda *_: StageResult())
    return str(house.stage(stage, house.run("sync_knowledge")).uri)


def proposed(house: Any, **options: str) -> Manifest:
    found: Manifest = house.stage("propose", house.run("promote_release"), **options)
    return found


def forge(house: Any, manifest: Manifest, **facts: Any) -> Manifest:
    """Put a manifest there that says something else, as whoever may write to S3 can."""
    forged = manifest.model_copy(update={"facts": manifest.facts | facts})
    house.storage.write_manifest(forged)
    return forged


def test_an_approval_of_one_adapter_does_not_release_another_at_its_place(quick: Any) -> None:
    quick.index()
    first = quick.registered(b"A")
    waiting = proposed(quick, candidate=first.uri)
    assert waiting.facts["candidate_sha256"] == approval.shown(first)
    assert waiting.facts["weights_sha256"] == first.facts["weights_sha256"]
    # The fine-tune is done again in the same run, with other data, while a person reads.
    quick.storage.delete_prefix(f"{first.run}/")
    second = quick.registered(b"BB", run=quick.tuned(b"BB", run=first.run))
    assert second.uri == first.uri
    with pytest.raises(ReleaseError, match="expected the candidate that was proposed"):
        quick.stage("promote", waiting.run, **ADA)
    with connect(quick.url) as connection:
        assert ledger.live(connection) is None
    # Proposed again, the earlier answer is not one to this proposal.
    again = quick.stage("propose", waiting.run, candidate=first.uri)
    answer = ADA | {"answered_at": again.started_at.isoformat(), "proposal_sha256": approval.shown(waiting)}
    with pytest.raises(ApprovalReused):
        quick.stage("promote", waiting.run, **answer)
    assert quick.stage("promote", waiting.run, **ADA).facts["model_version"] == "2"


def test_a_planted_proposal_skips_nobody(quick: Any) -> None:
    """No flag of a proposal is believed, and it does not stand when `propose` runs."""
    quick.index()
    quick.promote(quick.registered(b"A").uri)
    quick.index()
    true = proposed(quick, index=switched(quick))
    assert (true.facts["needs_approval"], true.facts["doubts"]) == (False, [])
    prompt = quick.storage.put_bytes(f"{true.run}/propose/prompt.md", PROMPT.encode())
    planted = true.model_copy(update={"outputs": true.outputs | {"prompt": prompt}})
    quick.storage.write_manifest(planted)
    refused = quick.stage("promote", true.run, approved_by="policy")
    assert refused.status == "refused" and "a person's approval" in refused.reason
    assert quick.stage("promote", true.run, **ADA).facts["release"] == 2  # a refusal does not stand
    # A new model that says that it changes nothing, of a corpus that needs nobody.
    model = proposed(quick, candidate=quick.registered(b"BB", champion=1).uri)
    forge(quick, model, needs_approval=False, prompt_changed=False, corpus="free", doubts=[])
    assert quick.stage("promote", model.run, approved_by="policy").status == "refused"
    planted = forge(quick, model, needs_approval=False, body="planted")
    stands = quick.stage("propose", model.run, candidate=model.facts["candidate"])
    assert stands.facts["body"] != "planted" and stands.facts["needs_approval"] is True


def test_a_review_always_needs_a_person(quick: Any) -> None:
    quick.index()
    auto = quick.with_settings(auto_promote="default")
    candidate = quick.registered(b"A", verdict="review")
    assert candidate.facts["verdict"] == "review"
    waiting = proposed(auto, candidate=candidate.uri)
    assert waiting.facts["needs_approval"] is True and waiting.facts["verdict"] == "review"
    assert waiting.facts["subject"].endswith("(verdict: review)")
    assert "- The verdict is review: the interval is below zero" in waiting.facts["body"]
    forge(auto, waiting, needs_approval=False, verdict="promote", doubts=[])
    assert auto.stage("promote", waiting.run, approved_by="policy").status == "refused"
    assert auto.stage("promote", waiting.run, **ADA).facts["release"] == 1
    with pytest.raises(ManifestError, match="found refused"):
        quick.registered(b"CCC", verdict="hold", champion=1)


def test_what_was_rolled_back_comes_back_only_by_a_person(quick: Any) -> None:
    auto = quick.with_settings(auto_promote="default")
    auto.index()
    auto.promote(auto.registered(b"A").uri, approved_by="policy")
    bad = auto.index()
    auto.promote(index=switched(auto), approved_by="policy")
    auto.stage("roll_back", auto.run("roll_back"), release="1", reason="wrong answers", approved_by="Ada")
    # The bad index is the current one still.
    again = proposed(auto, index=switched(auto))
    assert (again.facts["index_version"], again.facts["needs_approval"]) == (bad, True)
    assert "This index version was live in release 2, which was rolled back: wrong answers" in again.facts["body"]
    forge(auto, again, needs_approval=False, doubts=[])
    assert auto.stage("promote", again.run, approved_by="policy").status == "refused"
    # Not so the next one.
    auto.index()
    assert proposed(auto, index=switched(auto)).facts["needs_approval"] is False
    auto.promote(index=switched(auto), approved_by="policy")
    # A model is released by its verdict, taken back, and trained again to the same bytes.
    auto.promote(auto.registered(b"BB", champion=4).uri, approved_by="policy")
    auto.stage("roll_back", auto.run("roll_back"), release="4", reason="rude", approved_by="Ada")
    again = proposed(auto, candidate=auto.registered(b"BB", champion=6).uri)
    assert again.facts["needs_approval"] is True
    assert again.facts["doubts"] == ["This model was live in release 5, which was rolled back: rude"]
    assert auto.stage("promote", again.run, approved_by="policy").status == "refused"
    assert auto.stage("promote", again.run, **ADA).facts["release"] == 7
    assert proposed(auto, candidate=auto.registered(b"CCC", champion=7).uri).facts["needs_approval"] is False


def test_another_prompt_or_index_than_the_measured_ones_needs_a_person(quick: Any, tmp_path: Any) -> None:
    measured = quick.index()
    early = quick.registered(b"A")
    current = quick.index()
    auto = quick.with_settings(auto_promote="default")
    waiting = proposed(auto, candidate=early.uri)
    told = f"The verdict was measured with index version {measured}, and index version {current} would go live."
    assert (waiting.facts["needs_approval"], waiting.facts["doubts"]) == (True, [told]) and told in waiting.facts[
        "body"
    ]
    assert auto.stage("promote", waiting.run, approved_by="policy").status == "refused"
    # A first release changes no prompt; it has one that nobody measured.
    (tmp_path / "prompt.md").write_text(PROMPT)
    other = auto.with_settings(prompt=str(tmp_path / "prompt.md"))
    waiting = proposed(other, candidate=quick.registered(b"A").uri)
    assert (waiting.facts["prompt_changed"], waiting.facts["needs_approval"]) == (False, True)
    assert "The verdict was measured with prompt " in waiting.facts["doubts"][0]
    unknown = quick.registered(b"A", measured={"prompt_sha256": None, "index_version": None})
    doubts = proposed(auto, candidate=unknown.uri).facts["doubts"]
    assert "with prompt unknown" in doubts[0] and "with no index" in doubts[1]


def test_a_run_reports_no_other_release_than_the_one_asked_for(quick: Any) -> None:
    quick.index()
    first = proposed(quick, candidate=quick.registered(b"A").uri)
    quick.stage("promote", first.run, **ADA)
    quick.promote(quick.registered(b"BB", champion=1).uri)
    quick.stage("propose", first.run, candidate=quick.registered(b"CCC", champion=2).uri)
    with pytest.raises(ReleaseError, match="made release 1 of an earlier proposal"):
        quick.stage("promote", first.run, **ADA)
    third = quick.promote(quick.registered(b"CCC", champion=2).uri)
    back = quick.run("roll_back")
    quick.stage("roll_back", back, release="2", **ADA)
    again = quick.stage("roll_back", back, release="2", **ADA)
    assert (again.facts["restores"], again.facts["made_before"]) == (2, True)
    with pytest.raises(ReleaseError, match="restores 2; live is release 4"):
        quick.stage("roll_back", back, release="1", **ADA)
    quick.stage("roll_back", quick.run("roll_back"), release=str(third.facts["release"]), **ADA)
    for release in ("0", "2"):  # the second incident, in the same run folder
        with pytest.raises(ReleaseError, match="live is release 5"):
            quick.stage("roll_back", back, release=release, **ADA)


def test_a_reason_that_is_too_long_is_refused_before_anything_is_written(quick: Any) -> None:
    quick.index()
    waiting = proposed(quick, candidate=quick.registered(b"A").uri)
    with pytest.raises(OptionError, match="reason"):
        quick.stage("promote", waiting.run, approved_by="Ada", reason="\N{GRINNING FACE}" * 2_001)
    with connect(quick.url) as connection:
        assert ledger.live(connection) is None
    quick.stage("promote", waiting.run, approved_by="Ada", reason="\N{GRINNING FACE}" * 2_000)
    quick.promote(quick.registered(b"BB", champion=1).uri)
    back = quick.run("roll_back")
    with pytest.raises(OptionError, match="reason"):
        quick.stage("roll_back", back, approved_by="Ada", reason="x" * 2_001)
    quick.stage("roll_back", back, approved_by="Ada", reason="\N{GRINNING FACE}" * 2_000)
    # Whoever reads the next form reads the beginning of it.
    assert proposed(quick, candidate=quick.registered(b"BB", champion=3).uri).facts["needs_approval"] is True


def test_what_was_approved_is_released_also_when_the_index_switched_meanwhile(quick: Any) -> None:
    shown = quick.index()
    waiting = proposed(quick, candidate=quick.registered(b"A").uri)
    quick.index()
    assert quick.stage("promote", waiting.run, **ADA).facts["index_version"] == shown
    quick.promote(index=switched(quick), approved_by="policy")
    late = quick.index()
    waiting = proposed(quick, index=switched(quick))
    quick.index()
    with pytest.raises(ReleaseError, match=f"index version {late} to be current still"):
        quick.stage("promote", waiting.run, approved_by="policy")  # nobody looked at that one: the newest, then
    waiting = proposed(quick, candidate=quick.registered(b"BB", champion=2).uri)
    lost = quick.current_index()
    quick.index()
    with connect(quick.url) as connection:
        connection.execute(f"DELETE FROM chunks_v{lost} WHERE chunk_id = '0'".encode())
    with pytest.raises(ReleaseError, match="expected 3 chunks"):
        quick.stage("promote", waiting.run, **ADA)


def test_evidence_without_its_sets_leads_nowhere(quick: Any) -> None:
    for sets in (None, {}, {"golden": {"sha256": "0" * 64}}, {"held_out": {"sha256": "0" * 64}}):
        run = quick.tuned(b"A", measured={"sets": sets})
        with pytest.raises(ReleaseError, match="expected evaluation sets with the held-out rows"):
            quick.registered(b"A", run=run)


def test_where_keys_are_set_only_what_register_signed_is_released(quick: Any) -> None:
    private, public = make_pair()
    keyed = quick.with_settings(signing_key=SecretStr(private), verify_key=public)
    quick.index()
    waiting = proposed(keyed, candidate=quick.registered(b"A").uri)  # consistent, and signed by nobody
    with pytest.raises(SignatureError, match="found no signature of them"):
        keyed.stage("promote", waiting.run, **ADA)
    signed = keyed.registered(b"A")
    forged = forge(keyed, signed, model_version="7")
    waiting = proposed(keyed, candidate=forged.uri)
    with pytest.raises(SignatureError, match="the signature of something else"):
        keyed.stage("promote", waiting.run, **ADA)
    keyed.promote(keyed.registered(b"A").uri)
    assert live(keyed).model_version == "1"


def test_the_ledger_is_free_while_bytes_are_read_and_what_moves_meanwhile_is_found(
    quick: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.release import proven

    quick.index()
    candidate = quick.registered(b"A")
    real = proven.verify
    free: list[bool] = []

    def verify(storage: Any, weights: Any) -> None:
        real(storage, weights)
        with connect(quick.url) as connection:
            row = connection.execute("SELECT pg_try_advisory_xact_lock(%s) AS free", (ledger._LOCK,)).fetchone()
        assert row is not None
        free.append(row["free"])
        if len(free) == 1:
            quick.storage.put_bytes(f"{weights.uri}/adapter_model.safetensors", b"B")

    monkeypatch.setattr(proven, "verify", verify)
    with pytest.raises((ReleaseError, ManifestError), match="changed at|sha256"):
        quick.promote(candidate.uri)
    quick.storage.put_bytes(f"{candidate.facts['weights_uri']}/adapter_model.safetensors", b"A")
    assert quick.promote(candidate.uri).facts["release"] == 1
    assert free == [True, True]
