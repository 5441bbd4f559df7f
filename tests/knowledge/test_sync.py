"""sync_knowledge against real Postgres and S3: its five stages, in this process, on small corpora."""

import json
import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from psycopg import sql

from tasks.database import connect
from tasks.errors import CorpusError, DataError, ManifestError
from tasks.knowledge import index_tables
from tasks.knowledge.embedders import load_embedder
from tasks.knowledge.index_tables import overlays
from tasks.knowledge.search import main as search_main
from tasks.knowledge.search import search
from tasks.settings import settings
from tasks.storage import Storage
from tests.knowledge.syncing import ANIMALS, Sync, current, document, embedded, rows_of

pytestmark = pytest.mark.integration


def test_first_sync_indexes_the_good_and_keeps_the_bad(sync: Sync) -> None:
    sync.changes["MILLRACE_MAX_QUARANTINE_SHARE"] = "0.5"
    sync.write("latin.txt", "Le caf\xe9 est ferm\xe9.".encode("latin-1"))
    sync.write("zeros.txt", "two\x00words")
    sync.write("empty.txt", "")
    sync.write("owl-copy.md", document("owl", "mice"))
    sync.write("owl-again.md", document("owl", "mice") + " Indeed so.")
    done = sync.run("first")
    assert done["validate_documents"].facts["quarantined_by_rule"] == {
        "format_is_known": 1, "text_is_not_alike": 2, "text_is_present": 1, "text_is_utf8": 1,
    }  # fmt: skip
    assert done["check_index"].metrics["recall_at_5"] == 1
    assert done["switch_index"].facts == {"version": current(), "previous": None, "noop": False, "corpus": "default"}
    with connect() as connection:
        broken = {row["item"]: row for row in connection.execute("SELECT item, rule, reason, excerpt FROM quarantine")}
        known = {
            row["uri"]: row["chunks"]
            for row in connection.execute("SELECT uri, chunks FROM documents WHERE status = 'indexed'")
        }
    assert broken["file:owl-copy.md"]["reason"].endswith("found that of file:owl-again.md"), "the first URI stays"
    assert broken["file:owl.md"]["reason"].endswith("found that of file:owl-again.md")
    assert set(known) == {f"file:{name}.md" for name in (set(ANIMALS) - {"owl"}) | {"owl-again"}}
    assert all(chunks > 1 for chunks in known.values())
    rows = rows_of(done["check_index"].facts["version"])
    assert len(rows) == sum(known.values()) == done["check_index"].counts["chunks"]
    assert embedded(done) == len({row["text"] for row in rows}), "each text was embedded once"


def test_sync_without_changes_builds_and_embeds_nothing(sync: Sync, monkeypatch: pytest.MonkeyPatch) -> None:
    sync.write("owl-copy.md", document("owl", "mice"))
    sync.changes["MILLRACE_MAX_QUARANTINE_SHARE"] = "0.5"
    first = sync.run("first")

    def no_model(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded, or a document read, for unchanged work")

    monkeypatch.setattr("tasks.knowledge.cache.load_embedder", no_model)
    monkeypatch.setattr("tasks.knowledge.sources.folder.Folder.read", no_model)
    second = sync.run("second")
    assert second["list_documents"].facts["parts"] == []
    assert second["validate_documents"].facts["noop"] is True
    assert second["validate_documents"].counts["still_rejected"] == 1
    assert embedded(second) == 0
    assert second["switch_index"].facts["noop"] is True
    assert second["switch_index"].facts["version"] == second["switch_index"].facts["previous"] == current()
    for name in ("recall_at_5", "ndcg_at_10", "mrr"):
        assert second["check_index"].metrics[name] == first["check_index"].metrics[name], (
            "a copy counts as its original"
        )
    with connect() as connection:
        assert connection.execute("SELECT count(*) AS n FROM index_versions").fetchone() == {"n": 1}


def test_another_cpu_does_not_make_everything_anew(sync: Sync, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "tasks.knowledge.embedders.probe.cpu_words"
    monkeypatch.setattr(words, lambda: frozenset({"avx2"}))
    first = sync.run("first")
    monkeypatch.setattr(words, lambda: frozenset({"amx_bf16"}))
    second = sync.stage("list_documents", "second")
    assert second.facts["embedder"] == first["list_documents"].facts["embedder"]
    assert second.facts["same_pipeline"] and second.facts["parts"] == []


def test_a_touched_document_is_read_and_found_to_be_the_same(sync: Sync) -> None:
    sync.run("first")
    os.utime(sync.corpus / "owl.md", (1, 1))
    second = sync.run("second")
    assert second["list_documents"].counts["changed"] == 1
    assert second["read_documents-0000"].counts["same"] == 1
    assert second["validate_documents"].counts["unchanged"] == len(ANIMALS)
    assert second["switch_index"].facts["noop"] is True
    assert sync.run("third")["list_documents"].counts["changed"] == 0, "the new stamp was kept"


def test_a_moved_document_keeps_its_vectors_and_counts_as_neither_added_nor_deleted(sync: Sync) -> None:
    sync.run("first")
    (sync.corpus / "lynx.md").rename(sync.corpus / "big-cat.md")
    sync.golden.write_text(sync.golden.read_text().replace("file:lynx.md", "file:big-cat.md"))
    second = sync.run("second")
    counts = second["validate_documents"].counts
    assert (counts["moved"], counts["added"], counts["deleted"], counts["removed"]) == (1, 0, 0, 0)
    assert embedded(second) == 0
    assert {row["document_uri"] for row in rows_of(current() or 0)} >= {"file:big-cat.md"}
    assert "file:lynx.md" not in {row["document_uri"] for row in rows_of(current() or 0)}


def test_a_rejected_document_is_looked_at_again_only_when_something_changed(sync: Sync) -> None:
    sync.changes["MILLRACE_MAX_QUARANTINE_SHARE"] = "0.5"
    sync.write("owl-copy.md", document("owl", "mice"))
    sync.write("empty.txt", "")
    sync.run("first")
    second = sync.run("second")
    assert second["list_documents"].counts["rejected"] == 2
    assert second["list_documents"].counts["to_read"] == 0
    (sync.corpus / "owl-copy.md").unlink()  # it stood for owl.md, which is the only one now
    third = sync.run("third")
    assert third["list_documents"].counts["rejected"] == 1, "the empty one"
    assert third["read_documents-0000"].counts["good"] == 1
    assert "switch_index" in third, {name: m.reason for name, m in third.items()}
    assert "file:owl.md" in {row["document_uri"] for row in rows_of(current() or 0)}
    assert embedded(third) == 0


@pytest.fixture(params=["copied", "laid over"])
def taken(request: pytest.FixtureRequest, sync: Sync, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way a sync takes over what did not change."""
    monkeypatch.setattr(overlays, "LEAST_ROWS", 1)
    sync.changes["MILLRACE_INDEX_OVERLAY_SHARE"] = "0" if request.param == "copied" else "0.5"
    return str(request.param)


def way_of(version: int) -> str:
    with connect() as connection:
        return "laid over" if index_tables.get(connection, version).base_table else "copied"


def test_a_changed_document_costs_its_changed_chunks_and_a_deleted_one_leaves(sync: Sync, taken: str) -> None:
    first = sync.run("first")
    before = {row["chunk_id"]: row for row in rows_of(first["check_index"].facts["version"])}
    sync.write("fox.md", document("fox", "rabbits") + "\n\nSince last winter it also eats apples, and sleeps in barns.")
    (sync.corpus / "lynx.md").unlink()
    sync.golden.write_text("".join(line + "\n" for line in sync.golden.read_text().splitlines() if "lynx" not in line))
    second = sync.run("second")
    counts = second["validate_documents"].counts
    assert (counts["changed"], counts["deleted"], counts["unchanged"]) == (1, 1, 4)
    assert way_of(second["check_index"].facts["version"]) == taken
    after = rows_of(second["check_index"].facts["version"])
    new_texts = {row["text"] for row in after} - {row["text"] for row in before.values()}
    assert embedded(second) == len(new_texts) == 1
    assert not [row for row in after if row["document_uri"] == "file:lynx.md"]
    copied = [row for row in after if row["document_uri"] in {"file:owl.md", "file:bat.md"}]
    assert copied
    assert all(before[row["chunk_id"]] == row for row in copied), "copied as they were"
    assert second["switch_index"].facts["previous"] == first["switch_index"].facts["version"]
    assert len(rows_of(first["switch_index"].facts["version"])) == len(before), "the old version stays"
    with connect() as connection:
        assert {row["uri"] for row in connection.execute("SELECT uri FROM documents WHERE status = 'indexed'")} == {
            f"file:{name}.md" for name in set(ANIMALS) - {"lynx"}
        }


def test_deletions_alone_make_a_version_without_parts(sync: Sync, taken: str) -> None:
    sync.run("first")
    (sync.corpus / "lynx.md").unlink()
    sync.golden.write_text("".join(line + "\n" for line in sync.golden.read_text().splitlines() if "lynx" not in line))
    second = sync.run("second")
    assert second["validate_documents"].facts["parts"] == []
    assert second["check_index"].counts["documents"] == 5
    assert current() == second["switch_index"].facts["version"]
    assert way_of(second["check_index"].facts["version"]) == taken


def test_another_chunk_size_makes_every_document_again(sync: Sync) -> None:
    first = sync.run("first")
    sync.changes["MILLRACE_CHUNK_TOKENS"] = "64"
    second = sync.run("second")
    assert second["list_documents"].counts["changed"] == len(ANIMALS)
    assert second["check_index"].counts["chunks"] > first["check_index"].counts["chunks"]


def test_a_worse_index_is_refused_and_the_old_one_serves_on(sync: Sync) -> None:
    first = sync.run("first")
    for name in ("owl", "fox", "bat"):
        sync.write(f"{name}.md", "# Trains\n\nThe train leaves at noon from platform " + name)
    second = sync.run("second")
    assert second["check_index"].status == "refused"
    assert "within 0.020 of the current version's 1.000" in str(second["check_index"].reason)
    assert second["check_index"].metrics["previous_recall_at_5"] == 1
    assert current() == first["check_index"].facts["version"]
    with pytest.raises(ManifestError, match="refused"):
        sync.stage("switch_index", "second")
    with connect() as connection:
        assert index_tables.get(connection, second["check_index"].facts["version"]).status == "refused"
        titles = {row["title"] for row in connection.execute("SELECT title FROM documents")}
    assert "Trains" not in titles


def test_removal_of_many_documents_needs_a_yes(sync: Sync) -> None:
    sync.run("first")
    for name in ("owl", "fox"):
        (sync.corpus / f"{name}.md").unlink()
    sync.golden.write_text(sync.golden.read_text().splitlines()[-1] + "\n")
    refused = sync.stage("list_documents", "second")
    assert (refused.status, refused.counts["gone"]) == ("refused", 2)
    assert "confirm_removal=yes" in str(refused.reason)
    assert sync.stage("list_documents", "second", confirm_removal="yes").status == "complete"
    judged = sync.stage("validate_documents", "second")
    assert judged.status == "refused", "each of the two gates wants the yes"
    assert sync.stage("validate_documents", "second", confirm_removal="yes").counts["removed"] == 2


def test_removal_behind_new_documents_is_seen_once_they_are_read(sync: Sync) -> None:
    sync.run("first")
    for name in ("owl", "fox"):
        (sync.corpus / f"{name}.md").unlink()
        sync.write(f"new-{name}.md", document(f"red {name}", "worms and " + name))
    sync.golden.write_text(sync.golden.read_text().splitlines()[-1] + "\n")
    done = sync.run("second")
    assert done["list_documents"].status == "complete", "they might have been moved"
    assert done["validate_documents"].status == "refused"
    assert done["validate_documents"].counts["removed"] == 2
    assert "confirm_removal=yes" in str(done["validate_documents"].reason)


def test_too_many_bad_documents_are_refused(sync: Sync) -> None:
    for name in ("a", "b"):
        sync.write(f"{name}.txt", "\x00")
    done = sync.run("first")
    assert done["validate_documents"].status == "refused"
    assert "file:a.txt" in str(done["validate_documents"].reason)
    assert current() is None


def test_a_part_run_again_and_twice_at_once_ends_with_the_same_rows(sync: Sync) -> None:
    sync.changes["MILLRACE_SHARD_DOCUMENTS"] = "3"
    assert sync.up_to("index_documents", "first") == ["0000", "0001"]
    version = sync.stage("check_index", "first").facts["version"]
    before = rows_of(version)
    storage = Storage(sync.environment["MILLRACE_S3_ENDPOINT_URL"])
    storage.delete_prefix(f"{sync.uri('first')}/index_documents/part-0000/manifest.json")
    command = [sys.executable, "-m", "tasks", "index_documents", "--run", sync.uri("first"), "--part", "0000"]
    twins = [subprocess.Popen(command, env={**os.environ, **sync.changes}, stdout=subprocess.PIPE) for _ in range(2)]
    assert [(twin.communicate()[0], twin.returncode)[1] for twin in twins] == [0, 0]
    assert rows_of(version) == before
    assert sync.stage("check_index", "first", min_recall_at_5="0.5").status == "complete", "its work is done again"
    assert sync.stage("switch_index", "first").facts["version"] == version == current()


def test_a_part_that_was_lost_is_found_before_anything_is_measured(sync: Sync) -> None:
    sync.stage("list_documents", "first")
    with pytest.raises(ManifestError, match="expected 1 complete parts of read_documents"):
        sync.stage("validate_documents", "first")
    sync.stage("read_documents", "first", "0000")
    sync.stage("validate_documents", "first")
    with pytest.raises(ManifestError, match="expected 1 complete parts of index_documents"):
        sync.stage("check_index", "first")
    version = sync.stage("index_documents", "first", "0000").facts["version"]
    with connect() as connection:
        table = index_tables.get(connection, version).table
        connection.execute(sql.SQL("DELETE FROM {} WHERE document_uri = 'file:owl.md'").format(table))
    with pytest.raises(ManifestError, match="clear index_documents"):
        sync.stage("check_index", "first")


def test_a_version_that_serves_is_never_written(sync: Sync) -> None:
    sync.run("first")
    Storage(sync.environment["MILLRACE_S3_ENDPOINT_URL"]).delete_prefix(f"{sync.uri('first')}/index_documents/")
    with pytest.raises(DataError, match="never written"):
        sync.stage("index_documents", "first", "0000")


def test_a_run_that_was_overtaken_does_not_switch(sync: Sync, caplog: pytest.LogCaptureFixture) -> None:
    sync.up_to("check_index", "slow")
    fast = sync.run("fast")
    assert "builds index version" in caplog.text, "the second run was told of the first"
    refused = sync.stage("switch_index", "slow")
    assert refused.status == "refused"
    assert "start a new run" in str(refused.reason)
    assert current() == fast["switch_index"].facts["version"]


def test_search_uses_the_vector_index_and_finds_the_nearest(sync: Sync, capsys: pytest.CaptureFixture[str]) -> None:
    sync.run("first")
    vector = load_embedder(settings()).encode(["What does the bat hunt?"])[0]
    with connect() as connection:
        hits = search(connection, None, vector, 3)
        table = index_tables.get(connection, None).table
        query = sql.SQL("EXPLAIN SELECT chunk_id FROM {} ORDER BY embedding <=> %s LIMIT 5").format(table)
        plans = []
        for exact in (False, True):
            with index_tables.scan(connection, exact=exact):
                plans.append(" ".join(str(row["QUERY PLAN"]) for row in connection.execute(query, (vector,))))
    assert hits[0].document_uri == "file:bat.md"
    assert hits[0].title == "The bat"
    assert 1 > hits[0].score >= hits[1].score >= hits[2].score > 0
    assert "hnsw" in plans[0]
    assert "Seq Scan" in plans[1]
    assert search_main(["What does the bat hunt?", "--k", "2"]) == 0
    assert "1. " in capsys.readouterr().out
    with connect() as connection, pytest.raises(DataError, match="index version 99"):
        search(connection, 99, vector, 1)


def test_documents_in_s3(sync: Sync) -> None:
    storage = Storage(sync.environment["MILLRACE_S3_ENDPOINT_URL"])
    prefix = f"s3://{sync.environment['MILLRACE_S3_BUCKET']}/corpora/{uuid4().hex}"
    for animal, prey in ANIMALS.items():
        storage.put_bytes(f"{prefix}/{animal}.md", document(animal, prey).encode())
    storage.put_bytes(f"{prefix}/picture.png", b"\x89PNG")
    sync.golden.write_text(
        json.dumps({"id": "g", "question": "Who hunts mice?", "documents": [f"{prefix}/owl.md"]}) + "\n"
    )
    sync.changes["MILLRACE_CORPUS"] = prefix
    done = sync.run("first")
    assert done["list_documents"].counts["documents"] == len(ANIMALS)
    assert done["list_documents"].counts["ignored"] == 1, "the picture"
    assert done["check_index"].metrics["recall_at_5"] == 1
    storage.put_bytes(f"{prefix}/owl.md", document("owl", "frogs").encode())
    second = sync.run("second")
    assert second["list_documents"].counts["changed"] == 1
    assert second["validate_documents"].counts["changed"] == 1


def test_corpora_that_hold_nothing_or_do_not_answer_the_questions(sync: Sync, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    sync.changes["MILLRACE_CORPUS"] = str(tmp_path / "empty")
    with pytest.raises(CorpusError, match="found none"):
        sync.stage("list_documents", "a")
    sync.changes["MILLRACE_CORPUS"] = f"s3://{sync.environment['MILLRACE_S3_BUCKET']}/nothing/here"
    with pytest.raises(CorpusError, match="found none"):
        sync.stage("list_documents", "b")
    sync.changes["MILLRACE_CORPUS"] = "pydoc:topics"
    with pytest.raises(DataError, match="MILLRACE_GOLDEN_QUESTIONS"):
        sync.stage("list_documents", "c")


def test_a_retired_version_loses_its_table_and_the_current_one_does_not(sync: Sync) -> None:
    sync.run("first")
    sync.changes["MILLRACE_CHUNK_TOKENS"] = "64"
    done = sync.run("second")
    with connect() as connection:
        assert index_tables.drop(connection, done["switch_index"].facts["previous"]) is True
        assert index_tables.drop(connection, done["switch_index"].facts["previous"]) is False
    with connect() as connection, pytest.raises(DataError, match="Keep|keep"):
        index_tables.drop(connection, done["switch_index"].facts["version"])
