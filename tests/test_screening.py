"""The screening policy: what each rule finds and leaves, and that no reason repeats what was found.

The secrets are put together here, so that no scanner takes this file for a leak.
"""

from pathlib import Path

import pytest

from tasks.errors import DataError
from tasks.screening import DETECTORS, load_policy, screen, screen_all
from tasks.settings import REPOSITORY
from tasks.training import docstrings

POLICY = load_policy()
KEY = "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow\n-----END RSA " + "PRIVATE KEY-----"
TOKEN = "gh" + "p_" + "a1B2" * 9
CARD = "4111 1111 " + "1111 1111"
FOUND = {
    "private_key": [KEY, "-----BEGIN OPENSSH " + "PRIVATE KEY-----\nb3Blbn"],
    "access_token": [
        TOKEN,
        "AK" + "IA" + "Q7Z4" * 4,
        "sk" + "-proj-" + "x9Y_" * 10,
        ".".join(["ey" + "J" + "hbGciOiJI", "ey" + "J" + "zdWIiOiIx", "s5vT" * 6]),
    ],
    "email_address": ["ada.lovelace@analytical.co.uk", "a+b@mail.org"],
    "payment_card": [CARD, CARD.replace(" ", "-"), "3782" + "822463" + "10005"],
    "hidden_characters": ["in\u200bvisible", "left \u202eto right", "tag\U000e0041"],
}
LEFT = {
    "private_key": ["a PRIVATE KEY, in words", "-----BEGIN PUBLIC KEY-----"],
    "access_token": ["AK" + "IAIOSFODNN7EXAMPLE", "sk-learn", "a_ghp_short", "eyJust words"],
    "email_address": ["someone@example.com", "python-dev@python.org", "git@github.com", "@property", "a@b"],
    "payment_card": [CARD[:-1] + "2", "12345678-1234-1234", "0.4111111111111111", "0000 0000 0000 0000"],
    "hidden_characters": ["plain", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "a soft\u00adhyphen"],
}


@pytest.mark.parametrize("rule", DETECTORS)
def test_each_rule_finds_and_leaves(rule: str) -> None:
    for text in FOUND[rule]:
        assert screen(f"before {text} after", POLICY).hits == {rule: 1}, text
    for text in LEFT[rule]:
        assert screen(f"before {text} after", POLICY).hits == {}, text


def test_a_redaction_leaves_the_rest() -> None:
    assert (
        screen(f"pay with {CARD}, write to x@y.org", POLICY).text == "pay with [payment_card], write to [email_address]"
    )
    assert screen("in\u200bvisible", POLICY).text == "invisible"


def test_a_hidden_character_does_not_hide_a_token() -> None:
    assert "access_token" in screen(TOKEN[:8] + "\u200b" + TOKEN[8:], POLICY).blocked


def test_what_is_blocked_is_told_without_the_secret() -> None:
    outcome = screen_all([("a", ["fine"]), ("b", [f"key {TOKEN}", "x@y.org"]), ("c", ["x@y.org and z@y.org"])], POLICY)
    assert outcome.texts == {"a": ["fine"], "c": ["[email_address] and [email_address]"]}
    assert set(outcome.blocked["b"]) == {"access_token"}
    assert outcome.redacted_by_rule == {"email_address": 2}
    told = outcome.blocked["b"]["access_token"] + outcome.masked["b"]
    assert "expected no text with an access token" in told
    assert TOKEN not in told
    assert "x@y.org" not in told


def test_the_demo_has_nothing_to_hide() -> None:
    from pydoc_data.topics import topics

    texts = [*topics.values(), *(f"{pair.question} {pair.answer}" for pair in docstrings.pairs())]
    assert [screen(text, POLICY).hits for text in texts if screen(text, POLICY).hits] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rules: {private_kee: {action: block}}", "Did you mean 'private_key'"),
        ("rules: {private_key: {action: forbid}}", "expected a screening policy"),
        ("rules: {private_key: {action: block}}", "found none for"),
        ("rules: {private_key: {action: block, allow: ['(']}}", "expected a screening policy"),
    ],
)
def test_a_malformed_policy_is_refused(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=told):
        load_policy(str(path))


def test_the_fingerprint_follows_the_policy() -> None:
    other = POLICY.model_copy(update={"rules": POLICY.rules | {"email_address": POLICY.rules["private_key"]}})
    assert other.fingerprint != POLICY.fingerprint


def test_every_rule_has_a_line_in_the_readme() -> None:
    readme = (REPOSITORY / "expectations" / "README.md").read_text(encoding="utf-8")
    assert [rule for rule in DETECTORS if f"| `{rule}` |" not in readme] == []
