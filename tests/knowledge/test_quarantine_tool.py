"""`python -m tasks quarantine`: what a person does about rejected documents."""

import json
from typing import Any

import pytest

from tasks.database import connect
from tasks.errors import DataError, OptionError
from tasks.knowledge.quarantine_tool import main
from tasks.storage import Storage
from tests.knowledge.syncing import Sync, current, document, rows_of

pytestmark = pytest.mark.integration
KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----"


@pytest.fixture
def held(sync: Sync) -> Sync:
    """A synced corpus with a document that holds a key, an empty one, and a copy."""
    sync.changes["MILLRACE_MAX_QUARANTINE_SHARE"] = "0.5"
    sync.write("key.md", document("mole", "worms") + "\n\n" + KEY)
    sync.write("empty.md", "")
    sync.write("owl-copy.md", document("owl", "mice"))
    sync.run("first")
    return sync


def rejection(uri: str) -> dict[str, Any]:
    with connect(vectors=False) as connection:
        row = connection.execute("SELECT * FROM quarantine WHERE item = %s ORDER BY id DESC LIMIT 1", (uri,)).fetchone()
    assert row is not None
    return row


def indexed() -> set[str]:
    return {row["document_uri"] for row in rows_of(current() or 0)}


def test_list_and_show_say_what_why_and_where_and_never_the_secret(
    held: Sync, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "file:key.md" in out
    assert "private_key" in out
    assert "3 of 3 rejections" in out
    assert main(["list", "--rule", "text_is_present"]) == 0
    assert "1 of 1" in capsys.readouterr().out
    assert main(["show", str(rejection("file:key.md")["id"])]) == 0
    out = capsys.readouterr().out
    assert "s3://" in out
    assert "MIIEow" not in out


def test_a_document_that_passes_again_is_indexed_without_its_source(
    held: Sync, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    assert main(["replay", "--rule", "private_key"]) == 0
    assert "file:key.md: still rejected, private_key" in capsys.readouterr().out
    policy = tmp_path / "screening.yaml"
    from tasks.screening import POLICY, load_policy
    from tasks.settings import repository_path

    text = repository_path(POLICY).read_text()
    assert "private_key:\n    action: block" in text
    policy.write_text(text.replace("private_key:\n    action: block", "private_key:\n    action: redact"))
    mended = load_policy(str(policy))
    monkeypatch.setattr("tasks.knowledge.examination.load_policy", lambda **_: mended)
    monkeypatch.setattr("tasks.knowledge.pipeline.load_policy", lambda **_: mended)
    assert main(["replay"]) == 0
    out = capsys.readouterr().out
    assert "file:key.md: passes" in out
    assert "file:empty.md: still rejected, text_is_present" in out
    read: list[str] = []
    from tasks.knowledge.sources.folder import Folder

    real = Folder.read

    def watched(self: Folder, item: Any, limit: int) -> bytes:
        read.append(item.uri)
        return real(self, item, limit)

    monkeypatch.setattr(Folder, "read", watched)
    held.run("second")
    assert "file:key.md" in indexed()
    assert "file:key.md" not in read, "its bytes came from quarantine"


def test_an_accepted_document_is_indexed_as_long_as_it_stays_the_same(held: Sync) -> None:
    number = str(rejection("file:key.md")["id"])
    with pytest.raises(OptionError, match="--by and --note"):
        main(["accept", number])
    assert main(["accept", number, "--by", "ada", "--note", "a key of the documentation"]) == 0
    second = held.run("second")
    assert second["list_documents"].counts["to_read"] == 1
    assert "file:key.md" in indexed()
    held.write("key.md", document("mole", "worms and roots") + "\n\n" + KEY)
    held.changes["MILLRACE_MAX_REMOVAL_SHARE"] = "0.5"
    held.run("third")
    assert "file:key.md" not in indexed(), "other bytes were not accepted"


def test_what_has_no_text_cannot_be_accepted_and_a_copy_can(held: Sync) -> None:
    with pytest.raises(DataError, match="no text of it to index"):
        main(["accept", str(rejection("file:empty.md")["id"]), "--by", "ada", "--note", "x"])
    copy = rejection("file:owl.md") if rejection_or_none("file:owl.md") else rejection("file:owl-copy.md")
    assert copy["rule"] == "text_is_new"
    assert main(["accept", str(copy["id"]), "--by", "ada", "--note", "both are asked for"]) == 0
    held.changes["MILLRACE_RETRIEVAL_MARGIN"] = "0.5"  # the original now stands second for its question
    held.run("second")
    assert {"file:owl.md", "file:owl-copy.md"} <= indexed()


def rejection_or_none(uri: str) -> bool:
    with connect(vectors=False) as connection:
        return connection.execute("SELECT 1 FROM quarantine WHERE item = %s", (uri,)).fetchone() is not None


def test_purge_deletes_bytes_and_excerpt_and_keeps_the_row(held: Sync) -> None:
    row = rejection("file:key.md")
    storage = Storage(held.environment["MILLRACE_S3_ENDPOINT_URL"])
    assert storage.exists(row["body_uri"])
    assert main(["purge", str(row["id"]), "--by", "ada", "--note", "a real key"]) == 0
    assert not storage.exists(row["body_uri"])
    after = rejection("file:key.md")
    assert (after["status"], after["excerpt"], after["body_uri"], after["decided_by"]) == ("purged", "", None, "ada")
    with pytest.raises(DataError, match="expected a held document, found 1: document, purged"):
        main(["replay", str(row["id"])])


def test_purge_leaves_no_words_of_the_document(sync: Sync) -> None:
    sync.write("odd.jsonl", json.dumps({"text": "hush, \x01 hush"}))
    refused = sync.run("first")["validate_documents"]
    assert "file:odd.jsonl: expected text without control characters" in str(refused.reason)
    assert "hush" not in str(refused.reason), "a manifest stays for days"
    row, storage = rejection("file:odd.jsonl"), Storage(sync.environment["MILLRACE_S3_ENDPOINT_URL"])
    assert "hush" in row["reason"]
    lists = [uri for uri, _size, _etag in storage.list(f"{sync.uri('first')}/") if storage.contains(uri, b"hush")]
    assert len(lists) == 2
    assert main(["purge", str(row["id"]), "--by", "ada", "--note", "a secret"]) == 0
    after = rejection("file:odd.jsonl")
    assert after["reason"] == "expected text without control characters (tab, line ends and form feed may stay)"
    assert not any(map(storage.exists, lists))


def test_text_with_nul_cannot_be_accepted(sync: Sync) -> None:
    sync.changes["MILLRACE_MAX_QUARANTINE_SHARE"] = "0.5"
    sync.write("nul.jsonl", json.dumps({"text": "two\x00words about moles and worms in the garden"}))
    sync.run("first")
    row = rejection("file:nul.jsonl")
    assert row["rule"] == "text_has_no_nul"
    with pytest.raises(DataError, match="Postgres cannot store NUL"):
        main(["accept", str(row["id"]), "--by", "ada", "--note", "x"])
    sync.write("mole.md", document("mole", "worms"))
    assert sync.run("second")["switch_index"].status == "complete"
    assert "file:mole.md" in indexed()


def test_replay_looks_at_the_newest_bytes(held: Sync, capsys: pytest.CaptureFixture[str]) -> None:
    held.write("key.md", "- - -")
    held.up_to("validate_documents", "second")
    assert main(["replay"]) == 0
    out = capsys.readouterr().out
    assert "file:key.md: still rejected, text_is_present" in out
    assert "private_key" not in out
    assert main(["replay", "--rule", "private_key"]) == 0
    assert "0 documents: none is held" in capsys.readouterr().out


def test_a_sync_closes_what_it_settled(held: Sync, capsys: pytest.CaptureFixture[str]) -> None:
    held.write("empty.md", "- - -")
    held.write("key.md", document("mole", "worms"))
    copy = min(uri for uri in ("file:owl.md", "file:owl-copy.md") if uri not in indexed())
    numbers = {uri: rejection(uri)["id"] for uri in ("file:empty.md", "file:key.md", copy)}
    held.run("second")
    with connect(vectors=False) as connection:
        found = {row["id"]: row for row in connection.execute("SELECT * FROM quarantine")}
    assert {uri: found[number]["status"] for uri, number in numbers.items()} == {
        "file:empty.md": "superseded",  # it breaks the rule with other bytes now
        "file:key.md": "superseded",  # it is indexed
        copy: "held",
    }
    assert held.uri("second") in found[numbers["file:key.md"]]["note"]
    assert rejection("file:empty.md")["status"] == "held"
    (held.corpus / "empty.md").unlink()
    third = held.run("third")
    assert third["validate_documents"].facts["noop"] is True
    assert rejection("file:empty.md")["status"] == "superseded", "it is gone"
    with pytest.raises(DataError, match="document, superseded"):
        main(["accept", str(numbers["file:key.md"]), "--by", "ada", "--note", "x"])
    capsys.readouterr()
    assert main(["list"]) == 0
    assert "1 of 1 rejections" in capsys.readouterr().out


def test_what_was_never_read_is_read_again_and_a_copy_waits_for_its_original(
    held: Sync, capsys: pytest.CaptureFixture[str]
) -> None:
    held.write("book.md", "\n\n".join(document(animal, "worms") for animal in ("mole", "hen", "rook")))
    held.changes["MILLRACE_MAX_DOCUMENT_MB"] = "0.008"
    held.run("second")
    row = rejection("file:book.md")
    assert (row["rule"], row["content_sha256"]) == ("document_is_not_huge", None)
    with pytest.raises(DataError, match="whose bytes were read"):
        main(["accept", str(row["id"]), "--by", "ada", "--note", "x"])
    held.changes["MILLRACE_MAX_DOCUMENT_MB"] = "1"
    assert main(["replay"]) == 0
    out = capsys.readouterr().out
    assert "file:book.md: was never read (document_is_not_huge); the next sync reads it" in out
    assert "is a copy (text_is_new: expected a text that no other document has" in out
    assert "4 documents: 2 still rejected, 1 never read, 1 copies" in out
    held.run("third")
    assert "file:book.md" in indexed()


def test_no_promise_for_a_run_that_did_not_end(sync: Sync, capsys: pytest.CaptureFixture[str]) -> None:
    sync.write("key.md", document("mole", "worms") + "\n\n" + KEY)
    assert sync.run("first")["validate_documents"].status == "refused"
    assert main(["accept", str(rejection("file:key.md")["id"]), "--by", "ada", "--note", "x"]) == 0
    assert "no finished sync left it so" in capsys.readouterr().out
    sync.run("second")
    assert "file:key.md" in indexed()


@pytest.mark.parametrize(
    "arguments", [["lst"], ["show"], ["list", "--rool", "x"], ["accept"], ["list", "--limit", "x"]]
)
def test_wrong_commands_are_told(arguments: list[str]) -> None:
    with pytest.raises(OptionError, match="Next"):
        main(arguments)


def test_a_row_that_is_not_there(held: Sync) -> None:
    with pytest.raises(DataError, match="rejection 4711"):
        main(["show", "4711"])


def test_a_decision_while_the_sync_still_runs_is_heard_by_the_next_one(sync: Sync) -> None:
    sync.changes["MILLRACE_MAX_QUARANTINE_SHARE"] = "0.5"
    sync.write("key.md", document("mole", "worms") + "\n\n" + KEY)
    sync.up_to("check_index", "first")
    number = rejection("file:key.md")["id"]
    assert main(["accept", str(number), "--by", "ada", "--note", "a key of an example"]) == 0
    sync.stage("switch_index", "first")
    assert "file:key.md" not in indexed()
    sync.run("second")
    assert "file:key.md" in indexed()


def test_an_acceptance_of_an_earlier_rejection_is_heard_by_the_next_sync(held: Sync) -> None:
    number = rejection("file:key.md")["id"]
    held.changes["MILLRACE_CHUNK_TOKENS"] = "100"  # another pipeline: all is read, and rejected, again
    for part in held.stage("list_documents", "second").facts["parts"]:
        held.stage("read_documents", "second", part)
    assert main(["accept", str(number), "--by", "ada", "--note", "a key of an example"]) == 0
    for part in held.stage("validate_documents", "second").facts["parts"]:
        held.stage("index_documents", "second", part)
    held.stage("check_index", "second")
    held.stage("switch_index", "second")
    held.run("third")
    assert "file:key.md" in indexed()


def test_a_rejected_chunk_is_settled_when_its_document_is_read_again(sync: Sync) -> None:
    repeated = document("mole", "worms")
    sync.write("mole.md", repeated + "\n\n" + repeated)
    sync.run("first")
    chunks = "SELECT status FROM quarantine WHERE kind = 'chunk' AND item LIKE 'file:mole.md#%'"
    with connect(vectors=False) as connection:
        assert {row["status"] for row in connection.execute(chunks)} == {"held"}
    sync.write("mole.md", document("mole", "beetles"))
    sync.run("second")
    with connect(vectors=False) as connection:
        assert {row["status"] for row in connection.execute(chunks)} == {"superseded"}
