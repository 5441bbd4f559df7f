"""The keys that releases are signed with (Ed25519), and a signature in the form of DSSE.

Reads `MILLRACE_SIGNING_KEY` (the private key) and `MILLRACE_VERIFY_KEY` (public keys, comma-separated: while keys change, the
old and the new one). A key is one line, so that every launcher's environment carries it: base64 (URL-safe or not) of its DER form
(RFC 8410: PKCS #8 or SubjectPublicKeyInfo), which is the line between BEGIN and END of a PEM file. Writes, as tool `signing-key`, a new pair
as two files of variables; never over others. Fails with `SettingsError` for what is no such key, `OptionError` for the tool.

DSSE signs the type and the bytes of a payload together, so that neither JSON nor its order has to be made canonical by a reader:
https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md, envelope.md.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import OptionError, SettingsError
from tasks.settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
FILES = {"signing.env": "MILLRACE_SIGNING_KEY", "verify.env": "MILLRACE_VERIFY_KEY"}


def make_pair() -> tuple[str, str]:
    """Return a new private key and its public key, each as one line."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return base64.urlsafe_b64encode(private).decode(), base64.urlsafe_b64encode(_der(key.public_key())).decode()


def signing_key(settings: Settings) -> "Ed25519PrivateKey | None":
    """Return the private key of the settings, or None where none is set. Raises SettingsError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_der_private_key

    if settings.signing_key is None:
        return None
    try:
        key = load_der_private_key(_decoded(settings.signing_key.get_secret_value()), password=None)
    except (ValueError, TypeError):
        key = None  # what it was is not told: it may be half a key
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(
            "MILLRACE_SIGNING_KEY: expected an Ed25519 private key as one line of base64 (DER), found something else. "
            "Next: python -m tasks signing-key --out FOLDER makes one."
        )
    return key


def verify_keys(settings: Settings) -> "dict[str, Ed25519PublicKey]":
    """Return the accepted public keys by their id; none where none is set. Raises SettingsError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    if settings.verify_key is None:
        return {}
    found = {}
    for number, text in enumerate(settings.verify_key.split(","), start=1):
        try:
            key = load_der_public_key(_decoded(text))
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise SettingsError(
                f"MILLRACE_VERIFY_KEY: expected Ed25519 public keys as base64 (DER), comma-separated, found another as item "
                f"{number}. Next: take the line of verify.env that signing-key wrote."
            )
        found[key_id(key)] = key
    return found


def key_id(key: "Ed25519PublicKey") -> str:
    """Return what a key is called: the SHA-256 of its DER form."""
    return hashlib.sha256(_der(key)).hexdigest()


def sign(key: "Ed25519PrivateKey", payload: bytes) -> dict[str, Any]:
    """Return the envelope of a payload with one signature."""
    signature = base64.b64encode(key.sign(_encoded(PAYLOAD_TYPE, payload))).decode()
    return {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": key_id(key.public_key()), "sig": signature}],
    }


def opened(envelope: str, keys: "Mapping[str, Ed25519PublicKey]") -> bytes | None:
    """Return the payload of an envelope that one of `keys` signed, else None, also for what is no envelope."""
    from cryptography.exceptions import InvalidSignature

    try:
        found = json.loads(envelope)
        payload = base64.b64decode(found["payload"], validate=True)
        signed = _encoded(str(found["payloadType"]), payload)
        signatures = [base64.b64decode(item["sig"], validate=True) for item in found["signatures"]]
    except (ValueError, KeyError, TypeError):
        return None
    if found["payloadType"] != PAYLOAD_TYPE:
        return None
    # The id in an envelope is a hint that nobody signed: every accepted key is tried.
    for key in keys.values():
        for signature in signatures:
            try:
                key.verify(signature, signed)
            except InvalidSignature:
                continue
            return payload
    return None


def main(arguments: list[str]) -> int:
    """`python -m tasks signing-key --out FOLDER`: make a key pair, as FOLDER/signing.env and FOLDER/verify.env (0600)."""
    from tasks.options import parse_options

    given = parse_options(arguments)
    if set(given) != {"out"} or not given["out"]:
        raise OptionError(f"expected --out FOLDER, found {sorted(given)}. Next: correct the command.")
    folder = Path(given["out"])
    for name in FILES:
        if (folder / name).exists():
            raise OptionError(
                f"expected no {name} in {folder}, found one: a key is never written over. Next: name another folder."
            )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for (name, variable), line in zip(FILES.items(), make_pair(), strict=True):
        (folder / name).touch(mode=0o600, exist_ok=False)
        (folder / name).write_text(f"{variable}={line}\n", encoding="utf-8")
        print(f"{folder / name}: {variable}")
    return 0


def _encoded(kind: str, payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding of a payload and its type."""
    name = kind.encode()
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.strip().replace("-", "+").replace("_", "/"), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def _der(key: "Ed25519PublicKey") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
