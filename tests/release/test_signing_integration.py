"""Signatures on a real Postgres and S3: every way to a release signs it, and nothing that was changed is loaded or released from."""

from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from tasks.contracts import Artifact, Manifest
from tasks.database import connect
from tasks.errors import SignatureError
from tasks.evaluation import evaluate
from tasks.release import ledger, signing
from tasks.release.sign_release import sign_release
from tasks.release.signing_keys import make_pair
from tasks.serving.connection import KeptConnection
from tasks.serving.releases import Loaded, Releases
from tasks.stage import Stage, StageContext, StageOptions, StageResult
from tasks.training.recipes import load_recipe

pytestmark = pytest.mark.integration


@pytest.fixture
def plain(quick: Any) -> Any:
    """The house without keys."""
    return quick


@pytest.fixture
def signed(plain: Any) -> Any:
    """The same with a pair of keys."""
    private, public = make_pair()
    return plain.with_settings(signing_key=SecretStr(private), verify_key=public)


def candidate(house: Any, weights: bytes, champion: int | None = None) -> str:
    return str(house.registered(weights, champion=champion).uri)


def new_index(house: Any) -> str:
    """Make an index version current; return the manifest of its switch."""
    house.index()
    stage = Stage("switch_index", StageOptions, lambda context, options: StageResult())
    return str(house.stage(stage, house.run("sync_knowledge")).uri)


def rows(house: Any, query: str) -> list[dict[str, Any]]:
    with connect(house.url) as connection:
        return connection.execute(query.encode()).fetchall()


def verify(house: Any, number: int) -> Any:
    with connect(house.url) as connection:
        return signing.verify(house.settings, house.storage, connection, ledger.get(connection, number))


def forge(house: Any, assignment: str, number: int) -> None:
    """Change a row of the ledger as its owner can who removes the trigger first."""
    with connect(house.url) as connection:
        connection.execute(b"ALTER TABLE releases DISABLE TRIGGER USER")
        connection.execute(f"UPDATE releases SET {assignment} WHERE release = {number}".encode())
        connection.execute(b"ALTER TABLE releases ENABLE TRIGGER USER")


def follow(house: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Releases, list[str]]:
    """Return what an assistant loads releases with, and what was fetched for them: it gets no further than that."""
    fetched: list[str] = []

    def fetch(_storage: Any, uri: str, *_: Any) -> Any:
        fetched.append(uri)
        raise RuntimeError("far enough")

    monkeypatch.setattr("tasks.serving.loading.fetch_adapter", fetch)
    monkeypatch.setattr("tasks.serving.loading.Loader._embedder", lambda *_: None)
    monkeypatch.setattr("tasks.serving.loading.parse_prompt", lambda text, _: Prompt(text))
    return Releases(house.settings, KeptConnection(house.url), threads=1), fetched


class Prompt:
    """Any text, with the digest that `promote` gives it."""

    def __init__(self, text: str) -> None:
        import hashlib

        self.sha256 = hashlib.sha256(text.encode()).hexdigest()


def test_every_way_to_a_release_signs_it_and_nothing_that_was_changed_is_used(
    signed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed.index()
    signed.promote(candidate(signed, b"one"))
    signed.promote(candidate(signed, b"three", champion=1))
    signed.stage("roll_back", signed.run("roll_back"), reason="worse", approved_by="Ada", release="1")
    signed.promote(index=new_index(signed))
    found = rows(signed, "SELECT * FROM release_signatures JOIN release_boms USING (release) ORDER BY release")
    assert [row["signed_by"] for row in found] == ["promote", "promote", "roll_back", "promote"]
    boms = [row["sha256"] for row in found]
    assert boms[2] == boms[0] and len(set(boms)) == 3  # what is restored has the bill that it had
    for row in found:
        assert verify(signed, row["release"]).kind == "adapter"
        signed.storage.get(Artifact(**{name: row[name] for name in ("uri", "sha256", "bytes")}))
    for table in ("release_signatures", "release_boms"):
        for statement in (f"DELETE FROM {table}", f"UPDATE {table} SET release = release", f"TRUNCATE {table}"):
            with pytest.raises(psycopg.errors.RaiseException, match="only added to"), connect(signed.url) as connection:
                connection.execute(statement.encode())
    what_was_changed_is_not_loaded(signed, monkeypatch)
    nor_is_anything_made_of_it(signed)
    assert len(rows(signed, "SELECT 1 FROM releases")) == 4


def what_was_changed_is_not_loaded(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    releases, fetched = follow(house, monkeypatch)
    with connect(house.url) as connection:
        two, now = ledger.get(connection, 2), ledger.get(connection, 4)
    old = Loaded(two, None, None, SimpleNamespace(close=lambda: None), None)  # type: ignore[arg-type]
    releases.put_live(old)
    releases.poll()
    assert fetched == [now.adapter_uri], "what is as it was signed is fetched"
    fetched.clear()
    evidence = house.storage.get_bytes(now.evidence_uri)
    house.storage.put_bytes(now.evidence_uri, evidence[:-1] + b" ")
    releases._switch(now)
    assert "release 4 is not what was signed" in str(releases.problem) and releases.live is old and not fetched
    house.storage.put_bytes(now.evidence_uri, evidence)
    # Somebody else's weights and evidence under the newest number: in itself the row is consistent.
    same = ("adapter_uri", "adapter_sha256", "evidence_uri", "evidence_sha256")
    forge(house, ", ".join(f"{name} = '{getattr(two, name)}'" for name in same), 4)
    with connect(house.url) as connection:
        releases._switch(ledger.get(connection, 4))
    assert "as it was signed" in str(releases.problem) and releases.live is old and not fetched
    releases.close()


def nor_is_anything_made_of_it(house: Any) -> None:
    """No comparison with it, no release with its model, no way back to it."""
    with pytest.raises(SignatureError, match="of release 4"):
        evaluate_against(house)
    with pytest.raises(SignatureError, match="of release 4"):
        house.promote(index=new_index(house))
    forge(house, "reason = 'another'", 2)
    with pytest.raises(SignatureError, match="predicate.release.reason as it was signed of release 2"):
        house.stage("roll_back", house.run("roll_back"), reason="worse", approved_by="Ada", release="2")


def evaluate_against(house: Any) -> None:
    """Run evaluation as far as the champion."""

    class Context(StageContext):
        def input(self, stage: str, output: str) -> Artifact:
            body = load_recipe("demo").model_dump(mode="json") if output == "recipe" else {}
            return house.storage.put_json(f"{house.run('fine_tune')}/{output}.json", body)  # type: ignore[no-any-return]

    train = Manifest.model_validate(house.storage.require_manifest(house.tuned(b"other"), "train").model_dump())
    evaluate.run(
        Context(house.settings, house.storage, "s3://x", "evaluate", None, {"train": train}), evaluate.Options()
    )


def test_releases_from_before_there_was_a_key_are_signed_by_a_person(plain: Any, signed: Any) -> None:
    plain.index()
    plain.promote(candidate(plain, b"one"))
    assert verify(plain, 1) is None and not rows(plain, "SELECT 1 FROM release_signatures")
    with pytest.raises(SignatureError, match="found none; it is not loaded"):
        verify(signed, 1)
    assert "is signed with key" in sign_release(signed.settings, 1, "Ada")
    assert verify(signed, 1) is not None
    assert "already" in sign_release(signed.settings, 1, "Eve")
    assert rows(plain, "SELECT signed_by FROM release_signatures") == [{"signed_by": "Ada"}]
    # A new key: while the old one is accepted, what it signed is signed anew only if it holds.
    private, public = make_pair()
    both = signed.with_settings(signing_key=SecretStr(private), verify_key=f"{signed.settings.verify_key},{public}")
    sign_release(both.settings, 1, "Ada")
    assert verify(signed.with_settings(verify_key=public), 1) is not None
    # Where signatures are checked, nothing is released that nobody could load.
    run = signed.run("promote_release")
    signed.stage("propose", run, candidate=candidate(signed, b"three", champion=1))
    for own in (signed.with_settings(signing_key=None), signed.with_settings(verify_key=public)):
        with pytest.raises(SignatureError, match="nobody could load|expected the registration"):
            own.stage("promote", run, approved_by="Ada", reason="better")
    assert len(rows(plain, "SELECT 1 FROM releases")) == 1
