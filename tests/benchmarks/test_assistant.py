"""The benchmarks of the assistant: what makes `assistant_load` fall short."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from benchmarks import assistant
from benchmarks.assistant import Sent
from benchmarks.result import Result


def loaded(monkeypatch: pytest.MonkeyPatch, sent: list[Sent], recorded: dict[UUID, str]) -> Result:
    """Return the result of one burst that ended like this."""

    @contextmanager
    def none(*_given: Any) -> Iterator[str]:
        yield ""

    monkeypatch.setattr(assistant, "ROUNDS", 1)
    for name, found in {"_burst": sent, "_searches": [0.004] * 100, "_recorded": recorded}.items():
        monkeypatch.setattr(assistant, name, lambda *_given, found=found: found)
    monkeypatch.setattr(assistant, "_world", none)
    monkeypatch.setattr(assistant, "_process", none)
    return assistant.assistant_load()


def test_an_accepted_answer_that_is_cut_or_not_recorded_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = [Sent(200, 2.0, id=uuid4(), text=f"answer {number}", whole=True) for number in range(3)]
    rejected = [Sent(429, 0.01, "1") for _ in range(47)]
    recorded = {one.id: one.text for one in answered}
    good = loaded(monkeypatch, answered + rejected, recorded)
    assert good.holds and good.figure == "0 of 3 accepted lost" and "47 rejected" in good.details[0]
    assert "p95 4.0 ms" in good.details[1]
    for sent, rows in (
        (answered + rejected, {one.id: one.text for one in answered[1:]}),  # a row is missing
        (answered + rejected, recorded | {answered[0].id: "another"}),
        ([replace(answered[0], whole=False), *answered[1:], *rejected], recorded),
        (answered + [Sent(429, 0.01), *rejected], recorded),  # without Retry-After
        (answered + [Sent(503, 0.01, "1"), *rejected], recorded),
        (answered, recorded),  # nobody was rejected: there was no load
    ):
        assert not loaded(monkeypatch, sent, rows).holds
