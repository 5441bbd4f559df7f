"""API keys: the digests that are accepted, each with a name, and the name of the key that asks.

Reads the `Authorization` header of a request; writes nothing. Keys are kept and compared as SHA-256 digests only. Fails
with `SettingsError` for a malformed setting, which is never repeated (a key may stand in it), and with `KeyRefused`.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import Scope

from tasks.errors import SettingsError
from tasks.observability import logs
from tasks.serving.refusals import KeyRefused

_ITEM = re.compile(r"(?:(?P<name>[A-Za-z0-9_.-]{1,64})=)?(?P<digest>[0-9a-fA-F]{64})")
_EMPTY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Key:
    """An accepted key. Several may share a name: an old one and its successor are one client."""

    name: str
    digest: str


def parse_keys(setting: str | None) -> tuple[Key, ...]:
    """Return the keys of MILLRACE_ASSISTANT_KEY_SHA256: `NAME=DIGEST` or `DIGEST`, comma-separated. Raises SettingsError."""
    keys: dict[str, Key] = {}
    items = [item.strip() for item in (setting or "").split(",") if item.strip()]
    for number, item in enumerate(items, start=1):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise SettingsError(
                "MILLRACE_ASSISTANT_KEY_SHA256: expected 64 hexadecimal digits, or a name of letters, digits, `_`, `.` and "
                f"`-`, `=` and the digits, found {len(item)} characters in item {number}. Next: printf %s KEY | sha256sum"
            )
        digest = match["digest"].lower()
        key = Key(match["name"] or digest[:8], digest)
        if digest == _EMPTY:
            raise SettingsError(
                f"MILLRACE_ASSISTANT_KEY_SHA256: expected the digest of a key, found that of nothing in item {number}. "
                "Next: printf %s KEY | sha256sum, with the key in place of KEY."
            )
        if keys.setdefault(digest, key) != key:
            raise SettingsError(
                f"MILLRACE_ASSISTANT_KEY_SHA256: expected one name for a key, found a second one in item {number}. "
                "Next: remove one."
            )
    return tuple(keys.values())


def accepted(scope: Scope, keys: Sequence[Key]) -> Key:
    """Return the key that a request carries. Raises KeyRefused."""
    # Bytes, as they came: a header need not be text in any encoding.
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, secret = given[0].partition(b" ") if given else (b"", b"", b"")
    secret = secret.strip()
    found = hashlib.sha256(secret).hexdigest()
    # Every digest is compared, in constant time.
    matching = [key for key in keys if hmac.compare_digest(found, key.digest)]
    if len(given) != 1 or scheme.lower() != b"bearer" or not secret or not matching:
        raise KeyRefused(
            "expected an accepted key in one 'Authorization: Bearer KEY', found none. "
            "Next: ask whoever runs this assistant for one."
        )
    return matching[0]


def key_name() -> str:
    """Return the name of the key of the request that is served here; empty where no keys are set."""
    return logs.of_request("key_name") or ""
