"""The rules of training examples, each with the row that breaks it, and the overlap of the two sides."""

from typing import Any
from unittest.mock import ANY

import pytest

from tasks.errors import DataError
from tasks.settings import REPOSITORY
from tasks.training.rows import screened
from tasks.training.validate_dataset import COPY, OVERLAP, SUITE, broken_rows, overlaps, require_apart
from tasks.validation import rules
from tests.tiny_model import pair

GOOD = pair("good", "What does `a.b` do?", "Return the number of open files of this process.")
TEXT = {name: value for name, value in GOOD.items() if name != "messages"} | {"id": "bad"}
BREAKING: dict[str, dict[str, Any]] = {
    "origin_is_known": pair("bad", "What is it?", "Some words that say a thing.") | {"origin": "hearsay"},
    "provenance_is_given": pair("bad", "What is it?", "Some words that say a thing.") | {"provenance": {}},
    "row_says_something": TEXT,
    "roles_are_known": pair("bad", "What is it?", "Some words that say a thing.")
    | {
        "messages": [
            {"role": "tool", "content": "Some words."},
            {"role": "assistant", "content": "And four more words."},
        ]
    },
    "turns_alternate": pair("bad", "What is it?", "Some words that say a thing.")
    | {"messages": [{"role": "assistant", "content": "Some words that say a thing."}]},
    "question_is_a_question": pair("bad", "What?", "Some words that say a thing."),
    "answer_says_something": pair("bad", "What is `x.y`?", "An error."),
    "answer_is_not_huge": pair("bad", "What is `x.y`?", "word " * 1700),
    "answer_is_whole": pair("bad", "What is `x.y`?", "It takes one of these values:"),
    "answer_is_not_a_stub": pair("bad", "What is `x.y`?", "See the documentation of the base class."),
    "text_is_printable": pair("bad", "What is `x.y`?", "It rings the bell \x07 of the terminal."),
    "rejected_is_another": pair("bad", "What is `x.y`?", "Some words that say a thing.")
    | {"rejected": "some words that say: a thing"},
    "rejected_says_something": pair("bad", "What is `x.y`?", "Some words that say a thing.") | {"rejected": " "},
    "rejected_is_not_huge": pair("bad", "What is `x.y`?", "Some words that say a thing.")
    | {"rejected": "word " * 1700},
    "text_row_says_something": TEXT | {"text": "Chapter 2"},
    "text_row_is_not_huge": TEXT | {"text": "a word " * 30_000},
}
FINE = {
    "dpo": pair("fine", "What is `x.y`?", "Some words that say a thing.") | {"rejected": "Something else."},
    "pretrain": TEXT | {"id": "fine", "text": "A text of more than four words."},
}


@pytest.mark.parametrize("rule", BREAKING)
def test_each_rule_finds_the_row_that_breaks_it(rule: str) -> None:
    rejected = broken_rows([GOOD, BREAKING[rule]])
    assert "good" not in rejected
    assert rule in rejected["bad"]
    assert rejected["bad"][rule].startswith("expected ")


@pytest.mark.parametrize("method", FINE)
def test_rows_of_other_methods_are_fine(method: str) -> None:
    assert broken_rows([GOOD, FINE[method]]) == {}


def test_a_preference_without_a_worse_answer_is_none() -> None:
    assert broken_rows([GOOD], "dpo") == {"good": {"rejected_says_something": ANY}}
    assert broken_rows([FINE["dpo"]], "dpo") == {}


def test_no_rule_is_untested_or_without_a_line_in_the_readme() -> None:
    assert set(rules(SUITE)) == set(BREAKING) | {"id_is_its_own"}
    readme = (REPOSITORY / "expectations" / "README.md").read_text(encoding="utf-8")
    assert [rule for rule in {*rules(SUITE), COPY, *OVERLAP.values()} if f"| `{rule}` |" not in readme] == []


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
    assert "that of held" in rejected["good"][OVERLAP["train"]]
    assert "golden question" in rejected["asks"][OVERLAP["train"]]


def test_overlap_of_validation_rows_rejected_answers_and_texts() -> None:
    said = ["Return the number of open files.", "Send all waiting messages at once.", "Close the door of the house."]
    text = {"source": "t", "origin": "corpus", "provenance": {"made_by": "test"}}
    rows = [
        pair("held", "What does `z.b` do?", said[0], "z", "held_out") | {"rejected": said[1]},
        pair("check", "What does `v.b` do?", said[2], "v", "validation") | {"rejected": "I cannot say that."},
        pair("seen", "What does `w.b` do?", said[0], "w", "validation"),
        pair("worse", "What does `a.b` do?", "A fine answer to that.") | {"rejected": said[0]},
        pair("turned", "What does `c.b` do?", said[1]),
        pair("stopper", "What does `d.b` do?", said[2]),
        pair("alike", "What does `e.b` do?", "Another answer of its own.") | {"rejected": "I cannot say that."},
        text | {"id": "text", "split": "train", "text": said[0]},
        text | {"id": "new", "split": "train", "text": "A page that nobody else has written."},
    ]
    rejected = overlaps(rows, [])
    assert set(rejected) == {"seen", "worse", "turned", "stopper", "text"}
    assert list(rejected["seen"]) == ["validation_row_is_not_held_out"]
    assert "that of check" in rejected["stopper"]["train_row_is_not_held_out"]


def test_rows_are_screened_as_documents_are() -> None:
    token = "gh" + "p_" + "a1B2" * 9
    rows = [
        pair("key", "How do I log in?", f"Use {token} for it."),
        pair("mail", "Whom do I ask?", "Write to ada@analytical.org about it.")
        | {"rejected": "Ask bob@analytical.org."},
        pair("mail", "Whom do I ask?", "Nobody at all, I am afraid."),
        GOOD,
    ]
    kept, outcome = screened(rows)
    assert [row["id"] for row in kept] == ["mail", "mail", "good"]
    assert kept[0]["messages"][1]["content"] == "Write to [email_address] about it."
    assert kept[0]["rejected"] == "Ask [email_address]."
    assert kept[1:] == rows[2:]
    assert token not in str(outcome)
    assert outcome.redacted_by_rule == {"email_address": 2}


def test_a_source_on_both_sides_is_refused() -> None:
    with pytest.raises(DataError, match="every source on one side"):
        require_apart([GOOD, pair("x", "q", "a", "m", "held_out")])
