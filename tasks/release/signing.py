"""Signatures over releases: `seal` makes one in the transaction that makes the release, `verify` proves one before it is used.

What is signed is an in-toto Statement v1 (https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md) in an
envelope of DSSE (`signing_keys`). Its subjects are the files of the weights, prompt, dataset, evidence and bill of materials with
their digests; its predicate is the row of the ledger, the pipeline of the index version, and who signed. `verify` makes the
statement again from the ledger and from the evidence in S3, and compares it with the signed one, so that another byte in any of them
is refused; the weights themselves are compared with their digests by whoever fetches them. Reads `releases`, `index_versions`,
evidence and bill of materials in S3; writes `release_boms` and `release_signatures`. Fails with `SignatureError`, `SettingsError`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tasks.contracts import Artifact
from tasks.database import Connection
from tasks.errors import ManifestError, ReleaseError, SignatureError
from tasks.release import bill_of_materials
from tasks.release import evidence as proofs
from tasks.release.ledger import Release
from tasks.release.signing_keys import key_id, opened, sign, signing_key, verify_keys
from tasks.release.weights import Weights
from tasks.settings import Settings
from tasks.storage import Storage

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:millrace:release:1"
_INDEX = ("version", "fingerprint", "embedder")


@dataclass(frozen=True)
class Recorded:
    """What the database says of a release besides its row."""

    index: Mapping[str, Any] | None
    bom: Artifact | None
    signatures: list[dict[str, Any]]


def recorded(connection: Connection, release: Release) -> Recorded:
    """Return what is recorded beside the row of a release."""
    index = connection.execute(
        "SELECT version, fingerprint, embedder FROM index_versions WHERE version = %s", (release.index_version,)
    ).fetchone()
    bom = connection.execute(
        "SELECT uri, sha256, bytes FROM release_boms WHERE release = %s", (release.release,)
    ).fetchone()
    signatures = connection.execute(
        "SELECT key_id, signed_by, envelope FROM release_signatures WHERE release = %s ORDER BY created_at, key_id",
        (release.release,),
    ).fetchall()
    return Recorded(index, Artifact(**bom) if bom else None, signatures)


def seal(
    settings: Settings,
    storage: Storage,
    connection: Connection,
    release: Release,
    *,
    by: str,
    source: Release | None = None,
) -> Release:
    """Keep the bill of materials of a release, sign it where there is a key, in the caller's transaction, and return it.

    `source` is the earlier release that its model was taken from: what is not proven is not signed again. Raises
    SignatureError, ManifestError.
    """
    keys, private = verify_keys(settings), signing_key(settings)
    if keys and (private is None or key_id(private.public_key()) not in keys):
        raise SignatureError(
            "expected MILLRACE_SIGNING_KEY to be the private key of one in MILLRACE_VERIFY_KEY, found "
            f"{'none' if private is None else 'another'}: nobody could load what is released. Next: docs/signing.md."
        )
    if source is not None:
        verify(settings, storage, connection, source)
    known = recorded(connection, release)
    earlier = recorded(connection, source).bom if source is not None and source.parts() == release.parts() else None
    content = proofs.recall(storage, release.evidence_uri, release.evidence_sha256)
    bom = (
        known.bom or earlier or bill_of_materials.keep(storage, release.parts(), content, _fingerprint(known, release))
    )
    connection.execute(
        "INSERT INTO release_boms (release, uri, sha256, bytes) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (release.release, bom.uri, bom.sha256, bom.bytes),
    )
    if private is not None:
        payload = _canonical(statement(release, known, bom, content, by))
        connection.execute(
            "INSERT INTO release_signatures (release, key_id, signed_by, envelope) VALUES (%s, %s, %s, %s) "
            "ON CONFLICT DO NOTHING",
            (release.release, key_id(private.public_key()), by, json.dumps(sign(private, payload))),
        )
    return release


def verify(settings: Settings, storage: Storage, connection: Connection, release: Release) -> Weights | None:
    """Prove a release by its signature, where there is a key to do it with; return its weights. Raises SignatureError."""
    keys = verify_keys(settings)
    return check(keys, storage, release, recorded(connection, release)) if keys else None


def check(keys: "Mapping[str, Ed25519PublicKey]", storage: Storage, release: Release, known: Recorded) -> Weights:
    """Prove that one of `keys` signed the release as it stands in the ledger and in S3; return the files of its weights.

    Raises SignatureError.
    """
    signed = _signed(keys, release, known)
    if known.bom is None:
        raise _refused(release, "its bill of materials", "none in the ledger")
    try:
        content = proofs.recall(storage, release.evidence_uri, release.evidence_sha256)
        storage.get(known.bom)
        found = statement(release, known, known.bom, content, str(_at(signed, "predicate", "signed_by")))
    except (ManifestError, ReleaseError) as error:
        raise SignatureError(f"release {release.release} is not what was signed: {error}") from error
    if (other := _difference(signed, json.loads(_canonical(found)))) is not None:
        raise _refused(release, f"{other} as it was signed", "another")
    return _weights(release, content)


def statement(
    release: Release, known: Recorded, bom: Artifact, content: Mapping[str, Any], signed_by: str
) -> dict[str, Any]:
    """Return what is signed: every part of a release, by digest where it has one."""
    weights = _weights(release, content)
    digests = {f"{weights.kind}/{name}": item.sha256 for name, item in weights.files.items()} | {
        "prompt": hashlib.sha256(release.prompt.encode()).hexdigest(),
        "evidence": release.evidence_sha256,
        "bill of materials": bom.sha256,
    }
    if release.dataset_sha256 is not None:
        digests["dataset"] = release.dataset_sha256
    _fingerprint(known, release)
    row = {name: value for name, value in asdict(release).items() if name != "prompt"}
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in sorted(digests.items())],
        "predicateType": PREDICATE,
        "predicate": {
            "release": row,
            "weights": {
                "kind": weights.kind,
                "uri": weights.uri,
                "sha256": weights.sha256,
                "revision": weights.revision,
            },
            "index": {name: (known.index or {})[name] for name in _INDEX},
            "bill_of_materials": bom.uri,
            "signed_by": signed_by,
        },
    }


def _signed(keys: "Mapping[str, Ed25519PublicKey]", release: Release, known: Recorded) -> dict[str, Any]:
    """Return the statement about this release that an accepted key signed. Raises SignatureError."""
    for row in known.signatures:
        payload = opened(row["envelope"], keys)
        if payload is not None:
            signed: dict[str, Any] = json.loads(payload)
            return signed
    found = [row["key_id"][:12] for row in known.signatures]
    raise _refused(
        release,
        f"a signature by one of the accepted keys {', '.join(name[:12] for name in keys)}",
        f"none that holds (recorded: {', '.join(found)})" if found else "none",
    )


def _difference(signed: Any, found: Any, place: str = "") -> str | None:
    """Return where a signed value differs from what is found; what was added to the ledger later is empty in what is older."""
    if isinstance(signed, dict) and isinstance(found, dict):
        for name in sorted(set(signed) | set(found)):
            inner = f"{place}.{name}" if place else name
            if name not in signed and found[name] is None and place == "predicate.release":
                continue
            if name not in signed or name not in found:
                return inner
            if (other := _difference(signed[name], found[name], inner)) is not None:
                return other
        return None
    if place == "subject" and isinstance(signed, list) and isinstance(found, list):
        ours, theirs = ({item["name"]: item["digest"] for item in items} for items in (signed, found))
        return _difference(ours, theirs, "the subject")
    return None if signed == found else place


def _weights(release: Release, content: Mapping[str, Any]) -> Weights:
    return proofs.kept_weights(content, release.adapter_uri or release.base_model)


def _fingerprint(known: Recorded, release: Release) -> str:
    if known.index is None:
        raise ReleaseError(
            f"expected index version {release.index_version} of release {release.release}, found none. "
            "Next: restore it from a backup, or release a newer index."
        )
    return str(known.index["fingerprint"])


def _at(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _canonical(value: Any) -> bytes:
    """Return JSON with sorted keys; a time as ISO 8601 in UTC, whatever the zone of the session that read it."""

    def told(other: Any) -> str:
        return other.astimezone(UTC).isoformat() if isinstance(other, datetime) else str(other)

    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=told).encode()


def _refused(release: Release, expected: str, found: str) -> SignatureError:
    return SignatureError(
        f"expected {expected} of release {release.release}, found {found}; it is not loaded. Next: docs/signing.md, "
        "'When a signature does not hold'; roll back to a release that verifies."
    )
