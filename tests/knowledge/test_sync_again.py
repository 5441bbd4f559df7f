"""What a sync reads again, what it keeps and tells, and how a run goes on after its parts or its version changed."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from tasks.database import connect
from tasks.errors import DataError, ManifestError, TryAgain
from tasks.knowledge import check_index, index_documents, index_tables
from tasks.knowledge.sources import Folder, Item
from tasks.knowledge.sources.base import moved, unreadable
from tasks.storage import Storage
from tests.knowledge.syncing import ANIMALS, Sync, current, document, rows_of

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def lenient(sync: Sync) -> None:
    sync.changes["MILLRACE_MAX_QUARANTINE_SHARE"] = "0.5"


def storage(sync: Sync) -> Storage:
    return Storage(sync.environment["MILLRACE_S3_ENDPOINT_URL"])


def indexed() -> set[str]:
    return {row["document_uri"] for row in rows_of(current() or 0)}


@pytest.mark.parametrize("why", ["readable", "still"])
def test_what_could_not_be_read_is_read_again(sync: Sync, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    sync.write("mole.md", document("mole", "worms"))
    read = Folder.read

    def refused(self: Folder, item: Item, limit: int) -> bytes:
        if item.uri == "file:mole.md":
            raise unreadable(item.uri, "Permission denied") if why == "readable" else moved(item, "another")
        return read(self, item, limit)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read", refused)
        assert sync.run("first")["validate_documents"].counts["quarantined"] == 1
        again = sync.run("again")
        assert again["list_documents"].counts["to_read"] == 1
        assert again["switch_index"].facts["noop"] is True, "it is still rejected, and nothing else changed"
    assert "file:mole.md" not in indexed()
    sync.run("third")
    assert "file:mole.md" in indexed()


def test_what_was_too_large_is_read_once_the_limit_allows_it(sync: Sync) -> None:
    sync.write("mole.md", document("mole", "worms") * 20)
    sync.changes["MILLRACE_MAX_DOCUMENT_MB"] = "0.02"
    assert sync.run("first")["read_documents-0000"].counts["rejected"] == 1
    assert sync.run("second")["list_documents"].counts["to_read"] == 0
    sync.changes["MILLRACE_MAX_DOCUMENT_MB"] = "1"
    assert sync.run("third")["list_documents"].counts["to_read"] == 1
    assert "file:mole.md" in indexed()


def test_an_indexed_document_that_does_not_hold_still_stays_until_the_next_sync(sync: Sync) -> None:
    sync.run("first")
    before = [row for row in rows_of(current() or 0) if row["document_uri"] == "file:owl.md"]
    sync.write("owl.md", document("owl", "frogs"))
    sync.write("fox.md", document("fox", "hens"))
    sync.stage("list_documents", "second")
    sync.write("owl.md", document("owl", "newts and toads"))
    second = sync.run("second")
    counts = second["read_documents-0000"].counts
    assert (counts["moving"], counts["good"], counts["rejected"]) == (1, 1, 0)
    assert current() == second["check_index"].facts["version"], "built for the fox"
    assert [row for row in rows_of(current() or 0) if row["document_uri"] == "file:owl.md"] == before
    third = sync.run("third")
    assert (third["list_documents"].counts["to_read"], third["validate_documents"].counts["changed"]) == (1, 1)
    assert any("toads" in row["text"] for row in rows_of(current() or 0) if row["document_uri"] == "file:owl.md")


def test_golden_documents_that_are_not_there_and_questions_asked_twice_are_told(
    sync: Sync, caplog: pytest.LogCaptureFixture
) -> None:
    sync.write("mole.md", "")  # listed, and rejected
    more = [
        {"id": "two", "question": "Who hunts mice?", "documents": ["file:owl.md", "file:lost.md"]},
        {"id": "again", "question": "who hunts  MICE?", "documents": ["file:owl.md"]},
        {"id": "mole", "question": "Who hunts rabbits?", "documents": ["file:fox.md", "file:mole.md"]},
    ]
    with sync.golden.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in more)
    sync.changes["MILLRACE_MIN_RECALL_AT_5"] = "0.5"
    with caplog.at_level(logging.WARNING):
        done = sync.run("first")
    listed = done["list_documents"].counts
    assert (listed["golden_missing"], listed["golden_repeated"]) == (1, 1)
    assert "golden question two names file:lost.md, which is not in the corpus" in caplog.text
    assert "golden question again asks the same as two" in caplog.text
    assert done["check_index"].counts["golden_absent"] == 2
    report = storage(sync).get_json(done["check_index"].outputs["report"])
    assert report["golden_absent"] == ["file:lost.md", "file:mole.md"]
    assert sync.run("noop")["check_index"].counts["golden_absent"] == 2


def test_a_run_that_is_listed_again_with_fewer_parts_goes_on(sync: Sync) -> None:
    sync.changes["MILLRACE_SHARD_DOCUMENTS"] = "2"
    assert sync.up_to("index_documents", "first") == ["0000", "0001", "0002"]
    sync.changes["MILLRACE_SHARD_DOCUMENTS"] = "6"
    done = sync.run("first")
    assert done["list_documents"].facts["parts"] == done["validate_documents"].facts["parts"] == ["0000"]
    assert current() == done["switch_index"].facts["version"]


def test_a_document_that_was_put_back_is_indexed_as_it_was(sync: Sync) -> None:
    former = sync.run("first")["check_index"].facts["version"]
    before = (sync.corpus / "owl.md").read_bytes(), (sync.corpus / "owl.md").stat()
    sync.write("owl.md", document("owl", "voles"))
    sync.write("fox.md", document("fox", "geese"))
    sync.up_to("index_documents", "second")
    sync.write("owl.md", before[0])
    os.utime(sync.corpus / "owl.md", ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
    sync.changes["MILLRACE_MAX_DOCUMENT_MB"] = "9"  # listed again: another option
    sync.run("second")
    owls = [
        [row["text"] for row in rows_of(version) if row["document_uri"] == "file:owl.md"]
        for version in (former, current() or 0)
    ]
    assert current() != former
    assert owls[0] == owls[1]


def test_originals_that_are_gone_are_stood_for_by_their_copies(sync: Sync) -> None:
    for animal in ("owl", "fox"):
        sync.write(f"{animal}-first.md", document(animal, ANIMALS[animal]))
    sync.run("first")
    assert {"file:owl-first.md", "file:fox-first.md"} < indexed()
    for animal in ("owl", "fox"):
        (sync.corpus / f"{animal}-first.md").unlink()
    done = sync.run("second")
    assert (done["list_documents"].counts["gone"], done["list_documents"].status) == (2, "complete")
    assert done["validate_documents"].counts["removed"] == 0
    assert indexed() == {f"file:{animal}.md" for animal in ANIMALS}


def test_kept_bytes_that_are_gone_are_read_from_the_source(sync: Sync, caplog: pytest.LogCaptureFixture) -> None:
    sync.write("zeros.txt", "two\x00words")
    sync.run("first")
    assert storage(sync).delete_prefix(f"s3://{sync.environment['MILLRACE_S3_BUCKET']}/quarantine/default/") >= 1
    sync.changes["MILLRACE_CHUNK_TOKENS"] = "64"  # another pipeline: all are judged again
    done = sync.run("second")
    assert done["read_documents-0000"].counts["rejected"] == 1
    assert "the source is read again" in caplog.text


def test_a_late_writer_does_not_change_what_was_checked(sync: Sync) -> None:
    sync.up_to("check_index", "first")
    with connect() as connection:
        version = index_tables.of_run(connection, sync.uri("first"))
        assert version is not None and version.status == "checked"
    before = rows_of(version.version)
    with (
        connect() as connection,
        pytest.raises(TryAgain, match="expected index version 1 to be building, found checked"),
    ):
        index_tables.replace_documents(connection, version, ["file:owl.md"], [])
    assert rows_of(version.version) == before
    assert sync.stage("switch_index", "first").facts["version"] == current() == version.version, "its index is there"


def test_a_part_that_is_cleared_after_the_check_is_checked_again(sync: Sync) -> None:
    sync.up_to("check_index", "first")
    storage(sync).delete_prefix(f"{sync.uri('first')}/index_documents/part-0000/manifest.json")
    version = sync.stage("index_documents", "first", "0000").facts["version"]
    with connect() as connection:
        assert index_tables.get(connection, version).status == "building"
    with pytest.raises(ManifestError, match="check_index"):
        sync.stage("switch_index", "first")
    assert sync.stage("check_index", "first").status == "complete"
    assert sync.stage("switch_index", "first").facts["version"] == current()


@pytest.mark.parametrize(
    "harm", ["DROP INDEX chunks_v1_hnsw", "DELETE FROM chunks_v1 WHERE document_uri = 'file:owl.md'"]
)
def test_a_version_that_is_not_whole_is_not_switched_to(sync: Sync, harm: str) -> None:
    sync.up_to("check_index", "first")
    with connect() as connection:
        connection.execute(harm.encode())
    with pytest.raises(DataError, match=r"expected \d+ chunks with a vector index in index version 1, found \d+ and"):
        sync.stage("switch_index", "first")
    assert current() is None


def test_what_is_written_while_it_is_measured_does_not_pass(sync: Sync, monkeypatch: pytest.MonkeyPatch) -> None:
    sync.up_to("index_documents", "first")
    measured = check_index._measured

    def disturbed(context: Any, version: index_tables.Version, *values: Any) -> Any:
        found = measured(context, version, *values)
        with connect() as connection:
            index_tables.replace_documents(connection, version, [], [])  # takes the vector index away
        return found

    with monkeypatch.context() as patch:
        patch.setattr(check_index, "_measured", disturbed)
        with pytest.raises(DataError, match="no vector index"):
            sync.stage("check_index", "first")
    assert sync.stage("check_index", "first").status == "complete"


def test_a_check_that_another_try_has_ended_writes_nothing(sync: Sync, monkeypatch: pytest.MonkeyPatch) -> None:
    sync.up_to("check_index", "first")
    begin = index_tables.begin

    def overtaken(connection: Any, run: str, about: Any) -> index_tables.Version:
        version = begin(connection, run, about)
        connection.execute("UPDATE index_versions SET status = 'checked'")
        return version

    monkeypatch.setattr(index_tables, "begin", overtaken)
    with pytest.raises(TryAgain, match="found checked"):
        sync.stage("check_index", "first", min_recall_at_5="0.4")
    monkeypatch.undo()
    with connect() as connection:
        index_tables.require_whole(connection, index_tables.get(connection, 1))


def test_parts_share_the_cores_with_those_that_run_beside_them(sync: Sync, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    made = index_documents.EmbeddingCache

    def watched(settings: Any, embedder: str, threads: int | None) -> Any:
        asked.append(threads)
        return made(settings, embedder, threads)

    monkeypatch.setattr(index_documents, "EmbeddingCache", watched)
    monkeypatch.setattr(index_documents.os, "cpu_count", lambda: 8)
    sync.changes["MILLRACE_SHARD_DOCUMENTS"] = "1"
    sync.up_to("index_documents", "first")
    assert asked == [8] * 6, "by hand, one after another"
    for at_once in (4, 64):
        sync.stage("index_documents", "first", "0000", parts_at_once=str(at_once))
    assert asked[6:] == [2, 1], "of six parts at most so many run at once"


def test_scratch_rows_come_back_in_order(tmp_path: Path) -> None:
    from tasks.knowledge.read_documents import Aside

    with (tmp_path / "rows").open("w+b") as file:
        aside = Aside(file)
        rows = [{"uri": f"é{n}", "stamp": ""} for n in range(3)]
        for row in rows:
            aside.add(row)
        assert list(aside.rows()) == rows
