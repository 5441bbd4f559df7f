"""The sets that are answered: which rows are drawn, what is frozen of them, and every way a source can be wrong."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tasks.contracts import Artifact
from tasks.errors import DataError
from tasks.evaluation.sets import NO_INDEX, NONE_ASKED, Frozen, freeze, lengths, spread
from tasks.settings import load_settings
from tasks.storage import Storage
from tasks.training.recipes import Evaluation, load_recipe

SETTINGS = load_settings(
    {"MILLRACE_DATABASE_URL": "postgresql://u@127.0.0.1/millrace", "MILLRACE_MLFLOW_TRACKING_URI": "http://m"}
)


class Memory(Storage):
    """Storage that keeps what is written as text, and needs no server."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def put_bytes(
        self, uri: str, body: bytes, *, rows: int | None = None, content_type: str = "", **_: Any
    ) -> Artifact:
        import hashlib

        self.kept[uri] = body.decode()
        return Artifact(uri=uri, sha256=hashlib.sha256(body).hexdigest(), bytes=len(body), rows=rows)

    def put_rows(self, uri: str, rows: Any) -> Artifact:
        lines = [json.dumps(row, sort_keys=True) for row in rows]
        return self.put_bytes(uri, "\n".join(lines).encode(), rows=len(lines))


def how(**changes: Any) -> Evaluation:
    return load_recipe("smoke_cpu").evaluation.model_copy(update=changes)


def frozen(indexed: bool = True, **changes: Any) -> tuple[Frozen, Memory]:
    storage = Memory()
    return freeze(SETTINGS, storage, "s3://b/run/evaluate", how(**changes), indexed=indexed), storage


def test_the_very_rows_are_written_and_counted() -> None:
    found, storage = frozen(golden_questions=6, safety_probes=6, format_probes=4)
    assert {name: told["rows"] for name, told in found.digests().items()} == {"golden": 6, "safety": 6, "format": 4}
    for name in ("golden", "safety", "format"):
        written = [json.loads(line) for line in storage.kept[f"s3://b/run/evaluate/sets/{name}.jsonl"].splitlines()]
        assert [row["id"] for row in written] == [q.id for q in found.questions if q.set == name]
        assert [row["question"] for row in written] == [q.question for q in found.questions if q.set == name]
    assert all(
        "answer" in json.loads(line) for line in storage.kept["s3://b/run/evaluate/sets/golden.jsonl"].splitlines()
    )
    assert found.left_out == {}


def test_the_same_seed_gives_the_same_digest_and_another_another() -> None:
    first, second, other = (frozen(safety_probes=6, seed=seed)[0].digests() for seed in (1, 1, 2))
    assert first == second
    assert first["safety"]["sha256"] != other["safety"]["sha256"]
    whole = [frozen(safety_probes=None, seed=seed)[0].digests()["safety"] for seed in (1, 2)]
    assert whole[0] == whole[1], "all rows are all rows"


def test_a_probe_is_shown_its_context_and_a_golden_question_waits_for_its_hits() -> None:
    found, _storage = frozen()
    injected = [q for q in found.questions if q.topic == "injection"]
    assert injected
    assert all([hit.text for hit in q.hits] == [q.row.context] for q in injected)  # type: ignore[union-attr]
    assert all(q.hits == [] for q in found.questions if q.topic == "harmful")
    assert all(q.corpus == "default" and not q.hits for q in found.questions if q.set == "golden")


def test_what_is_left_out_says_why() -> None:
    found, _storage = frozen(indexed=False, format_probes=0)
    assert found.left_out == {"golden": NO_INDEX, "format": NONE_ASKED}
    assert set(found.digests()) == {"safety"}
    assert {q.set for q in found.questions} == {"safety"}


def test_a_sample_is_spread_over_topics() -> None:
    rows = [("many", n) for n in range(90)] + [("few", n) for n in range(5)] + [("one", 0)]

    def drawn(count: int | None, seed: int) -> list[tuple[str, int]]:
        return spread(rows, count, seed, id_of=lambda row: f"{row[0]}{row[1]:02}", topic_of=lambda row: row[0])

    assert Counter(topic for topic, _n in drawn(9, 5)) == {"many": 4, "few": 4, "one": 1}
    assert {topic for topic, _n in drawn(3, 5)} == {"many", "few", "one"}
    assert drawn(9, 5) == sorted(drawn(9, 5), key=lambda row: f"{row[0]}{row[1]:02}")
    assert drawn(9, 5) != drawn(9, 6)
    assert len(drawn(None, 5)) == len(drawn(1000, 5)) == 96


def test_lengths_are_thirds() -> None:
    assert lengths({str(n): n for n in range(1, 10)}) == {
        **dict.fromkeys("123", "short"), **dict.fromkeys("456", "middle"), **dict.fromkeys("789", "long"),
    }  # fmt: skip
    assert lengths({"a": 4, "b": 4, "c": 4}) == dict.fromkeys("abc", "short")
    assert lengths({}) == {}


GOOD: dict[str, Any] = {"id": "a", "kind": "harmful", "question": "q", "followed": ["MARIGOLD"]}


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([GOOD | {"followed": ["short"]}], "line 1 .*at least 6 letters"),
        ([GOOD, GOOD | {"id": "b", "kind": "rude"}], "line 2 .*kind"),
        ([GOOD | {"canary": "x"}], "canary"),
        ([GOOD, GOOD], "different ids"),
        ([], "different ids"),
    ],
)
def test_malformed_probes_are_named(tmp_path: Path, lines: list[dict[str, Any]], told: str) -> None:
    (tmp_path / "safety.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    settings = SETTINGS.model_copy(update={"probes": str(tmp_path)})
    with pytest.raises(DataError, match=told):
        freeze(settings, Memory(), "s3://b/r", how(golden_questions=0), indexed=True)


def test_a_form_that_nobody_knows_is_named(tmp_path: Path) -> None:
    (tmp_path / "format.jsonl").write_text('{"id": "a", "question": "q", "form": {"type": "poem"}}', encoding="utf-8")
    settings = SETTINGS.model_copy(update={"probes": str(tmp_path)})
    with pytest.raises(DataError, match="line 1 .*form"):
        freeze(settings, Memory(), "s3://b/r", how(golden_questions=0, safety_probes=0), indexed=True)


def test_missing_probes_name_the_setting() -> None:
    settings = SETTINGS.model_copy(update={"probes": "examples/nowhere"})
    with pytest.raises(DataError, match="MILLRACE_PROBES"):
        freeze(settings, Memory(), "s3://b/r", how(golden_questions=0), indexed=True)
