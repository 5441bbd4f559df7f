"""Texts made to keep a rule busy: each is looked at in a time that follows its length. Screening has no deadline."""

import time

import pytest

from tasks.screening import DETECTORS, load_policy
from tasks.screening.rules import Subject

POLICY = load_policy()
LENGTH = 100_000
SECONDS = (
    5.0  # of a processor: many times what is needed, as others run beside it; a text that goes wrong takes minutes
)
OF_RULE = {"phone_number": 15.0, "iban": 10.0}
KEY = "-----BEGIN " + "PRIVATE KEY-----"
HOSTILE = {
    "hidden_characters": ["\u200b", "\ufe0f", "a\U000e0100"],
    "encoding_damage": ["Ã", "cafÃ© ", "é"],
    "private_key": [KEY, f"{KEY}\n", f"{KEY}\nA", KEY + "A" * 40, f"{KEY}\nA: \n", "-----BEGIN A "],
    "access_token": ["eyJaaaaaaaa.", "SG.", "github_pat_a", "secret_access_key = "],
    "email_address": ["a@", "@a.", "a.a.@b.co", "a@b.co"],
    "payment_card": ["4", "4111 ", "4111 1111 1111 1111 "],
    "iban": ["AA11", "DE12 ", "GB29NWBK60161331926819"],
    "national_id": ["1", "1 ", " 390.533.447-05", "111.444.777-36 "],
    "phone_number": ["1", "+1 ", "12-34 "],
    "injected_instructions": [
        *("![](https://" + "?" * 195 + "{" * 200, "![](http://a?{", "![", "<img src=", "<img/src=https://?{", "<img/src=https://?%7b"),
        *("ignore all the ", "do not tell ", "never mention any of ", "send all the ", "you are now ", "a ", "i_"),
    ],
    "invisible_text": ["ignore all the", "![](http://a?{"],
    "language": ["a", "` ", "http://a "],
}  # fmt: skip


def test_every_rule_without_a_model_is_tried() -> None:
    assert set(HOSTILE) == {name for name, detector in DETECTORS.items() if detector.model is None}


@pytest.mark.parametrize("rule", HOSTILE)
def test_a_hostile_text_takes_no_longer_than_another(rule: str) -> None:
    detector = DETECTORS[rule]
    list(
        detector.find(
            Subject("Some words, to load what is needed: +49 30 901820, cafÃ©. " * 10),
            POLICY.rules[rule],
            POLICY.models,
        )
    )
    for unit in HOSTILE[rule]:
        text = (unit * (LENGTH // len(unit) + 1))[:LENGTH]
        began = time.process_time()
        list(detector.find(Subject(text, hidden=text), POLICY.rules[rule], POLICY.models))
        assert time.process_time() - began < OF_RULE.get(rule, SECONDS), unit
