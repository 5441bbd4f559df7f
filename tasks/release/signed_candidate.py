"""The signature over a registered model version that is no release yet: so that a shadow loads only what `register` registered.

`signed` adds it to the tags of a version, where there is a key; `check` proves it from the tags that MLflow holds. What is signed is the
name of the model and every tag that says which bytes answer and what they were trained from. In the same form as a
release's (`tasks.release.signing`), by the same keys. Reads and writes nothing. Fails with `SignatureError`.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tasks.errors import SignatureError
from tasks.release.signing import STATEMENT
from tasks.release.signing_keys import opened, sign, signing_key
from tasks.settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

TAG = "signature"
PREDICATE = "urn:millrace:candidate:1"
# Tags of what answers and where it comes from. Others (evidence, manifest) move on with each new proof about the same bytes.
_SIGNED = (
    "weights", "adapter_sha256", "adapter_uri", "model_sha256", "model_uri", "base_model", "base_revision", "dataset_sha256",
    "training_fingerprint",
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


def _statement(name: str, tags: Mapping[str, str]) -> dict[str, Any]:
    said = {tag: tags[tag] for tag in _SIGNED if tag in tags}
    sha256 = tags.get("adapter_sha256") or tags.get("model_sha256", "")
    return {
        "_type": STATEMENT,
        "subject": [{"name": said.get("weights", ""), "digest": {"sha256": sha256}}],
        "predicateType": PREDICATE,
        "predicate": {"model_name": name, **said},
    }
