"""Datasets for real: three origins, a teacher behind HTTP, bad input as whoever starts the stage sees it."""

import json
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tasks.contracts import Manifest
from tasks.database import connect
from tasks.errors import ServiceUnavailable, SettingsError
from tasks.settings import Settings, load_settings
from tasks.stage import run_stage
from tasks.training import build_dataset, plan_training, validate_dataset
from tasks.training.recipes import Recipe, load_recipe
from tasks.training.teacher import Passage, Teacher, parse
from tests.tiny_model import make_tokenizer
from tests.training.bench import Bench

pytestmark = pytest.mark.integration
STAGES = (build_dataset, validate_dataset, plan_training)
PASSAGE = "The kettle boils water in three minutes, and switches itself off."
GOOD = {"question": "How long does the kettle take?", "answer": "The kettle boils water in three minutes."}


class TeacherServer(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint that words the title of a passage as a question, and repeats its words."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.statuses: list[int] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: TeacherServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        self.server.keys.add(self.headers["Authorization"])
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        title, _, text = body["messages"][1]["content"].partition("\n\n")
        taught = {"question": f"Tell me about {title.removeprefix('Title: ')}.", "answer": " ".join(text.split()[:25])}
        reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": json.dumps(taught)}}]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[TeacherServer]:
    with TeacherServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def settings(bench: Bench) -> Settings:
    return load_settings(bench.environment)


def with_teacher(settings: Settings, server: TeacherServer, **changes: Any) -> Settings:
    given = {"teacher_url": server.url, "teacher_model": uuid.uuid4().hex, "teacher_key": "k3y"} | changes
    return settings.model_validate(settings.model_dump() | given)


def use(
    monkeypatch: pytest.MonkeyPatch, method: str = "sft", validation: int = 0, max_tokens: int = 256, **mix: float
) -> None:
    """Let the stages of this test find another recipe under the name smoke_cpu."""
    smoke = load_recipe("smoke_cpu")
    data = smoke.data.model_dump() | {"mix": {"curated": 0, "feedback": 0, "corpus": 0} | mix, "max_truncated": 0.9}
    data |= {"validation_rows": validation, "max_tokens": max_tokens, "max_overlap": 0.5}
    how = smoke.optimisation.model_dump() | {"beta": 0.1 if method == "dpo" else None}
    made = Recipe.model_validate(
        smoke.model_dump() | {"method": method, "data": data, "optimisation": how}, strict=False
    )
    for module in STAGES:
        monkeypatch.setattr(module, "load_recipe", lambda _name, **_: made)


def stage(module: Any, settings: Settings, run: str, **options: str) -> Manifest:
    return run_stage(module.STAGE, settings, run, None, options)


def rows_of(bench: Bench, manifest: Manifest, output: str) -> list[dict[str, Any]]:
    return list(bench.storage.get_rows(manifest.outputs[output]))


def test_three_origins_are_mixed_and_every_row_says_where_it_is_from(
    bench: Bench, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrected, liked, both = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    with connect(bench.database) as connection:
        for number in (corrected, liked, both):
            connection.execute(
                "INSERT INTO requests (id, created_at, kind, question, answer, latency_ms) "
                "VALUES (%s, now(), 'chat', %s, %s, 1)",
                (number, f"What about {number}?", f"The served answer about {number}."),
            )
        for number, rating, correction in (
            (corrected, "down", f"A better answer about {corrected}."),
            (liked, "up", None),
            (both, "down", f"A much better answer about {both}."),
            (both, "up", None),
        ):
            connection.execute(
                "INSERT INTO feedback (request_id, rating, correction, status, reviewed_by) "
                "VALUES (%s, %s, %s, 'accepted', 'ada')",
                (number, rating, correction),
            )
        connection.execute("INSERT INTO feedback (request_id, rating) VALUES (%s, 'up')", (corrected,))
    use(monkeypatch, validation=6, curated=1, feedback=1, corpus=1)
    run = bench.new_run()
    built = stage(build_dataset, settings, run, recipe="smoke_cpu")
    rows = rows_of(bench, built, "candidates")
    assert built.counts["feedback_train"] == 3
    assert built.counts["docstrings_train"] + built.counts["corpus_train"] == 21
    assert abs(built.counts["docstrings_train"] - built.counts["corpus_train"]) <= 1
    assert all(row["provenance"]["made_by"] for row in rows)
    given = {row["provenance"]["request"]: row for row in rows if row["origin"] == "feedback"}
    assert given[str(corrected)]["provenance"]["reviewed_by"] == "ada"
    assert given[str(liked)]["messages"][1]["content"] == f"The served answer about {liked}."
    assert given[str(both)]["messages"][1]["content"] == f"A much better answer about {both}."
    validated = stage(validate_dataset, settings, run)
    assert {"train", "validation", "held_out"} <= set(validated.outputs)
    sources = [
        {row["source"] for row in rows_of(bench, validated, side)} for side in ("train", "validation", "held_out")
    ]
    assert sum(map(len, sources)) == len(set().union(*sources))
    assert validated.outputs["train"].uri.startswith(f"{bench.bucket}/datasets/{validated.facts['dataset_sha256']}/")

    use(monkeypatch, "dpo", feedback=1, curated=1)
    run = bench.new_run()
    built = stage(build_dataset, settings, run, recipe="smoke_cpu")
    rows = rows_of(bench, built, "candidates")
    assert all(row["rejected"] for row in rows)
    given = {row["provenance"]["request"]: row for row in rows if row["origin"] == "feedback"}
    assert set(given) == {str(corrected), str(both)}, "an answer that was liked has no worse one"
    assert given[str(corrected)]["rejected"] == f"The served answer about {corrected}."
    assert built.counts["unusable_feedback"] == 1
    assert stage(validate_dataset, settings, run).counts["train"] > 16
    with connect(bench.database) as connection:  # the other tests' datasets are without it
        connection.execute("DELETE FROM feedback")


def test_pretraining_reads_the_corpus(bench: Bench, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "pretrain", corpus=1)
    run = bench.new_run()
    stage(build_dataset, settings, run, recipe="smoke_cpu")
    validated = stage(validate_dataset, settings, run)
    rows = rows_of(bench, validated, "train")
    assert len(rows) >= 16
    assert all(row["text"] and "messages" not in row for row in rows)


def test_a_teacher_words_the_pairs_and_is_asked_once(
    bench: Bench, settings: Settings, server: TeacherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, corpus=1)
    settings = with_teacher(settings, server)
    built = stage(build_dataset, settings, bench.new_run(), recipe="smoke_cpu")
    asked = len(server.requests)
    assert asked == built.counts["teacher_asked"] == 36
    assert server.keys == {"Bearer k3y"}
    rows = rows_of(bench, built, "candidates")
    assert len(rows) + sum(n for name, n in built.counts.items() if name.startswith("teacher_rejected")) == 36
    assert all(row["provenance"]["made_by"] == f"teacher:{settings.teacher_model}" for row in rows)
    assert all(row["messages"][0]["content"].startswith("Tell me about") for row in rows)
    again = stage(build_dataset, settings, bench.new_run(), recipe="smoke_cpu")
    assert len(server.requests) == asked, "what was answered once is not asked again"
    assert again.outputs["candidates"].sha256 == built.outputs["candidates"].sha256


def test_a_kept_answer_names_every_document_that_it_is_about(
    bench: Bench, settings: Settings, server: TeacherServer
) -> None:
    before = {uri for uri, _size, _etag in bench.storage.list(f"{bench.bucket}/teacher/")}
    teacher = Teacher(with_teacher(settings, server), bench.storage)
    for uri in ("file:kettle.md", "file:copy.md", "file:kettle.md"):
        teacher.ask([Passage("Kettle", PASSAGE, uri)], lambda done, total: None)
    assert teacher.counts["teacher_cached"] == 2
    (kept,) = {uri for uri, _size, _etag in bench.storage.list(f"{bench.bucket}/teacher/")} - before
    assert json.loads(bench.storage.get_bytes(kept))["documents"] == ["file:copy.md", "file:kettle.md"]


def test_a_teacher_that_is_busy_away_or_refuses(bench: Bench, settings: Settings, server: TeacherServer) -> None:
    waits: list[float] = []
    teacher = Teacher(with_teacher(settings, server), bench.storage, waits.append)
    server.statuses = [429, 503]
    (found,) = teacher.ask([Passage("Kettle", PASSAGE, "file:kettle.md")], lambda done, total: None)
    assert found is not None
    assert waits == [2.0, 4.0]
    server.statuses = [401]
    with pytest.raises(SettingsError, match="found status 401") as caught:
        teacher.ask([Passage("Other", PASSAGE, "file:kettle.md")], lambda done, total: None)
    assert "k3y" not in str(caught.value)
    away = Teacher(with_teacher(settings, server, teacher_url="http://127.0.0.1:9/v1"), bench.storage, waits.append)
    with pytest.raises(ServiceUnavailable, match="found ConnectError 5 times"):
        away.ask([Passage("Kettle", PASSAGE, "file:kettle.md")], lambda done, total: None)
    with pytest.raises(SettingsError, match="_URL and MILLRACE_TEACHER_MODEL together"):
        Teacher(with_teacher(settings, server, teacher_model=None), bench.storage)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (json.dumps(GOOD), None),
        (f"```json\n{json.dumps(GOOD)}\n```", None),
        ("Sure! Here is one: {}", "json"),
        (json.dumps([GOOD]), "form"),
        (json.dumps(GOOD | {"note": "x"}), "form"),
        (json.dumps(GOOD | {"answer": ""}), "form"),
        (json.dumps(GOOD | {"answer": "Napoleon crossed several mountains during winter."}), "not_in_passage"),
    ],
)
def test_a_reply_is_taken_strictly(reply: str, reason: str | None) -> None:
    taught, found = parse(reply, PASSAGE)
    assert found == reason
    assert (taught is None) == (reason is not None)


def line(number: int, answer: str, **changes: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"What is number {number}?"}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "source": f"source {number}"} | changes


def words(number: int) -> str:
    return f"It is w{number} and x{number} with y{number} or z{number}."


TOOL = [{"role": "tool", "content": "q"}, {"role": "assistant", "content": "a"}]
BAD = {
    "empty": ([], "build_dataset", "found none"),
    "one row": ([line(1, words(1))], "build_dataset", "at least two sources"),
    "an unknown role": ([line(1, words(1)), line(2, words(2), messages=TOOL)], "build_dataset", "line 2: messages.0.role"),
    "all rejected": ([line(n, "No.") for n in range(40)], "validate_dataset", "(36 rejected)"),
    "an overlap": ([line(n, words(n % 15)) for n in range(60)], "validate_dataset", "of the training rows to say what held-out"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_examples_end_with_exit_code_2(name: str, bench: Bench, tmp_path: Path) -> None:
    lines, failing, told = BAD[name]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    run = bench.new_run()
    if failing == "validate_dataset":
        bench.run("build_dataset", run, examples=str(path), recipe="smoke_cpu")
        found = bench.run("validate_dataset", run, expect=2)
        assert list(bench.storage.list(f"{run}/validate_dataset/quarantine.jsonl")), "the rows and reasons can be read"
    else:
        found = bench.run("build_dataset", run, expect=2, examples=str(path), recipe="smoke_cpu")
    assert "DataError: expected" in found["log"]
    assert told in found["log"]
    assert "Next: " in found["log"]


def test_a_plan_of_a_real_dataset(
    bench: Bench, settings: Settings, validated: str, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, curated=1, max_tokens=72)
    refused = stage(plan_training, settings, validated, recipe="smoke_cpu", base_model=tiny)
    assert refused.status == "refused"
    assert "expected at most 90.0% of the training rows to be longer than 72 tokens, found 24 of 24" in str(
        refused.reason
    )
    bench.storage.delete_prefix(refused.uri)
    use(monkeypatch, curated=1)
    plan = stage(plan_training, settings, validated, recipe="smoke_cpu", base_model=tiny)
    assert plan.counts["steps"] == 3
    assert plan.counts["truncated"] == 0
    assert "no earlier training tells" in plan.facts["basis"]
    report = bench.storage.get_json(plan.outputs["plan"])
    assert report["sides"] == {"train": 24, "held_out": 12}
    assert report["tokens"] == plan.counts["tokens"] > 24 * 50


def test_earlier_trainings_tell_the_time(
    bench: Bench, settings: Settings, validated: str, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, curated=1)
    first = stage(plan_training, settings, validated, recipe="smoke_cpu", base_model=tiny)
    run = bench.new_run()
    told = first.model_copy(update={
        "run": run, "stage": "train", "outputs": {},
        "facts": {"recipe": "smoke_cpu", "base_model": tiny, "ranks": 4},
        "metrics": {"tokens_per_second": 400.0, "stage_seconds": 30.0, "train_seconds": 20.0},
    })  # fmt: skip
    bench.storage.write_manifest(told)
    with connect(bench.database) as connection:
        connection.execute(
            "INSERT INTO stage_costs (run, stage, status, started_at, ended_at, resource_seconds, host) "
            "VALUES (%s, 'train', 'complete', now(), now(), '{}', 'h')",
            (run,),
        )
    bench.storage.delete_prefix(first.uri)
    second = stage(plan_training, settings, validated, recipe="smoke_cpu", base_model=tiny)
    assert second.facts["basis"] == f"100 tokens/s a rank in {run}"
    assert second.metrics["seconds"] == pytest.approx(second.counts["tokens"] / 200 + 10)


def test_models_that_do_not_fit_end_the_plan_with_exit_code_2(
    bench: Bench, validated: str, tiny: str, tmp_path: Path
) -> None:
    none = f"{bench.bucket}/tiny/{uuid.uuid4().hex}"
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    for uri, _size, _etag in bench.storage.list(f"{tiny}/"):
        bench.storage.put_bytes(uri.replace(tiny, none), bench.storage.get_bytes(uri))
    bench.storage.delete_prefix(f"{none}/chat_template")
    bench.storage.put_folder(none, tmp_path)
    found = bench.run("plan_training", validated, expect=2, recipe="smoke_cpu", base_model=none)
    assert "ModelError: expected a tokenizer with a chat template" in found["log"]
    found = bench.run(
        "plan_training", validated, expect=2, recipe="smoke_cpu", base_model=tiny, adapter=f"{none}/adapter"
    )
    assert "ModelError: expected an adapter" in found["log"]
