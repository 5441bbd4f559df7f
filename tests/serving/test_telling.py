"""Pieces of a text while it is made."""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.serving import telling
from tasks.serving.language_model import LanguageModel, Sampling
from tasks.serving.refusals import TooLate
from tasks.serving.telling import Listener, Teller, cut

IDS = [5, 80, 33, 121, 64]


def of_bytes(ids: list[int]) -> str:
    """Decode bytes as a byte-level tokenizer does."""
    return bytes(ids).decode("utf-8", errors="replace")


def told(data: bytes, stops: Sequence[str] = ()) -> tuple[list[str], Teller]:
    """Return the pieces that are told of a text that comes byte by byte, and what told them."""
    listener = Listener()
    teller = Teller(of_bytes, stops, listener)
    for byte in data:
        teller.put(byte)
        if teller.stopped:
            break
    whole = teller.end()
    done: Future[Any] = Future()
    done.set_result(None)
    pieces = list(listener.pieces(done))
    assert "".join(pieces) == whole, "all pieces together are the text"
    return pieces, teller


WRITTEN = st.characters(codec="utf-8", exclude_characters="\ufffd")


@settings(deadline=None)
@given(st.text(WRITTEN, max_size=40), st.lists(st.text(WRITTEN, min_size=1, max_size=3), max_size=2))
def test_the_pieces_are_the_text_whatever_it_holds(text: str, stops: list[str]) -> None:
    pieces, teller = told(text.encode(), stops)
    whole, stopped = cut(text, stops)
    assert ("".join(pieces), teller.stopped) == (whole.strip(), stopped)
    assert not any("\ufffd" in piece for piece in pieces)


def test_what_was_told_stands_where_a_tokenizer_takes_it_back() -> None:
    """As those do that spell rare characters in bytes: a run of bytes that is no text is unreadable as a whole."""

    def decoded(ids: list[int]) -> str:
        try:
            return bytes(ids).decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(ids)

    listener = Listener()
    teller = Teller(decoded, (), listener)
    for byte in "éñ".encode()[:3]:
        teller.put(byte)
    assert teller.end() == "é"


def test_who_waits_is_asked_each_second_whether_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "PATIENCE", 0.01)
    generation: Future[Any] = Future()
    pieces = Listener().pieces(generation)
    assert [next(pieces), next(pieces)] == ["", ""]
    generation.set_result(None)
    assert not any(pieces)


def test_a_character_is_told_when_it_is_whole_and_blanks_when_more_follows() -> None:
    pieces, _teller = told("  añ b ".encode())
    assert pieces == ["a", "ñ", " b"]


def test_nothing_of_a_stop_string_is_told() -> None:
    pieces, teller = told(b"one END two", ["END", "ENT"])
    assert "".join(pieces) == "one" and teller.stopped
    assert not any("E" in piece for piece in pieces)
    assert "".join(told(b"one EN", ["END"])[0]) == "one EN"  # it was not one after all


def test_a_model_tells_what_it_ends_with(model: LanguageModel) -> None:
    listener = Listener()
    generation = model.generate(None, IDS, Sampling(max_tokens=40), listener)
    pieces = list(listener.pieces(generation))
    assert "".join(pieces) == generation.result().text and len(pieces) > 1
    assert listener.tokens == generation.result().completion_tokens
    assert generation.result().text == model.generate(None, IDS, Sampling(max_tokens=40)).result().text


def test_a_stop_string_ends_a_generation(model: LanguageModel) -> None:
    whole = model.generate(None, IDS, Sampling(max_tokens=40)).result()
    stop = whole.text[10:13]
    found = model.generate(None, IDS, Sampling(max_tokens=40, stop=(stop,))).result()
    assert found.text == whole.text[: whole.text.index(stop)].strip()
    assert found.finish_reason == "stop" and found.completion_tokens < whole.completion_tokens
    exactly = Sampling(max_tokens=found.completion_tokens)
    assert stop in model.generate(None, IDS, exactly).result().text, "no token is made after the stop string"
    fewer = Sampling(max_tokens=found.completion_tokens - 1)
    assert stop not in model.generate(None, IDS, fewer).result().text


def test_who_leaves_ends_the_generation_at_its_next_token(model: LanguageModel) -> None:
    listener = Listener()
    generation = model.generate(None, IDS, Sampling(max_tokens=400), listener)
    next(listener.pieces(generation))
    listener.leave()
    assert generation.result(20).completion_tokens < 400
    waiting = Listener()
    waiting.leave()
    with pytest.raises(TooLate):
        model.generate(None, IDS, Sampling(max_tokens=4), waiting).result(20)


def test_a_deadline_ends_a_generation_with_what_there_is(model: LanguageModel) -> None:
    listener = Listener()
    generation = model.generate(None, IDS, Sampling(max_tokens=400), listener)
    next(listener.pieces(generation))
    listener.deadline = time.monotonic()
    found = generation.result()
    assert 0 < found.completion_tokens < 400 and found.finish_reason == "length" and found.text
    with pytest.raises(TooLate, match="found others before"):
        model.generate(None, IDS, Sampling(max_tokens=4), Listener(time.monotonic() - 1)).result()
