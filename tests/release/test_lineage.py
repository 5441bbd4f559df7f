"""From a release to its documents and back, from what is stored; what is gone is said."""

import hashlib
import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from tasks.contracts import Artifact, Manifest, digest
from tasks.database import connect
from tasks.errors import DataError, OptionError, ReleaseError
from tasks.release import evidence, ledger, lineage_tool
from tasks.release.lineage_rows import Examples
from tasks.release.lineage_tool import lineage, outline

HOSTILE = "guides/b\x1b[31m.md"


def test_examples_say_where_they_came_from() -> None:
    found = Examples()
    for row in (
        {"origin": "corpus", "source": "a", "provenance": {"document": "a"}},
        {"origin": "corpus", "source": "a"},
        {"origin": "curated", "provenance": {"file": "x.jsonl"}},
        {"origin": "feedback", "provenance": {"feedback": 7}},
        {"id": "1"},
    ):
        found.add(row)
    assert found.origins == {"corpus": 2, "curated": 1, "feedback": 1, "unknown": 1}
    assert (found.documents, found.curated, found.feedback) == ({"a": 2}, {"x.jsonl": 1}, [7])


def test_an_outline_leaves_nothing_out_and_obeys_nobody() -> None:
    value = {"a": {"b": None, "c": []}, "d": [{"e": True, "f": "\x1b[2J\n"}, "x\u202e"], "g": 3, "h": {}}
    assert outline(value) == [
        "a:", "  b: none", "  c: none", "d:", "  - e: yes", "    f: \\x1b[2J\\n", "  - x\\u202e", "g: 3", "h:", "  none",
    ]  # fmt: skip
    uri = "s3://bucket/" + "x" * 200
    assert f"- {uri}" in "\n".join(outline({"long": [uri]}))  # in one piece


@pytest.mark.parametrize("arguments", [[], ["1", "2"], ["--row", "1"], ["--rows"], [" "]])
def test_a_wrong_command_is_told(arguments: list[str]) -> None:
    with pytest.raises(OptionError, match="lineage RELEASE"):
        lineage_tool.main(arguments)


def rows(request: str) -> list[dict[str, Any]]:
    made = {"document": "guides/a.md", "text_sha256": "0" * 64}
    return [
        {"id": "corpus:a#1", "origin": "corpus", "source": "guides/a.md", "provenance": made},
        {"id": "corpus:a#2", "origin": "corpus", "source": "guides/a.md", "provenance": made},
        {"id": "corpus:b#1", "origin": "corpus", "source": HOSTILE, "provenance": {"document": HOSTILE}},
        {"id": "curated:1", "origin": "curated", "source": "q", "provenance": {"file": "team.jsonl"}},
        {"id": "feedback:1", "origin": "feedback", "source": "r", "provenance": {"feedback": 1, "request": request}},
        {
            "id": "feedback:9",
            "origin": "feedback",
            "source": "r",
            "provenance": {"feedback": 9, "request": str(uuid.uuid4())},
        },
    ]


def manifest(stage: str, run: str, outputs: dict[str, Artifact], **facts: Any) -> Manifest:
    now = datetime.now(UTC)
    return Manifest(
        stage=stage, run=run, status="complete", fingerprint="f", outputs=outputs, facts=facts, code_revision="c" * 40,
        host="h", started_at=now, ended_at=now,
    )  # fmt: skip


def built(house: Any) -> tuple[ledger.Release, str]:
    """Return a release whose evidence names a dataset at its place; the run folder of its fine-tune is gone."""
    version, run, request = house.index(), house.run("fine_tune"), str(uuid.uuid4())
    bucket = f"s3://{house.settings.s3_bucket}"
    sha256 = digest(request)
    frozen = {
        "train": house.storage.put_rows(f"{bucket}/datasets/{sha256}/train.jsonl", rows(request)),
        "held_out": house.storage.put_rows(
            f"{bucket}/datasets/{sha256}/held_out.jsonl", [{"id": "curated:2", "origin": "curated"}]
        ),
    }
    facts = {"trained_from": "package:tests/base", "recipe": "test", "mlflow_run_id": "m1"}
    manifests = {
        "validate_dataset": manifest("validate_dataset", run, frozen, dataset_sha256=sha256),
        "train": manifest("train", run, {}, base_model="package:tests/base", recipe="test"),
        "register": manifest("register", run, {}, **facts),
    }
    kept = evidence.keep(
        house.storage, bucket, {"manifests": {name: one.model_dump(mode="json") for name, one in manifests.items()}}
    )
    parts = ledger.Parts(
        model_name=house.settings.model_name, model_version="1", adapter_uri=f"{bucket}/models/x/adapter", adapter_sha256="a" * 64,
        base_model="package:tests/base", base_revision="b" * 40, prompt_sha256=hashlib.sha256(b"p").hexdigest(), prompt="p",
        index_version=version, embedder="test embedder", dataset_sha256=sha256, code_revision="c" * 40,
        evidence_uri=kept.uri, evidence_sha256=kept.sha256,
    )  # fmt: skip
    with connect(house.url) as connection:
        connection.execute(f"ALTER TABLE chunks_v{version} ADD COLUMN document_uri text DEFAULT 'guides/a.md'".encode())
        connection.execute(f"UPDATE chunks_v{version} SET document_uri = %s WHERE chunk_id = '2'".encode(), (HOSTILE,))
        connection.execute(
            "INSERT INTO documents (uri, corpus, title, content_sha256, text_sha256, bytes, chunks) "
            "VALUES ('guides/a.md', 'default', 'A', %s, '', 1, 2)",
            ("d" * 64,),
        )
        connection.execute(
            "INSERT INTO erasures (corpus, uri, requested_by, reason, removed, built_on) VALUES ('default', %s, 'x', 'y', '{}', '{}')",
            (HOSTILE,),
        )
        connection.execute(
            "INSERT INTO feedback (request_id, rating, question, answer, hits, status, reviewed_by) "
            "VALUES (%s, 'up', 'q', 'a', %s::jsonb, 'accepted', 'x')",
            (request, json.dumps([{"document_uri": "guides/a.md"}])),
        )
        made = ledger.append(
            connection, parts, kind="promotion", approved_by="Ada", reason="better", run=house.run("promote_release"), expected_live=None,
        )  # fmt: skip
    return made, sha256


@pytest.mark.integration
def test_lineage_walks_to_the_documents_and_back(house: Any, capsys: pytest.CaptureFixture[str]) -> None:
    release, sha256 = built(house)
    found = lineage(house.settings, "release:1", rows=True)
    assert found["release"]["live"] is True and found["release"]["releases_of_this_model"] == [1]
    assert (found["model"]["trained_from"], found["model"]["recipe"], found["model"]["mlflow_run_id"]) == (
        "package:tests/base",
        "test",
        "m1",
    )
    assert found["examples"]["by_origin"] == {"corpus": 3, "curated": 2, "feedback": 2}
    assert found["examples"]["documents"]["all"] == [
        "guides/a.md (2 rows, indexed)",
        f"{HOSTILE} (1 rows, erased)",
    ]
    assert found["examples"]["documents_behind_feedback"] == {"count": 1, "all": ["guides/a.md"]}
    assert found["dataset"]["files"][0]["ids"][0] == "corpus:a#1" and found["dataset"]["files"][1]["rows"] == 1
    assert found["index"]["documents"]["all"] == ["guides/a.md", HOSTILE]
    told = "\n".join(found["not_followed"])
    assert told.count("was retired") == 3 and "1 examples from feedback" in told  # fine-tune, promotion, index

    name = house.settings.model_name
    monkey = lineage_tool.main([f"{name}/1", "--rows"])
    shown = capsys.readouterr().out
    assert monkey == 0 and "\x1b" not in shown and release.evidence_uri in shown and "corpus:b#1" in shown
    assert lineage_tool.main(["1", "--json"]) == 0
    assert "ids" not in json.loads(capsys.readouterr().out)["dataset"]["files"][0]

    house.mlflow().create_registered_model(name)
    house.mlflow().create_model_version(name, source=release.adapter_uri, tags={"dataset_sha256": sha256})
    house.mlflow().create_model_version(name, source=release.adapter_uri, tags={"dataset_sha256": sha256})
    for subject in ("guides/a.md", "document:guides/a.md", "d" * 64):
        back = lineage(house.settings, subject)
        assert back["document"] == ["guides/a.md"] and back["corpus"][0]["status"] == "indexed"
        assert back["index_versions"] == [{"version": 1, "corpus": "default", "status": "current", "chunks": 2}]
        # Two rows were made from it, and one is feedback on an answer that was made from it.
        assert [(one["sha256"], one["rows"]) for one in back["datasets"]] == [(sha256, 3)]
        assert [(one["version"], one["released"]) for one in back["models"]] == [("1", True), ("2", False)]
        assert back["releases"] == [{"release": 1, "live": True, "through": ["index", "training"], "kind": "promotion"}]
        assert back["not_followed"] == []
    assert lineage(house.settings, HOSTILE)["erased"][0]["requested_by"] == "x"

    # What the walk back prints can be asked for: a version that was never released, and a dataset.
    never = lineage(house.settings, f"{name}/2", rows=True)
    assert never["model"] == {"name": name, "version": "2", "released": False, "dataset_sha256": sha256}
    assert never["examples"]["by_origin"] == {"corpus": 3, "curated": 2, "feedback": 2}
    assert "its tag `manifest` names none" in "\n".join(never["not_followed"])
    through = lineage(house.settings, f"dataset:{sha256}", rows=True)
    assert through["examples"] == never["examples"] and through["dataset"]["files"][0]["rows"] in (1, 6)
    assert [(one["version"], one["released"]) for one in through["models"]] == [("1", True), ("2", False)]
    assert [(one["release"], one["through"]) for one in through["releases"]] == [(1, ["training"])]
    assert lineage_tool.main([f"dataset:{sha256}"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    for wrong in ("dataset:7", f"dataset:{'0' * 64}", f"{name}/9"):
        with pytest.raises(DataError, match="expected"):
            lineage(house.settings, wrong)

    # What is gone is said.
    house.storage.delete_prefix(f"s3://{house.settings.s3_bucket}/datasets/{sha256}/train.jsonl")
    with connect(house.url) as connection:
        connection.execute("DROP TABLE chunks_v1")
        connection.execute("UPDATE index_versions SET status = 'retired'")
    lost = lineage(house.settings, "1")
    assert lost["examples"]["by_origin"] == {"curated": 1} and "documents" not in lost["index"]
    told = "\n".join(lost["not_followed"])
    assert "rows of train: expected an object at" in told and "documents of index version 1: it is retired" in told
    house.storage.delete_prefix(release.evidence_uri)
    told = "\n".join(lineage(house.settings, "1")["not_followed"])
    assert "evidence of release 1" in told and "their digests were in the evidence" in told
    away = house.settings.model_copy(update={"mlflow_tracking_uri": "http://127.0.0.1:9"})
    told = "\n".join(lineage(away, "guides/a.md")["not_followed"])
    assert "index version 1 (releases 1) has no table any more" in told
    with pytest.raises(DataError, match="found 'nowhere.md'"):
        lineage(house.settings, "nowhere.md")
    with pytest.raises(ReleaseError, match="1 to 1"):
        lineage(house.settings, "release:2")


@pytest.mark.integration
def test_a_candidate_leads_to_its_runs_and_rows(house: Any) -> None:
    register = house.candidate(b"one")
    subject = f"{house.settings.model_name}/1"
    found = lineage(house.settings, subject)
    assert [one["stage"] for one in found["runs"]] == ["validate_dataset", "train", "evaluate", "gate", "register"]
    assert {one["run"] for one in found["runs"]} == {register.run} and found["not_followed"] == []
    assert [(one["side"], one["rows"]) for one in found["dataset"]["files"]] == [("train", 1), ("held_out", 1)]
    assert (found["model"]["recipe"], found["model"]["released"]) == ("test", False)
    house.storage.delete_prefix(f"{register.run}/")  # as housekeeping does
    told = "\n".join(lineage(house.settings, subject)["not_followed"])
    assert f"{register.run}/train: no manifest any more" in told and "no manifest says their digests" in told
