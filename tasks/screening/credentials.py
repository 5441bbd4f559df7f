"""Secrets in a text: private keys and access tokens, by their shapes.

Reads and writes nothing but its arguments. Every shape begins with letters that its issuer chose, or stands after a
name, so that a text without those letters is not looked at twice.
"""

import re
from collections.abc import Iterator

from tasks.screening.rules import Detector, Find, Models, Rule, Subject, at_literals, finds

# A key, not its name: a line of base64 (headers and line ends written as \n before it), or short lines up to the end.
_LABEL = r"(?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
_BETWEEN = r"""(?:\\[nr]|[\s>#*|"'+,\\])"""
_HEADERS = rf"(?:[A-Z][A-Za-z-]{{1,30}}: [^\n]{{0,200}}\n{_BETWEEN}*+){{0,5}}+"
_BASE64 = "[A-Za-z0-9+/=]"
_SIDE = r"""[ \t>#*|"'+,]"""  # what may stand before and after a line that is quoted, or a text in source code
_LINE_END = r"(?:\r?\n|(?:\\r)?\\n)"
_PRIVATE_KEY = re.compile(
    rf"-----BEGIN {_LABEL}(?:"
    rf"{_BETWEEN}*+{_HEADERS}{_BASE64}{{40,}}+(?:{_BETWEEN}++{_BASE64}{{20,}}+)*+"
    rf"(?:(?>(?:[^-]++|-(?!----))*)-----END {_LABEL})?"
    rf"|{_SIDE}*+(?:{_LINE_END}{_SIDE}*+{_BASE64}++{_SIDE}*+){{1,20}}+{_LINE_END}{_SIDE}*+-----END {_LABEL})"
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
# The secret half of a key of AWS is 40 characters of no shape of its own; its name stands before it.
_NAMES = (
    "secret_access_key",
    "SECRET_ACCESS_KEY",
    "SecretAccessKey",
    "secretAccessKey",
    "ecret access key",
    "ecret Access Key",
)
_NAMED = re.compile(
    rf"(?:{'|'.join(_NAMES)})[\"'`]?\s{{0,8}}(?:[:=]=?|=>|>|\|)\s{{0,8}}[\"'`]?"
    r"(?P<secret>(?!(?P<one>.)(?P=one){9})[0-9A-Za-z/+]{40})(?![0-9A-Za-z/+=])"
)
_BEGINNINGS = tuple(beginning for beginnings in _TOKENS for beginning in beginnings)


def _private_keys(subject: Subject, _rule: Rule, _models: Models) -> Iterator[Find]:
    return finds(_PRIVATE_KEY.finditer(subject.text)) if "-----BEGIN " in subject.text else iter(())


def _access_tokens(subject: Subject, _rule: Rule, _models: Models) -> Iterator[Find]:
    yield from finds(at_literals(_TOKEN, subject.text, _BEGINNINGS))
    for match in at_literals(_NAMED, subject.text, _NAMES):
        yield Find(match.start("secret"), match.end("secret"), match["secret"])


PRIVATE_KEY = Detector("a private key", _private_keys, (_PRIVATE_KEY.pattern,))
ACCESS_TOKEN = Detector("an access token", _access_tokens, (_TOKEN.pattern, _NAMED.pattern))
