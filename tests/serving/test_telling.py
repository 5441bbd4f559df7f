"""Pieces of a text while it is made."""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.serving.language_model import LanguageModel, Sampling
from tasks.serving.refusals import TooLate
from tasks.serving.telling import Listener, Teller, cut

IDS = [5, 80, 33, 121, 64]


class Ids(list[int]):
    """Token ids as the model gives them, as far as a teller looks at them."""

    def flatten(self) -> "Ids":
        return self

    def tolist(self) -> list[int]:
        return list(self)


def of_bytes(ids: list[int]) -> str:
    """Decode bytes as a byte-level tokenizer does."""
    return bytes(ids).decode("utf-8", errors="replace")


def told(data: bytes, stops: Sequence[str] = ()) -> tuple[list[str], Teller]:
    """Return the pieces that are told of a text that comes byte by byte, and what told them."""
    listener = Listener()
    teller = Teller(of_bytes, stops, listener)
    teller.put(Ids([1, 2, 3]))
    for byte in data:
        teller.put(Ids([byte]))
        if teller.stopped:
            break
    teller.end()
    done: Future[Any] = Future()
    done.set_result(None)
    return list(listener.pieces(done)), teller


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=3), max_size=2))
def test_the_pieces_are_the_text_whatever_it_holds(text: str, stops: list[str]) -> None:
    data = text.encode("utf-8", errors="ignore")
    pieces, teller = told(data, stops)
    whole, _stopped = cut(data.decode(), stops)
    if "\ufffd" not in text:
        assert "".join(pieces) == teller.text == whole.strip()
        assert not any("\ufffd" in piece for piece in pieces)


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
    assert generation.result().text == model.generate(None, IDS, Sampling(max_tokens=40)).result().text


def test_a_stop_string_ends_a_generation(model: LanguageModel) -> None:
    whole = model.generate(None, IDS, Sampling(max_tokens=40)).result()
    stop = whole.text[10:13]
    found = model.generate(None, IDS, Sampling(max_tokens=40, stop=(stop,))).result()
    assert found.text == whole.text[: whole.text.index(stop)].strip()
    assert found.finish_reason == "stop" and found.completion_tokens < whole.completion_tokens


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
    found = model.generate(None, IDS, Sampling(max_tokens=400), Listener(time.monotonic() + 0.1)).result()
    assert 0 < found.completion_tokens < 400 and found.finish_reason == "length"
    with pytest.raises(TooLate, match="found others before"):
        model.generate(None, IDS, Sampling(max_tokens=4), Listener(time.monotonic() - 1)).result()
