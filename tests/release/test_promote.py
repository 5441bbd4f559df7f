"""Releases end to end, on a real Postgres, S3 and MLflow: register, propose, promote, roll back."""

import hashlib
from typing import Any

import psycopg
import pytest

from tasks import models
from tasks.contracts import Manifest
from tasks.database import connect
from tasks.errors import ManifestError, OptionError, PartGone, ReleaseError
from tasks.release import approval, ledger, promote
from tasks.release.mirror import reconcile_mirrors
from tasks.stage import Stage, StageOptions, StageResult

PROMPT = "---\nname: short\nversion: 1\n---\n{question}\n\n{context}\n\nAnswer in one word.\n"
pytestmark = pytest.mark.integration


def live(house: Any) -> ledger.Release | None:
    with connect(house.url) as connection:
        return ledger.live(connection)


def mirrored(house: Any) -> list[int]:
    with connect(house.url) as connection:
        return [r["release"] for r in connection.execute("SELECT release FROM release_mirrors ORDER BY release")]


def alias(house: Any, name: str) -> str:
    return str(house.mlflow().get_model_version_by_alias(house.settings.model_name, name).version)


def test_an_adapter_is_registered_once_and_its_bytes_can_be_downloaded(house: Any, tmp_path: Any) -> None:
    first, second = house.candidate(b"one"), house.candidate(b"one")
    other = house.candidate(b"two")
    assert first.facts["model_version"] == second.facts["model_version"] == "1"
    assert (first.facts["new_version"], second.facts["new_version"]) == (True, False)
    assert (other.facts["model_version"], alias(house, "candidate")) == ("2", "2")
    version = house.mlflow().get_model_version(house.settings.model_name, "2")
    assert version.tags["manifest"] == other.uri
    # What MLflow names is what was verified: the same bytes come back through the registry.
    uri = house.mlflow().get_model_version_download_uri(house.settings.model_name, "2")
    assert house.storage.get_bytes(f"{uri}/adapter_model.safetensors") == b"two"


def test_other_bytes_where_a_registered_adapter_stood_are_refused(house: Any) -> None:
    tuned = house.tuned(b"one")
    first = house.stage("register", tuned)
    client = house.mlflow()
    client.set_model_version_tag(house.settings.model_name, first.facts["model_version"], "adapter_sha256", "0" * 64)
    with pytest.raises(ReleaseError, match="who rewrote that folder"):
        house.candidate(b"one")


def test_a_refused_gate_leads_nowhere(house: Any) -> None:
    with pytest.raises(ManifestError, match="found refused"):
        house.stage("register", house.tuned(b"one", verdict="hold"))


def test_a_verdict_about_other_bytes_leads_nowhere(house: Any) -> None:
    for name in ("weights_sha256", "held_out_sha256"):
        with pytest.raises(ReleaseError, match="a verdict about its own bytes"):
            house.stage("register", house.tuned(b"one", gate_facts={name: "0" * 64}))


def test_a_gate_that_read_an_earlier_attempt_is_refused(house: Any) -> None:
    """The gate's own inputs bind it to the outputs of train, whatever its facts say."""
    run = house.tuned(b"one")
    gate = house.storage.require_manifest(run, "gate")
    seen = gate.inputs["train/adapter/adapter_model.safetensors"]
    inputs = gate.inputs | {"train/adapter/adapter_model.safetensors": seen.model_copy(update={"sha256": "0" * 64})}
    house.storage.write_manifest(gate.model_copy(update={"inputs": inputs}))
    with pytest.raises(ReleaseError, match="a verdict about its own bytes"):
        house.stage("register", run)


def test_a_model_needs_an_index_first(house: Any) -> None:
    candidate = house.candidate(b"one")
    with pytest.raises(ReleaseError, match="Next: trigger sync_knowledge"):
        house.stage("propose", house.run("promote_release"), candidate=candidate.uri)


def test_an_index_alone_is_no_release_before_the_first_model(house: Any) -> None:
    house.index()
    manifest = house.stage("propose", house.run("promote_release"))
    assert manifest.status == "refused" and "no model was released yet" in manifest.reason


def test_promote_roll_back_and_promote_again(house: Any) -> None:
    house.index()
    one = house.promote(house.candidate(b"one").uri)
    assert (one.facts["release"], one.facts["model_version"], alias(house, "champion")) == (1, "1", "1")
    two = house.promote(house.candidate(b"two", champion=1).uri)
    assert (two.facts["release"], alias(house, "champion"), alias(house, "previous")) == (2, "2", "1")

    back = house.stage("roll_back", house.run("roll_back"), reason="worse answers", approved_by="Ada")
    assert (back.facts["release"], back.facts["restores"], back.facts["model_version"]) == (3, 1, "1")
    assert alias(house, "champion") == "1"
    with pytest.raises(ReleaseError, match="answers differently, found none"):  # 0 never leads forward again
        house.stage("roll_back", house.run("roll_back"), reason="again", approved_by="Ada")

    again = house.promote(house.candidate(b"two", champion=3).uri)
    assert (again.facts["release"], again.facts["model_version"], alias(house, "champion")) == (4, "2", "2")
    assert mirrored(house) == [1, 2, 3, 4]
    now = live(house)
    assert now is not None and now.kind == "promotion" and now.approved_by == "Ada"


def test_the_form_says_that_an_adapter_was_rolled_back(house: Any) -> None:
    house.index()
    house.promote(house.candidate(b"one").uri)
    house.promote(house.candidate(b"two", champion=1).uri)
    house.stage("roll_back", house.run("roll_back"), reason="worse answers", approved_by="Ada", release="1")
    proposal = house.stage("propose", house.run("promote_release"), candidate=house.candidate(b"two", champion=3).uri)
    assert "this adapter was live before, in release 2" in proposal.facts["body"]


def test_one_run_makes_one_release(house: Any) -> None:
    house.index()
    run = house.run("promote_release")
    house.stage("propose", run, candidate=house.candidate(b"one").uri)
    first = house.stage("promote", run, approved_by="Ada", reason="a")
    second = house.stage("promote", run, approved_by="Ada", reason="b")  # another fingerprint: it runs again
    assert first.facts["release"] == second.facts["release"] == 1 and second.facts["made_before"] is True


def test_a_changed_byte_is_refused_and_nothing_is_released(house: Any) -> None:
    house.index()
    candidate = house.candidate(b"one")
    run = house.run("promote_release")
    house.stage("propose", run, candidate=candidate.uri)
    uri = f"{candidate.facts['adapter_uri']}/adapter_model.safetensors"
    forge(house, uri, b"0ne")  # the same length, and the recorded digest of the right bytes
    with pytest.raises(ManifestError, match="sha256"):
        house.stage("promote", run, approved_by="Ada", reason="better")
    assert live(house) is None


def forge(house: Any, uri: str, body: bytes) -> None:
    """Put other bytes at `uri`, with the metadata that hides it from a HEAD request."""
    bucket, key = uri.removeprefix("s3://").split("/", 1)
    metadata = house.storage._client.head_object(Bucket=bucket, Key=key)["Metadata"]
    house.storage._client.put_object(Bucket=bucket, Key=key, Body=body, Metadata=metadata)


def test_a_changed_byte_stops_a_rollback(house: Any) -> None:
    house.index()
    candidate = house.candidate(b"one")
    house.promote(candidate.uri)
    house.promote(house.candidate(b"two", champion=1).uri)
    forge(house, f"{candidate.facts['adapter_uri']}/adapter_model.safetensors", b"0ne")
    with pytest.raises(PartGone, match="sha256"):
        house.stage("roll_back", house.run("roll_back"), reason="worse", approved_by="Ada")
    assert getattr(live(house), "release", None) == 2


def test_promote_alone_is_impossible(house: Any) -> None:
    house.index()
    with pytest.raises(ManifestError, match="found no manifest"):
        house.stage("promote", house.run("promote_release"), approved_by="Ada")


def test_a_verdict_that_changed_after_registration_is_refused(house: Any) -> None:
    house.index()
    tuned = house.tuned(b"one")
    register = house.stage("register", tuned)
    run = house.run("promote_release")
    house.stage("propose", run, candidate=register.uri)
    gate: Manifest = house.storage.require_manifest(tuned, "gate")
    for changes, problem in (
        ({"facts": gate.facts | {"reason": "another"}}, ReleaseError),
        ({"facts": gate.facts | {"verdict": "hold"}}, ReleaseError),
        ({"status": "refused", "reason": "worse"}, ManifestError),
    ):
        house.storage.write_manifest(gate.model_copy(update=changes))
        with pytest.raises(problem):
            house.stage("promote", run, approved_by="Ada", reason="better")
    assert live(house) is None


def test_a_model_is_never_released_by_policy(house: Any) -> None:
    house.index()
    candidate = house.candidate(b"one")
    for nobody in ("", "  ", promote.POLICY):
        manifest = house.promote(candidate.uri, approved_by=nobody)
        assert manifest.status == "refused" and "a person's approval" in manifest.reason
    assert live(house) is None


def test_a_verdict_against_another_champion_is_stale(house: Any) -> None:
    house.index()
    late = house.candidate(b"late")  # compared with no model
    house.promote(house.candidate(b"one").uri)
    with pytest.raises(ReleaseError, match="Next: trigger fine_tune again"):
        house.promote(late.uri)


def test_promote_asks_for_a_fair_comparison_itself(house: Any) -> None:
    """A proposal of another hand may say what it likes: promote reads the verdict again."""
    house.index()
    late = house.candidate(b"late")
    house.promote(house.candidate(b"one").uri)
    run = house.run("promote_release")
    house.stage("propose", run, candidate=house.candidate(b"two", champion=1).uri)
    proposal: Manifest = house.storage.require_manifest(run, "propose")
    pins = {"candidate_sha256": approval.shown(late), "weights_sha256": late.facts["weights_sha256"]}
    forged = proposal.model_copy(update={"facts": proposal.facts | pins | {"candidate": late.uri}})
    house.storage.write_manifest(forged)
    with pytest.raises(ReleaseError, match="Next: trigger fine_tune again"):
        house.stage("promote", run, approved_by="Ada", reason="better")


def test_a_proposal_made_before_another_release_is_stale(house: Any) -> None:
    house.index()
    house.promote(house.candidate(b"one").uri)
    waiting, two = house.run("promote_release"), house.candidate(b"two", champion=1)
    house.stage("propose", waiting, candidate=two.uri)
    house.index()
    switched = house.stage(Stage("switch_index", StageOptions, lambda *_: StageResult()), house.run("sync_knowledge"))
    assert house.promote(index=switched.uri, approved_by="").facts["release"] == 2  # the nightly index, by policy
    with pytest.raises(ReleaseError, match="release 1 to be live still"):
        house.stage("promote", waiting, approved_by="Ada", reason="better")
    assert getattr(live(house), "model_version", None) == "1"


def test_a_new_index_keeps_the_model_and_needs_nobody(house: Any) -> None:
    house.index()
    candidate = house.candidate(b"one")
    one, one_tuned = house.promote(candidate.uri), f"{candidate.run}/"
    version = house.index()
    run = house.run("promote_release")
    house.storage.delete_prefix(one_tuned)  # housekeeping retires run folders; the live model needs none
    proposal = house.stage("propose", run)
    assert (proposal.facts["kind"], proposal.facts["needs_approval"]) == ("index", False)
    two = house.stage("promote", run, approved_by=promote.POLICY)
    assert two.facts["index_version"] == version and two.facts["adapter_sha256"] == one.facts["adapter_sha256"]
    assert two.facts["approved_by"] == promote.POLICY
    again = house.stage("propose", house.run("promote_release"))
    assert again.status == "refused" and "already answers" in again.reason
    strict = house.with_settings(approval="always")
    house.index()
    assert strict.stage("propose", house.run("promote_release")).facts["needs_approval"] is True


def test_the_event_of_an_older_index_releases_the_current_one(house: Any) -> None:
    house.index()
    house.promote(house.candidate(b"one").uri)
    run = house.run("sync_knowledge")
    switched = house.stage(Stage("switch_index", StageOptions, lambda *_: StageResult(facts={"version": 1})), run)
    newer = house.index()
    proposal = house.stage("propose", house.run("promote_release"), index=switched.uri)
    assert proposal.facts["index_version"] == newer
    with pytest.raises(ReleaseError, match="expected the manifest of a register stage"):
        house.stage("propose", house.run("promote_release"), candidate=switched.uri)


def test_a_new_prompt_rides_along_and_needs_a_person(house: Any, tmp_path: Any) -> None:
    house.index()
    house.promote(house.candidate(b"one").uri)
    (tmp_path / "prompt.md").write_text(PROMPT)
    other = house.with_settings(prompt=str(tmp_path / "prompt.md"))
    run = house.run("promote_release")
    proposal = other.stage("propose", run)
    assert (proposal.facts["kind"], proposal.facts["needs_approval"]) == ("index", True)
    assert other.stage("promote", run, approved_by="Ada", reason="better").facts["release"] == 2
    assert getattr(live(house), "prompt", None) == PROMPT
    (tmp_path / "prompt.md").write_text("Answer in one word.")
    with pytest.raises(ReleaseError, match="front matter"):
        other.stage("propose", house.run("promote_release"))


def test_an_index_that_lost_chunks_is_refused(house: Any) -> None:
    version = house.index()
    candidate = house.candidate(b"one")
    with connect(house.url) as connection:
        connection.execute(f"DELETE FROM chunks_v{version} WHERE chunk_id = '0'".encode())
    with pytest.raises(ReleaseError, match="expected 3 chunks"):
        house.promote(candidate.uri)


def test_with_mlflow_away_the_row_stands_and_is_mirrored_later(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    house.index()
    run = house.run("promote_release")
    house.stage("propose", run, candidate=house.candidate(b"one").uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = house.with_settings(mlflow_tracking_uri="http://127.0.0.1:9")
    made = away.stage("promote", run, approved_by="Ada", reason="better")
    assert made.facts["release"] == 1 and "MLflow" in made.facts["mirror_problem"]
    assert mirrored(house) == []
    announced = away.stage("announce", run)
    text = house.storage.get(announced.outputs["announcement"]).decode()
    assert "# Release 1" in text and "MLflow does not show it yet" in text

    assert reconcile_mirrors(house.settings).mirrored == (1,)
    assert (alias(house, "champion"), mirrored(house)) == ("1", [1])
    assert reconcile_mirrors(house.settings).mirrored == ()


def test_the_ledger_refuses_changes(house: Any) -> None:
    house.index()
    house.promote(house.candidate(b"one").uri)
    for statement in ("UPDATE releases SET reason = 'x'", "DELETE FROM releases", "TRUNCATE releases CASCADE"):
        with connect(house.url) as connection, pytest.raises(psycopg.errors.RaiseException, match="only added to"):
            connection.execute(statement.encode())
        assert getattr(live(house), "reason", None) == "better"


def test_a_whole_model_is_released_as_its_own_base(house: Any) -> None:
    house.index()
    candidate = house.candidate(b"whole", kind="model")
    assert (candidate.facts["weights"], candidate.facts["trained_from"]) == ("model", "package:tests/base")
    assert house.candidate(b"whole", kind="model").facts["new_version"] is False
    house.promote(candidate.uri)
    release = live(house)
    assert release is not None
    assert (release.adapter_uri, release.adapter_sha256) == (None, None)
    assert release.base_model == candidate.facts["weights_uri"]
    assert release.base_revision == models.revision_of({"model.safetensors": hashlib.sha256(b"whole").hexdigest()})
    assert alias(house, "champion") == "1"
    # Neither of the two has an adapter: they are told apart by the model.
    with pytest.raises(ReleaseError, match="found one against release none"):
        house.promote(house.candidate(b"other", kind="model").uri)
    other = house.promote(house.candidate(b"other", kind="model", champion=1).uri)
    assert (other.facts["release"], other.facts["adapter_sha256"]) == (2, None)
    assert "already answers" in house.stage("propose", house.run("promote_release")).reason
    # Then an adapter upon a base model, and a new index under a whole model.
    assert house.promote(house.candidate(b"one", champion=2).uri).facts["adapter_sha256"] is not None
    back = house.stage("roll_back", house.run("roll_back"), reason="worse", approved_by="Ada", release="1")
    assert back.facts["base_model"] == release.base_model
    body = house.stage("propose", house.run("promote_release"), candidate=house.candidate(b"one", champion=4).uri)
    assert "| adapter | none (whole model) |" in body.facts["body"] and "this adapter was live" in body.facts["body"]
    house.index()
    switched = house.stage(Stage("switch_index", StageOptions, lambda *_: StageResult()), house.run("sync_knowledge"))
    assert house.promote(index=switched.uri).facts["base_revision"] == release.base_revision


def test_a_changed_or_added_file_of_a_whole_model_is_refused(house: Any) -> None:
    house.index()
    candidate = house.candidate(b"whole", kind="model")
    folder = candidate.facts["weights_uri"]
    house.storage.put_bytes(f"{folder}/added.safetensors", b"more")
    with pytest.raises(ManifestError, match="found .*added.safetensors too"):
        house.promote(candidate.uri)
    house.storage.delete_prefix(f"{folder}/added.safetensors")
    forge(house, f"{folder}/model.safetensors", b"wh0le")
    with pytest.raises(ManifestError, match="sha256"):
        house.promote(candidate.uri)
    forge(house, f"{folder}/model.safetensors", b"whole")
    register = candidate.model_copy(update={"facts": candidate.facts | {"base_revision": "0" * 64}})
    house.storage.write_manifest(register)
    with pytest.raises(ReleaseError, match="expected base_revision"):
        house.promote(candidate.uri)
    assert live(house) is None


def test_a_verdict_from_before_kinds_were_named_still_counts(house: Any) -> None:
    house.index()
    run = house.tuned(b"one")
    for stage in ("train", "evaluate", "gate"):
        manifest: Manifest = house.storage.require_manifest(run, stage)
        facts = {name.replace("weights_", "adapter_"): value for name, value in manifest.facts.items()}
        facts.pop("weights", None)
        house.storage.write_manifest(manifest.model_copy(update={"facts": facts}))
    assert house.promote(house.stage("register", run).uri).facts["release"] == 1


def test_bad_rollbacks_are_told(house: Any) -> None:
    def back(**options: str) -> Manifest:
        manifest: Manifest = house.stage("roll_back", house.run("roll_back"), **options)
        return manifest

    with pytest.raises(ReleaseError, match="release a candidate first"):
        back(reason="r", approved_by="Ada")
    house.index()
    house.promote(house.candidate(b"one").uri)
    with pytest.raises(ReleaseError, match="1 to 1"):
        back(release="7", reason="r", approved_by="Ada")
    with pytest.raises(ReleaseError, match="which is live"):
        back(release="1", reason="r", approved_by="Ada")
    with pytest.raises(OptionError, match="reason"):
        back(release="1", reason="", approved_by="Ada")
