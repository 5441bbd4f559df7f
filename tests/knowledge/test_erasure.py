"""`python -m tasks erase`: the document leaves every place, does not come back, and what was built on it is listed."""

import json
from typing import Any

import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from tasks.database import connect
from tasks.errors import DataError, OptionError
from tasks.knowledge.erasure import main
from tasks.storage import Storage
from tests.knowledge.syncing import ANIMALS, Sync, current, rows_of

pytestmark = pytest.mark.integration
URI = "file:owl.md"
RELEASE = {
    "kind": "promotion", "model_name": "assistant", "model_version": "3", "base_model": "b", "base_revision": "r",
    "prompt_sha256": "0" * 64, "prompt": "p", "embedder": "e", "code_revision": "c", "evidence_uri": "s3://e",
    "evidence_sha256": "0" * 64, "approved_by": "ada", "reason": "r", "run": "run-1",
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


def leave_only(sync: Sync, *names: str) -> None:
    sync.golden.write_text(
        "".join(line + "\n" for line in sync.golden.read_text().splitlines() if json.loads(line)["id"] in names)
    )


def test_it_leaves_every_place_and_does_not_come_back(sync: Sync, capsys: pytest.CaptureFixture[str]) -> None:
    first = sync.run("first")
    storage = Storage(sync.environment["MILLRACE_S3_ENDPOINT_URL"])
    bucket = f"s3://{sync.environment['MILLRACE_S3_BUCKET']}"
    dataset = "d" * 64
    storage.put_rows(f"{bucket}/datasets/{dataset}/train.jsonl", [{"id": "1", "provenance": {"document": URI}}])
    storage.put_rows(
        f"{bucket}/datasets/{'e' * 64}/train.jsonl", [{"id": "1", "provenance": {"document": "file:owl.md2"}}]
    )
    insert("releases", {**RELEASE, "index_version": current(), "dataset_sha256": dataset})
    hits = [{"document_uri": URI, "score": 0.5}, {"document_uri": "file:fox.md", "score": 0.4}]
    with connect() as connection:
        connection.execute(
            "INSERT INTO requests (id, created_at, kind, question, hits, latency_ms) VALUES (gen_random_uuid(), now(), 'chat', 'q', %s, 1)",
            (Jsonb(hits),),
        )
    owls = [row for row in rows_of(current() or 0) if row["document_uri"] == URI]
    cached = rows("SELECT count(*) AS n FROM embedding_cache")[0]["n"]
    assert main(["--document", URI, "--by", "ada", "--reason", "request 17"]) == 0
    out = capsys.readouterr().out
    assert f"{len(owls)} chunks" in out
    assert f"datasets built on it: {dataset}\n" in out
    assert "models built on it: assistant 3\n" in out
    assert "releases built on it: 1\n" in out
    assert URI not in {row["document_uri"] for row in rows_of(current() or 0)}
    assert rows("SELECT count(*) AS n FROM embedding_cache")[0]["n"] == cached - len(owls)
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
    with pytest.raises(OptionError, match="--document URI --by WHO"):
        main(["--document", URI])
    assert not rows("SELECT 1 FROM erasures")
