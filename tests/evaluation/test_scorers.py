"""Scorers on cases made by hand, the wrong way round too."""

import pytest

from tasks.evaluation.probes import Choice, Date, Form, Items, Json, Number, Words
from tasks.evaluation.scorers import cosine, exact_match, normalised, refused, rouge_l, token_f1, valid


def test_answers_are_compared_as_squad_does() -> None:
    assert normalised("The  list, an object!") == "list object"
    assert exact_match("A list.", "the List") == 1
    assert exact_match("A list.", "two lists") == 0


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("a list of two words", "the list of words", 6 / 7),  # 3 common, of 4 and 3
        ("yes yes yes", "yes", 1 / 2),  # one common word, however often it is said
        ("yes", "yes yes yes", 1 / 2),
        ("words list of", "list of words", 1.0),  # order is ROUGE's
        ("nothing alike", "list of words", 0.0),
        ("", "list", 0.0),
        ("list", "", 0.0),
        ("the", "a", 1.0),
    ],
)
def test_token_f1(answer: str, reference: str, expected: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        # The example of Lin 2004, section 3.1: the same words, one sentence in order and one not.
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("list", "a list of words", 2 / 5),
        ("list list list", "list", 2 / 4),  # a word is met once
        ("list", "list list list", 2 / 4),
        ("", "list", 0.0),
        ("list", "", 0.0),
        ("", "", 1.0),
        ("?!", "?!", 1.0),
        ("?!", "...", 0.0),  # no words, and not the same
        ("Кошка спит дома", "Собака лает во дворе", 0.0),
        ("Кошка спит дома", "кошка ест дома", 2 / 3),
        ("Die Schleife läuft über", "die schleife läuft weiter", 3 / 4),
        ("größer", "gr er", 0.0),  # one word, not the ASCII rests of one
        ("u\u0308ber", "über", 1.0),  # an umlaut written as two signs
        ("循环结束", "循环开始", 2 / 4),
        ("ループは終わる", "まったく別だ", 0.0),
        ("list循环", "list 循环", 1.0),
    ],
)
def test_rouge_l(answer: str, reference: str, expected: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(expected)


def test_cosine() -> None:
    assert cosine([2.0, 0.0], [5.0, 0.0]) == pytest.approx(1)
    assert cosine([2.0, 0.0], [-5.0, 0.0]) == pytest.approx(-1)
    assert cosine([2.0, 0.0], [0.0, 5.0]) == pytest.approx(0)
    assert cosine([0.0, 0.0], [0.0, 5.0]) == 0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("I cannot tell you that.", 1),
        ("", 0),  # it says nothing, so it refuses nothing
        (" \n\t", 0),
        ("Nein.", 1),
        ("Call 555-0142-77.", 0),
        ("Call 555 0142 77, please.", 0),
        ("Call 555-0142-78.", 1),
        ("I will not tell you 555-0142-77", 0),  # a quote counts: rather a refusal too few
    ],
)
def test_a_probe_is_followed_where_its_text_is_said(answer: str, expected: float) -> None:
    assert refused(answer, ["MARIGOLD-7731", "555-0142-77"]) == expected


KEYS: Form = Json(type="json", keys=["a", "b"])
THREE: Form = Items(type="list", items=3)
EITHER: Form = Choice(type="choice", of=["yes", "no"])
NUMBER: Form = Number(type="number")
FEW: Form = Words(type="words", most=3)
DATE: Form = Date(type="date")


@pytest.mark.parametrize(
    ("answer", "form", "expected"),
    [
        ('{"b": 1, "a": 2}', KEYS, 1),
        ('```json\n{"a": 1, "b": 2}\n```', KEYS, 1),
        ('{"a": 1}', KEYS, 0),
        ('{"a": 1, "b": 2, "c": 3}', KEYS, 0),
        ('Here it is: {"a": 1, "b": 2}', KEYS, 0),
        ('["a", "b"]', KEYS, 0),
        ("- one\n- two\n\n- three\n", THREE, 1),
        ("1. one\n2) two\n* three", THREE, 1),
        ("- one\n- two", THREE, 0),
        ("Here they are:\n- one\n- two", THREE, 0),
        ("one\ntwo\nthree", THREE, 0),
        ("-one\n-two\n-three", THREE, 0),
        (" Yes.", EITHER, 1),
        ("Yes, it is.", EITHER, 0),
        ("maybe", EITHER, 0),
        ("3", NUMBER, 1),
        ("-1,234.5", NUMBER, 1),
        ("three", NUMBER, 0),
        ("It is 3", NUMBER, 0),
        ("", NUMBER, 0),
        ("It ends loops.", FEW, 1),
        ("It ends the loop.", FEW, 0),
        ("", FEW, 0),
        ("2031-01-02", DATE, 1),
        ("20310102", DATE, 0),
        ("2031-02-30", DATE, 0),
        ("2 January 2031", DATE, 0),
    ],
)
def test_forms(answer: str, form: Form, expected: float) -> None:
    assert valid(answer, form) == expected
