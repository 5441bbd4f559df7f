"""Secrets in a text: private keys and access tokens, by their shapes.

Reads and writes nothing but its arguments. Every shape begins with letters that its issuer chose, so that a text
without those letters is not looked at twice.
"""

import re
from collections.abc import Iterator

from tasks.screening.rules import Detector, Find, Models, Rule, Subject, at_literals, finds

_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:[\s\S]{0,20000}?-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----)?"
)
_TOKENS = {  # how it begins: its shape
    ("AKIA", "ASIA"): r"(?:AKIA|ASIA)[0-9A-Z]{16}",  # AWS
    ("gho_", "ghp_", "ghr_", "ghs_", "ghu_"): r"gh[oprsu]_[0-9A-Za-z]{36}",  # GitHub
    ("github_pat_",): r"github_pat_[0-9A-Za-z_]{50,}",
    ("glpat-",): r"glpat-[0-9A-Za-z_-]{20,}",  # GitLab
    ("xox",): r"xox[abeoprs]-[0-9A-Za-z-]{10,}",  # Slack
    ("sk_live_", "rk_live_"): r"(?:sk|rk)_live_[0-9A-Za-z]{16,}",  # Stripe
    ("sk-",): r"sk-(?:ant-|proj-|or-v1-)?[0-9A-Za-z_-]{32,}",  # OpenAI, Anthropic, OpenRouter
    ("AIza",): r"AIza[0-9A-Za-z_-]{35}",  # Google
    ("hf_",): r"hf_[A-Za-z]{30,}",  # Hugging Face
    ("npm_",): r"npm_[0-9A-Za-z]{36}",
    ("pypi-AgEI",): r"pypi-AgEI[0-9A-Za-z_-]{40,}",
    ("SG.",): r"SG\.[0-9A-Za-z_-]{16,}\.[0-9A-Za-z_-]{30,}",  # SendGrid
    ("eyJ",): r"eyJ[0-9A-Za-z_-]{8,}\.eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{16,}",  # a JSON web token
}
_TOKEN = re.compile(rf"(?<![0-9A-Za-z_-])(?:{'|'.join(_TOKENS.values())})(?![0-9A-Za-z])")
_BEGINNINGS = tuple(beginning for beginnings in _TOKENS for beginning in beginnings)


def _private_keys(subject: Subject, _rule: Rule, _models: Models) -> Iterator[Find]:
    return finds(_PRIVATE_KEY.finditer(subject.text)) if "-----BEGIN " in subject.text else iter(())


def _access_tokens(subject: Subject, _rule: Rule, _models: Models) -> Iterator[Find]:
    return finds(at_literals(_TOKEN, subject.text, _BEGINNINGS))


PRIVATE_KEY = Detector("a private key", _private_keys, (_PRIVATE_KEY.pattern,))
ACCESS_TOKEN = Detector("an access token", _access_tokens, (_TOKEN.pattern,))
