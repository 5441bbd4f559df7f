"""The rules of training examples, each with the row that breaks it, and the overlap of the two sides."""

from typing import Any

import pytest

from tasks.errors import DataError
from tasks.training.validate_dataset import OVERLAP, broken_rows, overlaps, require_apart
from tasks.validation import rules
from tests.tiny_model import pair

GOOD = pair("good", "What does `a.b` do?", "Return the number of open files of this process.")
BREAKING: dict[str, dict[str, Any]] = {
    "origin_is_known": pair("bad", "What is it?", "Some words that say a thing.") | {"origin": "hearsay"},
    "turns_alternate": pair("bad", "What is it?", "Some words that say a thing.")
    | {"messages": [{"role": "assistant", "content": "Some words that say a thing."}]},
    "question_is_a_question": pair("bad", "What?", "Some words that say a thing."),
    "answer_says_something": pair("bad", "What is `x.y`?", "An error."),
    "answer_is_not_huge": pair("bad", "What is `x.y`?", "word " * 1700),
    "answer_is_whole": pair("bad", "What is `x.y`?", "It takes one of these values:"),
    "answer_is_not_a_stub": pair("bad", "What is `x.y`?", "See the documentation of the base class."),
    "text_is_printable": pair("bad", "What is `x.y`?", "It rings the bell \x07 of the terminal."),
}


@pytest.mark.parametrize("rule", BREAKING)
def test_each_rule_finds_the_row_that_breaks_it(rule: str) -> None:
    rejected = broken_rows([GOOD, BREAKING[rule]])
    assert "good" not in rejected
    assert rule in rejected["bad"]
    assert rejected["bad"][rule].startswith("expected ")


def test_no_rule_is_untested() -> None:
    assert set(rules("training_examples")) == set(BREAKING) | {"id_is_its_own"}


def test_an_id_used_twice() -> None:
    other = pair("good", "What does `c.d` do?", "Send all waiting messages to the server.")
    assert "id_is_its_own" in broken_rows([GOOD, other])["good"]


def test_a_near_copy_on_the_same_side_is_rejected() -> None:
    copy = pair("copy", "What does `c.d` do?", "Return the number of open files of this process!")
    assert list(broken_rows([GOOD, copy])) == ["copy"]
    assert "answer_is_new" in broken_rows([GOOD, copy])["copy"]


def test_training_rows_that_are_held_out_or_golden() -> None:
    rows = [
        pair("held", "What does `z.b` do?", "Return the number of open files of this process.", "z", "held_out"),
        GOOD,
        pair("asks", "How do I copy a list in Python code?", "Take a slice of the whole list."),
        pair("fine", "What does `q.r` do?", "Send all waiting messages to the server."),
    ]
    rejected = overlaps(rows, ["How do I copy a list in Python code?"])
    assert set(rejected) == {"good", "asks"}
    assert "that of held" in rejected["good"][OVERLAP]
    assert "golden question" in rejected["asks"][OVERLAP]


def test_a_source_on_both_sides_is_refused() -> None:
    with pytest.raises(DataError, match="every source on one side"):
        require_apart([GOOD, pair("x", "q", "a", "m", "held_out")])
