"""The shadow: what a candidate answers beside the live model, and that no live request waits for it."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ReleaseError, ServiceUnavailable
from tasks.serving.answering import Assistant
from tasks.serving.candidate import Candidate
from tasks.serving.language_model import Sampling
from tasks.serving.request_log import RequestLog
from tasks.serving.shadow import PLACES, Shadow
from tasks.serving.shadow_rows import ShadowRow

from .conftest import app_of, call, find_in_memory, make_release

QUESTION = [{"role": "user", "content": "when does the while loop run the else clause"}]
CANDIDATE = Candidate("tiny", "7", "s3://none/none", "a" * 64, "test:tiny", "0")


@contextmanager
def shadowed(
    ready: Assistant, requests: RequestLog, folder: Path, write: Callable[[ShadowRow], None], **options: Any
) -> Iterator[Assistant]:
    """Yield an assistant like `ready` with a candidate beside it."""
    found = options.pop("candidate", CANDIDATE)
    find = options.pop("find", lambda: found)
    shadow = Shadow(ready.releases, find, lambda _candidate: folder, write, share=1.0, **options)
    made = Assistant(ready.releases, requests, find_in_memory, shadow=shadow)
    try:
        yield made
    finally:
        made.close()
        shadow.close()


def ask(assistant: Assistant, tokens: int = 12) -> Any:
    """Ask the live model."""
    return assistant.chat(QUESTION, None, Sampling(max_tokens=tokens), "")


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_the_candidate_answers_the_same_prompt_and_the_live_answers_stay(
    ready: Assistant, requests: RequestLog, tiny_loras: list[Path]
) -> None:
    before = ask(ready).generated.text
    rows: list[ShadowRow] = []
    with shadowed(ready, requests, tiny_loras[0], rows.append, redact=lambda text: f"[redacted] {text}") as assistant:
        answered = ask(assistant)
        until(lambda: assistant.shadow.counts()["answered"] == 1)
        model, built = answered.loaded.model, answered.built
        expected = model.generate("shadow_7", built.token_ids, Sampling(max_tokens=12)).result()
        assert ask(assistant).generated.text == answered.generated.text == before != expected.text
    (row,) = rows[:1]
    assert (row.request_id, row.release, row.model_version) == (answered.row.id, 1, "7")
    assert row.answer == f"[redacted] {expected.text}" and row.completion_tokens == expected.completion_tokens
    assert row.prompt_tokens == answered.row.prompt_tokens and row.finish_reason == expected.finish_reason
    assert row.live_ms == answered.generated.seconds * 1000 and (row.latency_ms or 0) > 0 and row.error is None


def test_a_live_request_ends_the_shadow_at_once(ready: Assistant, requests: RequestLog, tiny_loras: list[Path]) -> None:
    rows: list[ShadowRow] = []
    with shadowed(ready, requests, tiny_loras[0], rows.append) as assistant:
        generate = assistant.releases.live.model.generate  # type: ignore[union-attr]

        def slow(adapter: Any, ids: Any, sampling: Any, listener: Any) -> Any:
            """Only the shadow's generation is long: as many tokens as the window has room for."""
            sampling = replace(sampling, max_tokens=300) if adapter == "shadow_7" else sampling
            return generate(adapter, ids, sampling, listener)

        assistant.releases.live.model.generate = slow  # type: ignore[union-attr, method-assign]
        ask(assistant, 290)
        until(lambda: assistant.shadow._listener is not None and assistant.shadow._listener.tokens > 2)
        ask(assistant)
        until(lambda: rows)
        assert rows[0].error == "Interrupted" and rows[0].answer is None and 2 < rows[0].completion_tokens < 290
        assert assistant.shadow.counts()["interrupted"] == 1


def test_what_finds_no_place_is_counted_and_waits_for_nobody(
    ready: Assistant, requests: RequestLog, tiny_loras: list[Path]
) -> None:
    rows: list[ShadowRow] = []
    with shadowed(ready, requests, tiny_loras[0], rows.append) as assistant:
        with assistant.shadow.aside():  # a live request that does not end
            for _ in range(PLACES + 3):
                ask(assistant)
            assert assistant.shadow.counts()["busy"] == 3 and rows == []
        until(lambda: assistant.shadow.counts()["answered"] == PLACES)


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        (replace(CANDIDATE, base_revision="1"), "a shadow on the live base model"),
        (replace(CANDIDATE, adapter_sha256="b" * 64), "a shadow that is not live"),
    ],
)
def test_a_candidate_that_does_not_fit_is_said(
    ready: Assistant, requests: RequestLog, tiny_loras: list[Path], candidate: Candidate, said: str
) -> None:
    live = ready.releases.live
    assert live is not None
    live.release = make_release(adapter_sha256="b" * 64)
    rows: list[ShadowRow] = []
    with shadowed(ready, requests, tiny_loras[0], rows.append, candidate=candidate) as assistant:
        ask(assistant)
        until(lambda: assistant.shadow.counts()["unusable"] == 1)
        assert said in call(app_of(assistant), "GET", "/readyz").json()["shadow"] and rows == []


def test_a_registry_that_is_away_is_not_asked_for_every_chat(
    ready: Assistant, requests: RequestLog, tiny_loras: list[Path]
) -> None:
    asked: list[int] = []

    def find() -> Candidate:
        asked.append(1)
        raise ServiceUnavailable("expected MLflow, found none")

    with shadowed(ready, requests, tiny_loras[0], lambda _row: None, find=find) as assistant:
        for _ in range(2):
            ask(assistant)
            until(lambda: assistant.shadow._waiting == 0)
        assert len(asked) == 1 and assistant.shadow.counts()["unusable"] == 2
        assert assistant.shadow.problem == "expected MLflow, found none"


def test_rows_that_postgres_does_not_take_are_counted(
    ready: Assistant, requests: RequestLog, tiny_loras: list[Path]
) -> None:
    def away(_row: ShadowRow) -> None:
        raise ServiceUnavailable("away")

    with shadowed(ready, requests, tiny_loras[0], away) as assistant:
        ask(assistant)
        until(lambda: assistant.shadow.counts()["lost"] == 1)


def test_without_a_version_nothing_is_offered(ready: Assistant) -> None:
    ask(ready)
    assert not any(ready.shadow.counts().values()) and ready.shadow.problem is None


def test_a_damaged_adapter_is_refused_and_the_live_model_goes_on(
    ready: Assistant, requests: RequestLog, tmp_path: Path
) -> None:
    def fetch(_candidate: Candidate) -> Path:
        raise ReleaseError("expected adapter files with digest " + hashlib.sha256(b"").hexdigest())

    shadow = Shadow(ready.releases, lambda: CANDIDATE, fetch, lambda _row: None, share=1.0)
    assistant = Assistant(ready.releases, requests, find_in_memory, shadow=shadow)
    ask(assistant)
    until(lambda: shadow.counts()["unusable"] == 1)
    assert ask(assistant).generated.text and "digest" in (shadow.problem or "")
    assistant.close()
    shadow.close()
