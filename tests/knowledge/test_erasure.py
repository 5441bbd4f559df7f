"""`python -m tasks erase`: the document leaves every place, does not come back, and what was built on it is listed."""

import json
import os
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from tasks.database import connect
from tasks.errors import DataError, OptionError
from tasks.knowledge import index_tables
from tasks.knowledge.erasure import main
from tasks.mlflow_http import MlflowHttp
from tasks.serving.request_log import RequestRow
from tasks.serving.spans import EXPERIMENT, Steps, trace_name, trace_of
from tasks.storage import Storage
from tasks.training.examples import feedback
from tests.knowledge.syncing import ANIMALS, Sync, current, document, rows_of

pytestmark = pytest.mark.integration
URI = "file:owl.md"
RELEASE = {
    "kind": "promotion", "model_name": "assistant", "model_version": "3", "base_model": "b", "base_revision": "r",
    "prompt_sha256": "0" * 64, "prompt": "p", "embedder": "e", "code_revision": "c", "evidence_uri": "s3://e",
    "evidence_sha256": "0" * 64, "approved_by": "ada", "reason": "r", "run": "run-1",
}  # fmt: skip

REQUEST = {"created_at": "2026-01-31", "kind": "chat", "question": "q", "answer": "Mice.", "latency_ms": 1}
ERASURE = {
    "corpus": "default",
    "uri": URI,
    "requested_by": "ada",
    "reason": "r",
    "removed": Jsonb({}),
    "built_on": Jsonb({}),
}
OTHER_VERSION = {
    "fingerprint": "f", "corpus": "other", "corpus_sha256": "", "embedder": "e", "dimensions": 3, "table_name": "gone",
    "status": "retired", "run": "other",
}  # fmt: skip


def rows(query: str, *values: Any) -> list[dict[str, Any]]:
    with connect() as connection:
        return list(connection.execute(query.encode(), values))


def insert(table: str, values: dict[str, Any]) -> None:
    names = sql.SQL(", ").join(map(sql.Identifier, values))
    marks = sql.SQL(", ").join(sql.Placeholder() * len(values))
    with connect() as connection:
        connection.execute(
            sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(sql.Identifier(table), names, marks),
            list(values.values()),
        )


def place_of(sync: Sync) -> tuple[Storage, str]:
    return Storage(sync.environment["MILLRACE_S3_ENDPOINT_URL"]), f"s3://{sync.environment['MILLRACE_S3_BUCKET']}"


def cached_without_chunk() -> int:
    """Return how many cached vectors are of a text that the current version does not hold."""
    query = f"SELECT 1 FROM embedding_cache e WHERE NOT EXISTS (SELECT FROM chunks_v{current()} c WHERE c.chunk_sha256 = e.chunk_sha256)"
    return len(rows(query))


def leave_only(sync: Sync, *names: str) -> None:
    sync.golden.write_text(
        "".join(line + "\n" for line in sync.golden.read_text().splitlines() if json.loads(line)["id"] in names)
    )


def test_it_leaves_every_place_and_does_not_come_back(sync: Sync, capsys: pytest.CaptureFixture[str]) -> None:
    first = sync.run("first")
    storage, bucket = place_of(sync)
    dataset = "d" * 64
    storage.put_rows(f"{bucket}/datasets/{dataset}/train.jsonl", [{"id": "1", "provenance": {"document": URI}}])
    storage.put_rows(
        f"{bucket}/datasets/{'e' * 64}/train.jsonl", [{"id": "1", "provenance": {"document": "file:owl.md2"}}]
    )
    insert("releases", {**RELEASE, "index_version": current(), "dataset_sha256": dataset})
    hits = [{"document_uri": URI, "score": 0.5}, {"document_uri": "file:fox.md", "score": 0.4}]
    insert("requests", {**REQUEST, "id": uuid4(), "hits": Jsonb(hits)})
    owls = [row for row in rows_of(current() or 0) if row["document_uri"] == URI]
    assert main(["--document", URI, "--by", "ada", "--reason", "request 17"]) == 0
    out = capsys.readouterr().out
    assert f"{len(owls)} chunks" in out
    assert f"datasets built on it: {dataset}\n" in out
    assert "models built on it: assistant 3\n" in out
    assert "releases built on it: 1\n" in out
    assert URI not in {row["document_uri"] for row in rows_of(current() or 0)}
    assert not cached_without_chunk()
    assert rows("SELECT hits FROM requests")[0]["hits"] == hits[1:]
    assert not rows("SELECT 1 FROM documents WHERE uri = %s", URI)
    audit = rows("SELECT requested_by, reason, removed, built_on FROM erasures")[0]
    assert (audit["requested_by"], audit["reason"], audit["removed"]["chunks"]) == ("ada", "request 17", len(owls))
    texts = first["read_documents-0000"].outputs["documents"].uri
    assert not storage.exists(texts), "the run folder held its text"
    leave_only(sync, *(set(ANIMALS) - {"owl"}))
    second = sync.run("second")
    assert second["list_documents"].counts["erased"] == 1
    assert second["validate_documents"].facts["noop"] is True
    sync.write("mole.md", "# The mole\n\nThe mole digs tunnels and hunts worms in the dark.")
    sync.run("third")
    found = {row["document_uri"] for row in rows_of(current() or 0)}
    assert "file:mole.md" in found
    assert URI not in found


def test_a_vector_that_another_document_needs_stays(sync: Sync) -> None:
    shared = " ".join(f"Sentence {n} is said by both of them, word for word, about thing {n * n}." for n in range(40))
    for name in ("one", "two"):
        own = " ".join(f"Only {name} says so much about {name} number {n}, {n * 7} and {n * 11}." for n in range(40))
        sync.write(f"{name}.txt", f"{shared}\n\n{own}")
    sync.run("first")
    common = {r["text"] for r in rows_of(current() or 0) if r["document_uri"] == "file:one.txt"} & {
        r["text"] for r in rows_of(current() or 0) if r["document_uri"] == "file:two.txt"
    }
    assert common, "they share a chunk"
    assert main(["--document", "file:one.txt", "--by", "ada", "--reason", "x"]) == 0
    left = {row["text"] for row in rows_of(current() or 0) if row["document_uri"] == "file:two.txt"}
    assert common <= left
    missing = rows(
        f"SELECT 1 FROM chunks_v{current()} c WHERE NOT EXISTS (SELECT FROM embedding_cache e WHERE e.chunk_sha256 = c.chunk_sha256)"
    )
    assert not missing


def test_an_unknown_document_and_a_wrong_command(sync: Sync) -> None:
    sync.run("first")
    with pytest.raises(DataError, match="file:nobody.md"):
        main(["--document", "file:nobody.md", "--by", "ada", "--reason", "x"])
    with pytest.raises(OptionError, match="--document URI \\[--by WHO"):
        main(["--by", "ada"])
    assert not rows("SELECT 1 FROM erasures")


def test_a_person_is_not_asked_for_more_than_the_document(sync: Sync, monkeypatch: pytest.MonkeyPatch) -> None:
    sync.run("first")
    monkeypatch.setattr("tasks.knowledge.erasure.getpass.getuser", lambda: "ada")
    assert main(["--document", URI]) == 0
    nameless = lambda: {}["uid 4711"]  # noqa: E731 (what getpass does without a name)
    monkeypatch.setattr("tasks.knowledge.erasure.getpass.getuser", nameless)
    assert main(["--document", URI]) == 0, "safe to repeat"
    audit = rows("SELECT requested_by, reason, removed FROM erasures ORDER BY id")
    assert [row["requested_by"] for row in audit] == ["ada", f"user {os.getuid()}"]
    assert [row["reason"] for row in audit] == ["no reason given"] * 2
    assert [row["removed"]["documents"] for row in audit] == [1, 0]


def test_vectors_of_its_earlier_texts_go_too(sync: Sync) -> None:
    first = sync.run("first")
    sync.write("owl.md", document("owl", "voles"))
    sync.run("second")
    with connect() as connection:
        index_tables.drop(connection, first["check_index"].facts["version"])
    assert cached_without_chunk(), "vectors of what it said before"
    assert main(["--document", URI]) == 0
    assert not cached_without_chunk()
    left = rows(f"SELECT count(*) AS n FROM chunks_v{current()}")[0]["n"]
    assert rows("SELECT count(*) AS n FROM embedding_cache")[0]["n"] == left


def test_rejections_of_its_chunks_and_of_examples_made_from_it_go(sync: Sync) -> None:
    sync.run("first")
    items = {
        "chunk": [f"{URI}#12", f"{URI}#1.md#12"],
        "document": [URI, f"{URI}#1.md"],
        "example": [f"corpus:{URI}#3", f"corpus:{URI}#1.md#3"],
    }
    for kind, names in items.items():
        for item in names:
            insert(
                "quarantine", {"kind": kind, "item": item, "rule": "r", "reason": "", "excerpt": "x", "run": "run-1"}
            )
    storage, bucket = place_of(sync)
    example = f"{bucket}/runs/fine_tune/{uuid4().hex}/validate_dataset/quarantine.jsonl"
    storage.put_rows(example, [{"id": f"corpus:{URI}#3", "excerpt": "hunts mice"}])
    assert main(["--document", URI]) == 0
    assert {row["item"] for row in rows("SELECT item FROM quarantine")} == {names[1] for names in items.values()}
    assert not storage.exists(example)


def test_answers_made_from_it_are_kept_from_learning(sync: Sync) -> None:
    sync.run("first")
    insert("index_versions", OTHER_VERSION)
    other = rows("SELECT version FROM index_versions WHERE corpus = 'other'")[0]["version"]
    named, elsewhere, apart = uuid4(), uuid4(), uuid4()
    insert("releases", {**RELEASE, "index_version": current()})
    shadow = {
        "model_name": "m",
        "model_version": "2",
        "adapter_sha256": "a",
        "release": 1,
        "answer": "Mice.",
        "prompt_tokens": 9,
    }
    for number, version, uri in ((named, current(), URI), (elsewhere, other, URI), (apart, current(), "file:fox.md")):
        insert("shadow_answers", {**shadow, "request_id": number, "live_ms": 1, "live_finish_reason": "stop"})
        _trace(sync, number)
        hits = Jsonb([{"document_uri": uri, "score": 0.5}])
        insert("requests", {**REQUEST, "id": number, "hits": hits, "index_version": version})
        insert("feedback", {"request_id": number, "rating": "up", "status": "accepted", "reviewed_by": "ada"})
    assert main(["--document", URI]) == 0
    with connect() as connection:
        learned = {candidate.provenance["request"] for candidate in feedback(connection)}
    assert learned == {str(elsewhere), str(apart)}, "another corpus has another document of that name"
    found = rows("SELECT answer, hits FROM requests WHERE id = %s", named)
    assert found == [{"answer": None, "hits": []}]
    removed = rows("SELECT removed FROM erasures")[0]["removed"]
    assert (removed["requests"], removed["feedback"], removed["shadow_answers"], removed["traces"]) == (1, 1, 1, 1)
    left = {row["request_id"] for row in rows("SELECT request_id FROM shadow_answers")}
    assert left == {elsewhere, apart} and [_traced(sync, one) for one in (named, elsewhere, apart)] == [
        False,
        True,
        True,
    ]


def _trace(sync: Sync, request: UUID) -> None:
    """Write the trace of a request to MLflow."""
    http = MlflowHttp(sync.environment["MILLRACE_MLFLOW_TRACKING_URI"])
    row = RequestRow(kind="chat", question="q", answer="Mice.", id=request)
    http.write_spans(http.experiment(EXPERIMENT), trace_of(row, Steps()), "test")
    http.close()


def _traced(sync: Sync, request: UUID) -> bool:
    """Return whether MLflow has the trace of a request."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        MlflowClient(sync.environment["MILLRACE_MLFLOW_TRACKING_URI"]).get_trace(trace_name(request))
    except MlflowException:
        return False
    return True


def test_answers_of_the_teacher_about_it_go(sync: Sync) -> None:
    sync.run("first")
    storage, bucket = place_of(sync)
    own, others = (f"{bucket}/teacher/{uuid4().hex}.json" for _ in range(2))
    storage.put_json(own, {"model": "m", "content": "{}", "documents": ["file:fox.md", "file:\u00fcber.md"]})
    storage.put_json(others, {"model": "m", "content": "{}", "documents": ["file:fox.md"]})
    assert main(["--document", "file:\u00fcber.md"]) == 0
    assert not storage.exists(own)
    assert storage.exists(others)


def test_a_version_that_is_tried_out_is_erased_from(sync: Sync) -> None:
    sync.run("first")
    with connect() as connection:
        connection.execute("UPDATE index_versions SET corpus = 'tuning', status = 'building'")
    assert main(["--document", URI]) == 0
    assert not rows("SELECT 1 FROM chunks_v1 WHERE document_uri = %s", URI)
    assert rows("SELECT built_on FROM erasures")[0]["built_on"]["index_versions"] == []


def test_copies_under_other_names_are_told(sync: Sync, capsys: pytest.CaptureFixture[str]) -> None:
    sync.changes["MILLRACE_MAX_QUARANTINE_SHARE"] = "0.5"
    sync.write("owl-copy.md", document("owl", "mice"))
    sync.write("owl-near.md", document("owl", "mice") + " Indeed so.")
    sync.write("zoo-owl.md", document("owl", "mice"))
    sync.run("first")
    kept = rows("SELECT uri FROM documents WHERE status = 'indexed' AND uri LIKE %s", "%owl%")[0]["uri"]
    insert("documents", {**rows("SELECT * FROM documents WHERE uri = %s", kept)[0], "corpus": "other"})
    everyone = {URI, "file:owl-copy.md", "file:owl-near.md", "file:zoo-owl.md"}
    for erased in (kept, min(everyone - {kept})):
        assert main(["--document", erased]) == 0
        told = capsys.readouterr().out.split("copies of it, to be erased too: ")[1].splitlines()[0].split(", ")
        assert set(told) >= everyone - {kept, erased}, erased
        assert (f"{kept} (corpus other)" in told) is (erased == kept)
    assert main(["--document", "file:bat.md"]) == 0
    assert "copies of it, to be erased too: none" in capsys.readouterr().out


def test_a_sync_that_is_checked_while_it_is_erased_ends(sync: Sync, monkeypatch: pytest.MonkeyPatch) -> None:
    sync.run("first")
    sync.write("mole.md", document("mole", "worms"))
    sync.up_to("index_documents", "second")

    def meanwhile(*_: Any, **__: Any) -> list[str]:
        with pytest.raises(DataError, match="found file:owl.md erased since it began"):
            sync.stage("check_index", "second")
        return []

    monkeypatch.setattr("tasks.knowledge.erasure.naming", meanwhile)
    assert main(["--document", URI]) == 0
    assert URI not in {row["document_uri"] for row in rows_of(current() or 0)}


def test_a_version_that_holds_an_erased_document_is_not_switched_to(sync: Sync) -> None:
    sync.run("first")
    sync.write("mole.md", document("mole", "worms"))
    sync.up_to("check_index", "second")
    before = current()
    insert("erasures", ERASURE)  # the copy of it was committed after the erasure had deleted the other copies
    refused = sync.stage("switch_index", "second")
    assert refused.status == "refused"
    assert "found file:owl.md erased since it began" in str(refused.reason)
    assert current() == before


def test_a_rejection_of_a_document_that_was_erased_meanwhile_is_told(sync: Sync) -> None:
    sync.changes |= {"MILLRACE_MAX_REMOVAL_SHARE": "0.5", "MILLRACE_MAX_QUARANTINE_SHARE": "0.5"}
    sync.run("first")
    sync.write("owl.md", "")
    leave_only(sync, *(set(ANIMALS) - {"owl"}))
    sync.up_to("check_index", "second")
    insert("erasures", ERASURE)
    refused = sync.stage("switch_index", "second")
    assert "python -m tasks erase --document file:owl.md --corpus default` once more" in str(refused.reason)
    assert main(["--document", URI]) == 0
    assert not rows("SELECT 1 FROM quarantine WHERE item = %s", URI)


def test_a_base_that_holds_an_erased_document_is_no_noop(sync: Sync) -> None:
    sync.run("first")
    leave_only(sync, *(set(ANIMALS) - {"owl"}))
    insert("erasures", ERASURE)
    second = sync.run("second")
    assert second["list_documents"].facts["parts"] == []
    assert second["validate_documents"].facts["noop"] is False
    assert URI not in {row["document_uri"] for row in rows_of(current() or 0)}
    assert sync.run("third")["validate_documents"].facts["noop"] is True
