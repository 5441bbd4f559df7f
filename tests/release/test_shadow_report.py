"""What is told of a candidate's shadow answers: the figures, their intervals, and the line an approver reads."""

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from tasks.__main__ import main
from tasks.database import connect
from tasks.release import ledger
from tasks.release.shadow_report import compared, report


def test_an_interval_covers_the_mean_and_is_the_same_each_time() -> None:
    pairs = [(0.5, 0.5 + 0.01 * (number % 5)) for number in range(50)] + [(None, 0.9), (0.9, None)]
    figure = compared(pairs)
    assert figure is not None and figure == compared(pairs) and figure.pairs == 50
    assert figure.low is not None and figure.high is not None
    assert figure.difference == pytest.approx(0.02) and 0.01 < figure.low < 0.02 < figure.high < 0.03
    assert compared([(None, 1.0)]) is None
    one = compared([(1.0, 2.0)])
    assert one is not None and (one.difference, one.low, one.high) == (1.0, None, None)


def add(house: Any, release: int, version: str, number: int, **changed: Any) -> None:
    """Add a request, its feedback, and a shadow answer to it."""
    request = uuid.uuid4()
    live = f"a live answer {number}"
    shadow = {
        "answer": live if number % 4 == 0 else live + " or so",
        "error": None,
        "grounded": 0.6 + 0.001 * number,
    } | changed
    with connect(house.url) as connection:
        connection.execute(
            "INSERT INTO requests (id, created_at, kind, question, answer, latency_ms, completion_tokens, grounded, release) "
            "VALUES (%s, %s, 'chat', 'q', %s, 900, 5, 0.5, %s)",
            (request, datetime.now(UTC), live, release),
        )
        connection.execute(
            "INSERT INTO feedback (request_id, rating) VALUES (%s, %s)", (request, "up" if number % 2 else "down")
        )
        connection.execute(
            "INSERT INTO shadow_answers (request_id, model_name, model_version, adapter_sha256, release, answer, finish_reason, "
            "prompt_tokens, completion_tokens, latency_ms, grounded, error, live_ms, live_finish_reason) "
            "VALUES (%s, %s, %s, 'a', %s, %s, %s, 9, 6, 110, %s, %s, 100, 'length')",
            (request, house.settings.model_name, version, release, shadow["answer"], None if shadow["error"] else "stop",
             shadow["grounded"], shadow["error"]),
        )  # fmt: skip


@pytest.mark.integration
def test_the_approver_reads_what_the_candidate_answered(
    house: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    house.index()
    house.promote(house.candidate(b"one").uri)
    candidate = house.candidate(b"two", champion=1)
    version = candidate.facts["model_version"]
    none = house.stage("propose", house.run("promote_release"), candidate=candidate.uri)
    assert "Shadow: no shadow answers." in none.facts["body"] and none.facts["shadow"] == "Shadow: no shadow answers."
    for number in range(20):
        add(house, 1, version, number)
    add(house, 1, version, 0, answer=None, grounded=None, error="Interrupted")
    add(house, 1, "99", 0)  # another candidate's
    told = house.stage("propose", house.run("promote_release"), candidate=candidate.uri).facts["shadow"]
    assert told.startswith("Shadow: 20 questions answered; groundedness +0.11 [0.11, 0.11]; length +4 [")
    assert told.endswith("25% equal to the live answer; without an answer: 1 Interrupted.")
    with connect(house.url) as connection:
        live = ledger.live(connection)
        found = report(connection, house.settings.model_name, version, live)
    assert found.finish_reasons == {"live": {"length": 20}, "shadow": {"stop": 20}} and found.same == 0.25
    assert found.live_feedback == {"down": 10, "up": 10} and found.unanswered == {"Interrupted": 1}
    assert found.figures["milliseconds"].difference == pytest.approx(10) and found.figures["tokens"].pairs == 20

    monkeypatch.setattr("tasks.settings.settings", lambda: house.settings)
    assert main(["shadow-report", "--model-version", version]) == 0
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[0] == told and json.loads(printed[-1])["pairs"] == 20
    assert main(["shadow-report"]) == 2

    # Another model goes live: what was compared with the first says nothing about it.
    house.promote(candidate.uri)
    with connect(house.url) as connection:
        assert report(connection, house.settings.model_name, version, ledger.live(connection)).pairs == 0
