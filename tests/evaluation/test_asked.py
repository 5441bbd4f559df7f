"""What every model is asked, against a real Postgres: golden questions with what the index that serves finds."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.database import connect, migrate
from tasks.evaluation.evaluate import ask
from tasks.evaluation.sets import NO_INDEX
from tasks.knowledge import index_tables
from tasks.knowledge.cache import text_sha256
from tasks.serving.prompt import prompt_digest
from tasks.settings import changed_settings, load_settings, repository_path
from tasks.stage import StageContext
from tasks.training.recipes import load_recipe
from tests.evaluation.test_sets import Memory
from tests.knowledge.syncing import environment_of

pytestmark = pytest.mark.integration
ABOUT = {"fingerprint": "t", "corpus": "default", "corpus_sha256": "t", "embedder": "t", "dimensions": 4}
QUESTIONS = [
    {"id": "owl", "question": "Who hunts by night?", "documents": ["d:0"], "answer": "Owls."},
    {"id": "heron", "question": "Who stands in water?", "documents": ["d:1"]},
]
TEXTS = ["Owls hunt by night.", "Herons stand in water.", "Foxes hunt mice.", "Bats hunt moths."]


def test_golden_questions_are_asked_where_there_is_an_index(new_database: Any, stack: Any, tmp_path: Path) -> None:
    url = str(new_database("asked"))
    migrate(url)
    with environment_of({**stack.env, "MILLRACE_DATABASE_URL": url}):
        check_asked(url, tmp_path)


def check_asked(url: str, tmp_path: Path) -> None:
    golden = tmp_path / "golden.jsonl"
    golden.write_text("\n".join(map(json.dumps, QUESTIONS)), encoding="utf-8")
    settings = changed_settings(load_settings(), {"golden_questions": str(golden)}, "the test")
    storage, recipe = Memory(), load_recipe("smoke_cpu")
    context = StageContext(settings, storage, "s3://b/runs/f/1", "evaluate", None, {})

    before = ask(context, recipe, None)
    assert before.frozen.left_out == {"golden": NO_INDEX}
    assert {question.set for question in before.questions} == {"safety", "format"}

    serve(url)
    with connect(url) as connection:
        version = index_tables.current(connection)
    found = ask(context, recipe, version)
    assert found.frozen.left_out == {}
    assert {name: told["rows"] for name, told in found.frozen.digests().items()} == {
        "golden": 2,
        "safety": 4,
        "format": 3,
    }
    hits = {q.id: [hit.text for hit in q.hits] for q in found.questions if q.set == "golden"}
    assert hits["owl"][0] == TEXTS[0]
    assert hits["heron"][0] == TEXTS[1]
    assert len(hits["owl"]) == found.prompt.front.documents == 3
    kept = [json.loads(line) for line in storage.kept["s3://b/runs/f/1/evaluate/sets/hits.jsonl"].splitlines()]
    assert {row["id"]: row["hits"][0]["uri"] for row in kept} == {"owl": "d:0", "heron": "d:1"}
    assert found.version == version
    assert found.prompt.sha256 == prompt_digest(repository_path(settings.prompt).read_text(encoding="utf-8"))
    assert before.frozen.digests()["safety"] == found.frozen.digests()["safety"]


def serve(url: str) -> None:
    """Make an index version of four chunks serve; the question about each of the first two has its vector."""
    vectors = np.eye(4, dtype=np.float32)
    rows = [
        {
            "chunk_id": hashlib.sha256(text.encode()).hexdigest()[:32], "document_uri": f"d:{number}", "ordinal": 0,
            "title": "T", "text": text, "tokens": 3, "start": 0, "end": len(text), "chunk_sha256": "0",
            "embedding": vectors[number],
        }
        for number, text in enumerate(TEXTS)
    ]  # fmt: skip
    with connect(url) as connection:
        version = index_tables.begin(connection, "r", ABOUT)
        index_tables.replace_documents(connection, version, [], rows)
        index_tables.build_indexes(connection, version)
        connection.execute("UPDATE index_versions SET status = 'current' WHERE version = %s", (version.version,))
        for number, row in enumerate(QUESTIONS):
            connection.execute(
                "INSERT INTO embedding_cache (chunk_sha256, embedder, embedding) VALUES (%s, 't', %s)",
                (text_sha256(f"query\n{row['question']}"), vectors[number]),
            )
