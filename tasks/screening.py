"""What must not reach an index or a dataset: secrets, personal data, hidden characters. One policy for both.

Reads `expectations/screening.yaml`, which says for every rule what happens (block, redact, allow) and which
finds are no hits. Writes nothing but its results. `screen` takes a text and returns it redacted, with its
hits; `screen_all` does so for many named texts and says which are blocked, with a reason that never repeats
what was found. Fails with `DataError` when the policy is malformed.

Hidden characters come out first: one inside a token would hide the token from the other rules.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.contracts import digest
from tasks.errors import DataError, nearest
from tasks.settings import repository_path

POLICY = "expectations/screening.yaml"
Action = Literal["block", "redact", "allow"]

# Zero-width, bidirectional and tag characters. Joiners (U+200C, U+200D) belong to some scripts and to emoji, and are
# hidden only next to ASCII; a byte order mark only counts here when it is not the first character of a file.
_HIDDEN = re.compile(
    "[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\u180e\U000e0000-\U000e007f]"
    "|(?<=[ -~])[\u200c\u200d]|[\u200c\u200d](?=[ -~])"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:[\s\S]{0,20000}?-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----)?"
)
_TOKENS = (
    r"(?:AKIA|ASIA)[0-9A-Z]{16}",  # AWS
    r"gh[oprsu]_[0-9A-Za-z]{36}",  # GitHub
    r"github_pat_[0-9A-Za-z_]{50,}",
    r"glpat-[0-9A-Za-z_-]{20,}",  # GitLab
    r"xox[abeoprs]-[0-9A-Za-z-]{10,}",  # Slack
    r"(?:sk|rk)_live_[0-9A-Za-z]{16,}",  # Stripe
    r"sk-(?:ant-|proj-|or-v1-)?[0-9A-Za-z_-]{32,}",  # OpenAI, Anthropic, OpenRouter
    r"AIza[0-9A-Za-z_-]{35}",  # Google
    r"hf_[A-Za-z]{30,}",  # Hugging Face
    r"npm_[0-9A-Za-z]{36}",
    r"pypi-AgEI[0-9A-Za-z_-]{40,}",
    r"SG\.[0-9A-Za-z_-]{16,}\.[0-9A-Za-z_-]{30,}",  # SendGrid
    r"eyJ[0-9A-Za-z_-]{8,}\.eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{16,}",  # a JSON web token
)
_TOKEN = re.compile(rf"(?<![0-9A-Za-z_-])(?:{'|'.join(_TOKENS)})(?![0-9A-Za-z])")
_EMAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9](?:[\w.+%-]{0,62}[\w+%-])?@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"
)
_CARD = re.compile(r"(?<![\w.])[2-6]\d{3}[ -]?(?:\d[ -]?){8,14}\d(?![\w]|\.\d)")
_CARD_NUMBER = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}|6(?:011|5\d\d|4[4-9]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)


@dataclass(frozen=True)
class Detector:
    """How a rule finds what it looks for: a pattern, and a closer look at what the pattern found."""

    pattern: re.Pattern[str]
    what: str
    confirm: Callable[[str], bool] = lambda _found: True
    mark: str | None = None  # what stands in the place of a redaction; None: the rule's name


def is_card(text: str) -> bool:
    """Return whether a text is a payment card's number: a known issuer, and the right check digit."""
    digits = re.sub(r"\D", "", text)
    if not _CARD_NUMBER.fullmatch(digits) or len(set(digits)) == 1:
        return False
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


DETECTORS = {
    "hidden_characters": Detector(_HIDDEN, "hidden characters", mark=""),
    "private_key": Detector(_PRIVATE_KEY, "a private key"),
    "access_token": Detector(_TOKEN, "an access token"),
    "email_address": Detector(_EMAIL, "an e-mail address"),
    "payment_card": Detector(_CARD, "a payment card number", confirm=is_card),
}


class Rule(BaseModel):
    """What happens to what a rule finds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Action
    allow: tuple[re.Pattern[str], ...] = ()


class Policy(BaseModel):
    """What happens to what each rule finds; every rule has a line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: dict[str, Rule]

    @property
    def fingerprint(self) -> str:
        """A digest of all that decides what is left of a text."""
        found = {name: [rule.action, [p.pattern for p in rule.allow]] for name, rule in self.rules.items()}
        return digest([found, {name: detector.pattern.pattern for name, detector in DETECTORS.items()}])


@dataclass(frozen=True)
class Screened:
    """A text as it may go on, and how often each rule was hit; `blocked` texts may not go on at all."""

    text: str
    hits: Mapping[str, int]
    blocked: Mapping[str, str]


@dataclass
class Outcome:
    """What screening made of many texts: those that go on, the reasons of the others, and the redactions."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    blocked: dict[str, dict[str, str]] = field(default_factory=dict)
    masked: dict[str, str] = field(default_factory=dict)  # an excerpt of a blocked item that repeats no secret
    redactions: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def redacted_by_rule(self) -> dict[str, int]:
        """How many places each rule redacted."""
        total: Counter[str] = Counter()
        for found in self.redactions.values():
            total.update(found)
        return dict(sorted(total.items()))


@cache
def load_policy(path: str = POLICY) -> Policy:
    """Return the policy of a file. Raises DataError for an unknown, missing or malformed rule."""
    name = repository_path(path).name
    try:
        policy = Policy.model_validate(yaml.safe_load(repository_path(path).read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise DataError(
            f"expected a screening policy in {name}, found {error}. Next: correct it; the rules are {sorted(DETECTORS)}."
        ) from error
    for unknown in sorted(policy.rules.keys() - DETECTORS.keys()):
        raise DataError(
            f"expected rules that tasks/screening.py knows in {name}, found {unknown!r}.{nearest(unknown, DETECTORS)} "
            "Next: correct its name."
        )
    if missing := sorted(DETECTORS.keys() - policy.rules.keys()):
        raise DataError(f"expected a line for every rule in {name}, found none for {missing}. Next: add action: allow.")
    return policy


def screen(text: str, policy: Policy) -> Screened:
    """Return the text with everything masked that a rule found, the hits, and the reasons to block it."""
    hits: dict[str, int] = {}
    blocked: dict[str, str] = {}
    for name, detector in DETECTORS.items():  # the order of DETECTORS: hidden characters come first
        rule = policy.rules[name]
        if rule.action == "allow":
            continue
        text, count = _mask(text, name, detector, rule)
        if count:
            hits[name] = count
        if count and rule.action == "block":
            blocked[name] = f"expected no text with {detector.what} (screening policy), found {count}"
    return Screened(text, hits, blocked)


def screen_all(items: Iterable[tuple[str, list[str]]], policy: Policy) -> Outcome:
    """Screen the texts of every named item; one that is blocked takes the whole item with it."""
    outcome = Outcome()
    for item, texts in items:
        found = [screen(text, policy) for text in texts]
        blocked = {rule: reason for part in found for rule, reason in part.blocked.items()}
        if blocked:
            outcome.blocked[item] = blocked
            outcome.masked[item] = " ".join(part.text for part in found)
            continue
        outcome.texts[item] = [part.text for part in found]
        hits: Counter[str] = Counter()
        for part in found:
            hits.update(part.hits)
        if hits:
            outcome.redactions[item] = dict(sorted(hits.items()))
    return outcome


def _mask(text: str, name: str, detector: Detector, rule: Rule) -> tuple[str, int]:
    """Return the text with every find of one rule replaced, and how many there were."""
    count = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        found = match[0]
        if not detector.confirm(found) or any(pattern.fullmatch(found) for pattern in rule.allow):
            return found
        count += 1
        return f"[{name}]" if detector.mark is None else detector.mark

    return detector.pattern.sub(replace, text), count
