"""A model on a server: the same answers as in this process, proven to be the release's, and every way the server can fail."""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ReleaseError, ServiceUnavailable, SettingsError
from tasks.serving.adapters import folder_digest
from tasks.serving.language_model import Generated, LanguageModel, Sampling
from tasks.serving.model_server import ModelServer
from tasks.serving.refusals import Busy, GenerationAway, GenerationBroke, TooLate
from tasks.serving.telling import Listener
from tasks.serving.upstream import UpstreamModel, served_base

from .served_llama import KEY, ServedLlama, running

BASE = served_base("0")
IDS = [5, 80, 33, 121, 64]
LONG = Sampling(max_tokens=40)


@pytest.fixture
def llama(tiny_llama: Path) -> ServedLlama:
    """The tiny Llama as a server has it."""
    return ServedLlama(tiny_llama, BASE)


@pytest.fixture
def port(llama: ServedLlama) -> Iterator[int]:
    """Where it is served."""
    with running(llama) as number:
        yield number


def connected(port: int, folder: Path, key: str | None = KEY, stalled: float = 20) -> UpstreamModel:
    """Return the model behind a port."""
    return UpstreamModel("test:tiny", "0", folder, ModelServer(f"http://127.0.0.1:{port}/v1", key, stalled), BASE)


@pytest.fixture
def upstream(port: int, tiny_llama: Path) -> Iterator[UpstreamModel]:
    """The model on the server."""
    model = connected(port, tiny_llama)
    yield model
    model.close()


def answered(generation: "Future[Generated]") -> tuple[Any, ...]:
    """Return what has to be the same wherever a model runs. A server does not tell the half of a character that is left."""
    found = generation.result(30)
    return found.text.rstrip("\ufffd").strip(), found.prompt_tokens, found.completion_tokens, found.finish_reason


def test_it_answers_as_the_model_in_this_process(
    upstream: UpstreamModel, model: LanguageModel, tiny_loras: list[Path]
) -> None:
    for number, folder in enumerate(tiny_loras):
        upstream.attach(f"release_{number}", folder)
        model.attach(f"release_{number}", folder)
    texts = set()
    for adapter in (None, "release_0", "release_1"):
        for size in (1, 7, 40):
            there = answered(upstream.generate(adapter, IDS, Sampling(max_tokens=size)))
            assert there == answered(model.generate(adapter, IDS, Sampling(max_tokens=size)))
        texts.add(there[0])
    assert len(texts) == 3, "each adapter answers in its own way"
    assert upstream.window == 500, "what the server takes is less than what the model could"


def test_the_pieces_are_the_answer_and_nothing_of_a_stop_string_is_told(
    upstream: UpstreamModel, model: LanguageModel, llama: ServedLlama
) -> None:
    whole = model.generate(None, IDS, LONG).result().text
    half = len(whole) // 2
    stop = Sampling(max_tokens=40, stop=(whole[half : half + 3], "zz"))
    listener = Listener()
    generation = upstream.generate(None, IDS, stop, listener)
    pieces = list(listener.pieces(generation))
    assert answered(generation) == answered(model.generate(None, IDS, stop))
    assert "".join(pieces) == generation.result().text and len(pieces) > 1
    assert listener.tokens == generation.result().completion_tokens < 40
    asked = llama.asked[0]
    assert asked["prompt"] == IDS and asked["model"] == BASE and asked["temperature"] == 0
    assert asked["repetition_penalty"] == 1.0 and asked["top_k"] == 0 and "seed" not in asked


def test_an_adapter_is_loaded_by_its_digest_once_and_dropped_with_its_last_release(
    upstream: UpstreamModel, llama: ServedLlama, tiny_loras: list[Path]
) -> None:
    name = f"millrace-{folder_digest(tiny_loras[0])[:16]}"
    upstream.attach("release_1", tiny_loras[0])
    upstream.attach("release_2", tiny_loras[0])
    assert llama.adapters == {name: str(tiny_loras[0])}
    upstream.detach("release_1")
    assert answered(upstream.generate("release_2", IDS, LONG))[2] > 0
    assert list(llama.adapters) == [name]
    upstream.detach("release_2")
    deadline = time.monotonic() + 10
    while llama.adapters:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_that_was_restarted_is_given_its_adapter_again(
    upstream: UpstreamModel, llama: ServedLlama, tiny_loras: list[Path]
) -> None:
    upstream.attach("release_1", tiny_loras[0])
    before = answered(upstream.generate("release_1", IDS, LONG))
    llama.restart()
    assert answered(upstream.generate("release_1", IDS, LONG)) == before
    llama.restart()
    llama.base = "another-base"
    with pytest.raises(GenerationBroke):
        upstream.generate("release_1", IDS, LONG).result(10)


def test_another_base_model_is_no_release(port: int, llama: ServedLlama, tiny_llama: Path) -> None:
    llama.base = "teacher"
    with pytest.raises(ReleaseError, match=f"expected the model server to serve the base model {BASE}, found teacher"):
        connected(port, tiny_llama)
    llama.base, llama.adapters = "teacher", {BASE: "/somewhere"}
    with pytest.raises(ReleaseError, match="found teacher"):
        connected(port, tiny_llama)


def test_an_adapter_that_is_not_loaded_as_it_should_be_is_no_release(
    upstream: UpstreamModel, llama: ServedLlama, tiny_loras: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    name = f"millrace-{folder_digest(tiny_loras[0])[:16]}"
    llama.fault = "load"
    with pytest.raises(ReleaseError, match="found status 500") as caught:
        upstream.attach("release_1", tiny_loras[0])
    assert "secret" not in str(caught.value) and "max_lora_rank 16" in caplog.text
    llama.fault = ""
    llama.load(name, str(tiny_loras[1]))  # by somebody else, other bytes
    with pytest.raises(ReleaseError, match="from another place"):
        upstream.attach("release_1", tiny_loras[0])
    llama.unload(name)
    llama.fault = "parent"
    with pytest.raises(ReleaseError, match="another-base"):
        upstream.attach("release_1", tiny_loras[0])


def test_who_is_not_there_or_knows_no_key_is_told_with_a_next_step(port: int, tiny_llama: Path) -> None:
    with pytest.raises(ServiceUnavailable, match="found status 401"):
        connected(port, tiny_llama, key="wrong-key")
    with pytest.raises(ServiceUnavailable, match="found ConnectError"):
        connected(9, tiny_llama)
    for url in ("localhost:8000", "ftp://there/v1", "http://[::1", ""):
        with pytest.raises(SettingsError, match="MILLRACE_GENERATION_URL"):
            ModelServer(url, None)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("500", GenerationBroke), ("404", GenerationBroke), ("429", Busy), ("400", GenerationAway),
        ("401", GenerationAway), ("503", GenerationAway), ("break", GenerationBroke), ("error event", GenerationBroke),
        ("malformed", GenerationBroke), ("no end", GenerationBroke), ("stall", GenerationBroke),
    ],
)  # fmt: skip
def test_a_failure_has_a_name_and_nothing_of_the_server_is_told(
    port: int,
    llama: ServedLlama,
    tiny_llama: Path,
    fault: str,
    error: type[Exception],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    upstream = connected(port, tiny_llama, stalled=1)
    llama.fault = fault
    with pytest.raises(error) as caught:
        upstream.generate(None, IDS, LONG).result(20)
    assert "secret" not in str(caught.value) and "Next:" in str(caught.value)
    assert KEY not in caplog.text
    llama.fault = ""
    assert answered(upstream.generate(None, IDS, LONG))[2] > 0, "the next one is answered"
    upstream.close()


def test_a_server_that_went_away_is_away_and_its_return_is_noticed(llama: ServedLlama, tiny_llama: Path) -> None:
    with running(llama) as port:
        upstream = connected(port, tiny_llama)
        before = answered(upstream.generate(None, IDS, LONG))
    with pytest.raises(GenerationAway):
        upstream.generate(None, IDS, LONG).result(20)
    with running(llama, port):
        assert answered(upstream.generate(None, IDS, LONG)) == before
    upstream.close()


def test_who_leaves_ends_the_work_of_the_server(upstream: UpstreamModel, llama: ServedLlama) -> None:
    llama.pause = 0.05
    listener = Listener()
    generation = upstream.generate(None, IDS, Sampling(max_tokens=400), listener)
    next(listener.pieces(generation))
    listener.leave()
    found = generation.result(5)
    assert 0 < found.completion_tokens < 60 and found.finish_reason == "length" and found.text
    deadline = time.monotonic() + 10
    while not llama.aborted:
        assert time.monotonic() < deadline, "the server was not told"
        time.sleep(0.02)
    time.sleep(0.3)
    made = llama.tokens
    time.sleep(0.5)
    assert llama.tokens == made < 60, "it makes no more tokens"


def test_a_deadline_ends_a_generation_with_what_there_is_or_is_too_late(
    upstream: UpstreamModel, llama: ServedLlama
) -> None:
    llama.pause = 0.1
    found = upstream.generate(None, IDS, Sampling(max_tokens=400), Listener(time.monotonic() + 1)).result(5)
    assert 0 < found.completion_tokens < 100 and found.finish_reason == "length"
    with pytest.raises(TooLate):
        upstream.generate(None, IDS, LONG, Listener(time.monotonic() - 1)).result(5)


def test_several_are_answered_at_once_and_close_waits_for_them(upstream: UpstreamModel, llama: ServedLlama) -> None:
    llama.pause = 0.02
    generations = [upstream.generate(None, IDS, LONG) for _ in range(6)]
    upstream.close()
    assert len({answered(each) for each in generations}) == 1 and llama.most_at_once > 1
    deadline = time.monotonic() + 10
    while any(thread.name == "upstream" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "its thread goes on"
        time.sleep(0.02)


def test_a_penalty_is_passed_on(upstream: UpstreamModel, llama: ServedLlama) -> None:
    upstream.generate(None, IDS, Sampling(max_tokens=4, repetition_penalty=1.5, seed=3, temperature=0.5)).result(20)
    assert llama.asked[0]["repetition_penalty"] == 1.5 and llama.asked[0]["seed"] == 3
