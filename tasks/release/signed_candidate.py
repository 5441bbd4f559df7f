"""The signatures over a registered model version that is no release yet: so that a shadow loads, and `promote` releases, only
what `register` registered.

`signed` adds it to the tags of a version, where there is a key; `check` proves it from the tags that MLflow holds. What is signed is the
name of the model and every tag that says which bytes answer and what they were trained from. In the same form as a
release's (`tasks.release.signing`), by the same keys. `endorsed` signs what a manifest of `register` says of one verdict about
these bytes, and `require_endorsed` proves it: `promote` reads that manifest, and needs no MLflow. Reads and
writes nothing. Fails with `SignatureError`.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tasks.contracts import Manifest
from tasks.errors import SignatureError
from tasks.release.signing import STATEMENT
from tasks.release.signing_keys import opened, sign, signing_key, verify_keys
from tasks.settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

TAG = "signature"
PREDICATE = "urn:millrace:candidate:1"
ENDORSEMENT = "urn:millrace:registration:1"
# Tags of what answers and where it comes from. Others (evidence, manifest) move on with each new proof about the same bytes.
_SIGNED = (
    "weights", "adapter_sha256", "adapter_uri", "model_sha256", "model_uri", "base_model", "base_revision", "dataset_sha256",
    "training_fingerprint",
)  # fmt: skip


# Facts of `register`: the same, and the digest of the gate's manifest.
_ENDORSED = (
    "model_name", "model_version", "adapter_sha256", "adapter_uri", "base_model", "base_revision", "dataset_sha256",
    "weights_sha256", "evidence_sha256",
)  # fmt: skip


def signed(settings: Settings, name: str, tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a version of the model `name`, with a signature where there is a key."""
    private = signing_key(settings)
    if private is None:
        return dict(tags)
    payload = json.dumps(_statement(name, tags), sort_keys=True, separators=(",", ":")).encode()
    return dict(tags) | {TAG: json.dumps(sign(private, payload))}


def check(keys: "Mapping[str, Ed25519PublicKey]", name: str, version: str, tags: Mapping[str, str]) -> None:
    """Prove that one of `keys` signed what the registry says of a version. Raises SignatureError."""
    payload = opened(tags.get(TAG, ""), keys)
    if payload is None or json.loads(payload) != _statement(name, tags):
        raise SignatureError(
            f"expected version {version} of {name} signed by one of the accepted keys {', '.join(key[:12] for key in keys)}, "
            f"found {'no signature of them' if payload is None else 'the signature of something else'}. "
            "Next: docs/signing.md; a version from before there was a key is signed when it is registered again."
        )


def endorsed(settings: Settings, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of `register` with a signature over them as `endorsement`, where there is a key."""
    private = signing_key(settings)
    if private is None:
        return dict(facts)
    payload = json.dumps(_endorsement(facts), sort_keys=True, separators=(",", ":")).encode()
    return dict(facts) | {"endorsement": json.dumps(sign(private, payload))}


def require_endorsed(settings: Settings, register: Manifest) -> None:
    """Where MILLRACE_VERIFY_KEY is set, prove that `register` wrote this manifest, by its signature. Raises SignatureError."""
    if not (keys := verify_keys(settings)):
        return
    payload = opened(str(register.facts.get("endorsement", "")), keys)
    if payload is None or json.loads(payload) != _endorsement(register.facts):
        raise SignatureError(
            f"expected the registration at {register.uri} signed by one of the accepted keys "
            f"{', '.join(key[:12] for key in keys)}, found "
            f"{'no signature of them' if payload is None else 'the signature of something else'}. "
            "Next: clear register with MILLRACE_SIGNING_KEY set, then trigger promote_release; if it was signed, find out "
            "who wrote there."
        )


def _endorsement(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "_type": STATEMENT,
        "subject": [{"name": "weights", "digest": {"sha256": facts.get("weights_sha256")}}],
        "predicateType": ENDORSEMENT,
        "predicate": {name: facts.get(name) for name in _ENDORSED},
    }


def _statement(name: str, tags: Mapping[str, str]) -> dict[str, Any]:
    said = {tag: tags[tag] for tag in _SIGNED if tag in tags}
    sha256 = tags.get("adapter_sha256") or tags.get("model_sha256", "")
    return {
        "_type": STATEMENT,
        "subject": [{"name": said.get("weights", ""), "digest": {"sha256": sha256}}],
        "predicateType": PREDICATE,
        "predicate": {"model_name": name, **said},
    }
