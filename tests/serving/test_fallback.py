"""The way back: an earlier release answers while the newest does not load or fails to generate, and leaves when it does."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ModelError, ReleaseError, ServiceUnavailable
from tasks.release import ledger
from tasks.release.ledger import Release
from tasks.serving.answering import Assistant
from tasks.serving.fallback import FAULTS, FIRST_REST, LONGEST_REST, Setbacks, blames_the_model
from tasks.serving.language_model import LanguageModel, Sampling
from tasks.serving.loading import Loaded
from tasks.serving.prompt import parse_prompt
from tasks.serving.refusals import Busy, GenerationAway, GenerationBroke, InvalidRequest, TooLate
from tasks.serving.transformers_model import TransformersModel

from .conftest import WordEmbedder, app_of, call, make_release

CHAT = {"messages": [{"role": "user", "content": "when does the loop end"}], "max_tokens": 6}


class World:
    """A ledger in memory, releases that load or do not, and a clock."""

    def __init__(self, assistant: Assistant, model: LanguageModel, loras: list[Path]) -> None:
        self.releases, self.model, self.loras = assistant.releases, model, loras
        self.rows: list[Release] = []
        self.broken: dict[int, Exception] = {}
        self.tried: list[int] = []
        self.loads = 0
        self.now = 1000.0
        self.releases._connection = self  # type: ignore[assignment]
        self.releases._loading = self  # type: ignore[assignment]
        self.releases._setbacks = Setbacks(lambda: self.now)

    def run(self, work: Any) -> Any:
        """Stand for the connection; the ledger's functions are given this."""
        return work(self)

    def close(self) -> None:
        """Nothing is open."""

    def release(self, adapter: int, **changed: Any) -> int:
        """Append a release with one of the adapters."""
        number = len(self.rows) + 1
        self.rows.append(make_release(number, adapter_sha256=str(adapter), adapter_uri="s3://a/b", **changed))
        return number

    def load(self, release: Release, beside: Loaded | None) -> Loaded:
        """Stand for the loader: as it, with the tiny model."""
        self.tried.append(release.release)
        if release.release in self.broken:
            raise self.broken[release.release]
        self.loads += 1
        name = f"release_{release.release}_{self.loads}"
        self.model.attach(name, self.loras[int(release.adapter_sha256 or 0)])
        prompt = parse_prompt(release.prompt, "test")
        return Loaded(release, prompt, WordEmbedder(), self.model, name)  # type: ignore[arg-type]

    def poll(self, seconds: float = 0.0) -> int | None:
        """Read the ledger some seconds later; return what answers."""
        self.now += seconds
        self.releases.poll()
        return self.releases.live.release.release if self.releases.live else None


@pytest.fixture
def world(
    assistant: Assistant, model: LanguageModel, tiny_loras: list[Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """An assistant over a ledger in memory."""
    made = World(assistant, model, tiny_loras)
    monkeypatch.setattr(ledger, "live", lambda found: found.rows[-1] if found.rows else None)
    monkeypatch.setattr(ledger, "history", lambda found, limit=20: list(reversed(found.rows))[:limit])
    monkeypatch.setattr(ledger, "get", lambda found, number: found.rows[number - 1])
    yield made


def attached(world: World) -> set[str]:
    """Return the adapters that the model holds, once what is in line is done."""
    assert isinstance(world.model, TransformersModel)
    world.model._thread.submit(int).result()
    return set(world.model._attached)


def test_who_starts_with_a_newest_that_does_not_load_answers_with_the_one_before(
    world: World, assistant: Assistant
) -> None:
    good, newest = world.release(0), world.release(1)
    world.broken[newest] = ReleaseError("expected other bytes")
    assert world.poll() == good and world.tried == [newest, good]
    ready = call(app_of(assistant), "GET", "/readyz")
    body = ready.json()
    assert ready.status_code == 200 and body["fallback"] is True and body["ready"] is True
    assert (body["release"], body["newest_release"]) == (good, newest)
    assert body["problem"] == (
        "release 2 did not load (ReleaseError: expected other bytes); release 1 answers meanwhile"
    )
    assert "millrace_assistant_fallback 1.0" in call(app_of(assistant), "GET", "/metrics").text
    answer = call(app_of(assistant), "POST", "/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200 and answer.json()["millrace"]["release"] == good

    assert world.poll(1) == good and world.tried == [newest, good], "not before its pause is over"
    assert world.poll(4) == good and world.tried[2:] == [newest], "the newest is tried again, and nothing else"
    world.broken.clear()
    assert world.poll(5) == good, "the pause has grown"
    assert world.poll(5) == newest
    body = call(app_of(assistant), "GET", "/readyz").json()
    assert body["fallback"] is False and body["problem"] is None and body["release"] == newest
    assert "millrace_assistant_fallback 0.0" in call(app_of(assistant), "GET", "/metrics").text
    assert {name.rpartition("_")[0] for name in attached(world)} == {"release_2"}, "the earlier one was let go of"


def test_an_earlier_release_without_its_index_is_passed_over_and_none_is_none(world: World) -> None:
    oldest, retired, newest = world.release(0), world.release(1), world.release(0, index_version=3)
    gone = ReleaseError("expected index version 1 to be there, found none")
    world.broken = {newest: ModelError("expected a model"), retired: gone, oldest: gone}
    assert world.poll() is None and world.tried == [newest, retired, oldest]
    problem = world.releases.problem or ""
    assert problem.startswith(
        "release 3 did not load (ModelError: expected a model); nothing can answer; release 2 did"
    )
    assert problem.endswith(f"release 1 did not load either (ReleaseError: {gone})")
    assert world.poll(1) is None and world.releases.problem == problem, "it stays visible until the next try"
    assert not world.releases.fallback
    del world.broken[oldest]
    assert world.poll(5) == oldest


def test_a_release_that_was_rolled_back_is_not_gone_back_to(world: World) -> None:
    good, bad = world.release(0), world.release(1)
    rollback = world.release(0, kind="rollback", restores=good)
    world.broken[rollback] = ServiceUnavailable("expected S3")
    assert world.poll() is None and bad not in world.tried and not world.releases.fallback


def test_what_the_ledger_says_holds_at_once(world: World) -> None:
    good, newest = world.release(0), world.release(1)
    world.broken[newest] = ReleaseError("expected other bytes")
    assert world.poll() == good
    promoted = world.release(1)
    assert world.poll() == promoted and not world.releases.fallback and world.releases.problem is None


def fail(world: World, times: int, error: Exception | None = None) -> None:
    """Have generations of the live release fail."""
    with world.releases.use() as loaded:
        for _ in range(times):
            done: Future[Any] = Future()
            done.set_exception(error or RuntimeError("CUDA error"))
            world.releases.ended(loaded, done)


def test_a_newest_that_fails_to_generate_rests_and_is_tried_again(
    world: World, assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, newest = world.release(0), world.release(1)
    world.broken[good] = ReleaseError("not yet")
    assert world.poll() == newest
    world.broken.clear()
    tokens = TransformersModel._tokens

    def broken(self: Any, *arguments: Any) -> Any:
        if self._model.active_adapters[0].startswith("release_2"):
            raise RuntimeError("CUDA error")
        return tokens(self, *arguments)

    monkeypatch.setattr(TransformersModel, "_tokens", broken)
    app = app_of(assistant)
    for number in range(FAULTS):
        assert world.poll() == newest, f"after {number} failures"
        assert call(app, "POST", "/v1/chat/completions", json=CHAT).status_code == 500
    assert world.poll() == good
    assert call(app, "POST", "/v1/chat/completions", json=CHAT).json()["millrace"]["release"] == good
    body = call(app, "GET", "/readyz").json()
    assert body["fallback"] is True and (body["release"], body["newest_release"]) == (good, newest)
    assert body["problem"] == (
        "release 2 failed to generate 3 times in a row (RuntimeError); release 1 answers meanwhile"
    )
    assert world.poll(FIRST_REST - 1) == good
    assert world.poll(2) == newest and not world.releases.fallback
    assert {name.rpartition("_")[0] for name in attached(world)} == {"release_2"}
    for _ in range(FAULTS):
        call(app, "POST", "/v1/chat/completions", json=CHAT)
    assert world.poll() == good and world.poll(FIRST_REST + 1) == good, "the second rest is longer"
    monkeypatch.setattr(TransformersModel, "_tokens", tokens)
    assert world.poll(FIRST_REST) == newest
    assert call(app, "POST", "/v1/chat/completions", json=CHAT).json()["millrace"]["release"] == newest


def test_one_that_fails_goes_on_where_no_other_model_loads(world: World) -> None:
    world.release(0)
    newest = world.release(0, index_version=2)  # the same model: going back to it would change nothing
    assert world.poll() == newest
    fail(world, FAULTS)
    assert world.poll() == newest and world.tried == [newest]
    assert "no earlier release with another model loads; it goes on" in (world.releases.problem or "")
    assert world.poll() == newest and world.releases.problem, "it stays visible"
    with world.releases.use() as loaded:
        generation = world.model.generate(loaded.adapter, [5, 80], Sampling(max_tokens=2))
        generation.result()
        world.releases.ended(loaded, generation)
    assert world.poll() == newest and world.releases.problem is None


def test_requests_in_flight_end_with_what_they_began_with(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    good, newest = world.release(0), world.release(1)
    world.broken[good] = ReleaseError("not yet")
    assert world.poll() == newest
    world.broken.clear()
    alone = world.model.generate("release_2_1", [5, 80, 33], Sampling(max_tokens=12)).result().text
    with world.releases.use() as begun:
        fail(world, FAULTS)
        assert world.poll() == good
        assert world.poll(FIRST_REST + 1) == newest, "back before the first one's request has ended"
        assert len(attached(world)) == 2
        still = world.model.generate(begun.adapter, [5, 80, 33], Sampling(max_tokens=12)).result().text
        assert still == alone
    with world.releases.use() as again:
        assert attached(world) == {again.adapter}
        assert world.model.generate(again.adapter, [5, 80, 33], Sampling(max_tokens=12)).result().text == alone


def test_only_what_the_model_did_counts_and_only_in_a_row(world: World) -> None:
    world.release(0)
    newest = world.release(1)
    assert world.poll() == newest
    for error in (Busy("x"), TooLate("x"), GenerationAway("x"), InvalidRequest("x"), ServiceUnavailable("x")):
        assert not blames_the_model(error)
        fail(world, FAULTS, error)
        assert world.poll() == newest
    assert blames_the_model(GenerationBroke("x")) and blames_the_model(ModelError("x")) and blames_the_model(OSError())
    for _ in range(3):
        fail(world, FAULTS - 1)
        world.releases._setbacks.ended(newest, None)
        assert world.poll() == newest
    threads = [threading.Thread(target=fail, args=(world, 1)) for _ in range(FAULTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert world.poll() == 1


def test_rests_grow_to_a_bound_and_are_short_again_after_a_quiet_hour() -> None:
    now = [0.0]
    setbacks = Setbacks(lambda: now[0])
    pauses = []
    for _ in range(8):
        pauses.append(setbacks.rest(1, "x").pause)
        now[0] += pauses[-1] + 1
    assert pauses[:3] == [FIRST_REST, 2 * FIRST_REST, 4 * FIRST_REST] and pauses[-1] == LONGEST_REST
    assert setbacks.rest(2, "x").pause == FIRST_REST, "another release begins anew"
    now[0] += 2 * 3600
    assert replace(setbacks.rest(2, "x"), until=0).pause == FIRST_REST
