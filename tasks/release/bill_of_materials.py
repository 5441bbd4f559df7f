"""The bill of materials of a release: CycloneDX 1.6, as JSON, made from facts alone.

Reads the kept evidence of a release (the manifests behind its model), the row of its index version, and the list of packages
that `train` wrote. Writes one file beside the evidence, named by its digest: the model, what it was trained from (base model and
revision, dataset with digest and counts, the Python packages of the environment that trained it), the prompt and the index
version. The same facts give the same bytes: the serial number is made from the content, the time is when the training ended.
Fails with `ManifestError` when the list of packages is not what `train` wrote. The format: https://cyclonedx.org/docs/1.6/json/.
"""

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tasks.contracts import Artifact, Manifest
from tasks.release import evidence as proofs
from tasks.release.ledger import Parts
from tasks.release.weights import Weights
from tasks.storage import Storage

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

CONTENT_TYPE = "application/vnd.cyclonedx+json; version=1.6"
MODEL, BASE, DATASET, PROMPT, INDEX = "model", "base-model", "dataset", "prompt", "index"
_UNKNOWN = "not recorded by the training"


def keep(storage: Storage, parts: Parts, content: Mapping[str, Any], fingerprint: str) -> Artifact:
    """Write the bill of materials of a release beside its evidence, whose `content` is given, and return it."""
    body = text(parts, content, fingerprint, trained_with(storage, content)).encode()
    sha256 = hashlib.sha256(body).hexdigest()
    uri = f"{parts.evidence_uri.rpartition('/')[0]}/bom-{sha256[:16]}.cdx.json"
    if storage.exists(uri):
        found = Artifact(uri=uri, sha256=sha256, bytes=len(body))
        storage.verify(found)
        return found
    return storage.put_bytes(uri, body, content_type=CONTENT_TYPE)


def trained_with(storage: Storage, content: Mapping[str, Any]) -> list[dict[str, str]] | None:
    """Return the packages of the environment that trained the model, or None where `train` did not write them yet."""
    listed = Manifest.model_validate(content["manifests"]["train"]).outputs.get("packages")
    return None if listed is None else list(storage.get_json(listed))


def text(
    parts: Parts, content: Mapping[str, Any], fingerprint: str, packages: Iterable[Mapping[str, str]] | None
) -> str:
    """Return the bill of materials as JSON; `fingerprint` is that of the index version's pipeline."""
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    manifests = {name: Manifest.model_validate(content["manifests"][name]) for name in ("train", "validate_dataset")}
    weights = proofs.kept_weights(content, parts.adapter_uri or parts.base_model)
    application = Component(
        name=parts.model_name, type=ComponentType.APPLICATION, bom_ref="release", version=parts.model_version,
        properties=_properties(code_revision=parts.code_revision, embedder=parts.embedder, evidence_sha256=parts.evidence_sha256),
    )  # fmt: skip
    libraries = [_library(item["name"], item["version"]) for item in packages or ()]
    model, *materials = _materials(parts, weights, fingerprint, manifests, packages is None)
    # What decides: the facts, not the moment or the machine at which they are written down.
    named = json.dumps([parts.__dict__, fingerprint, list(packages or ())], sort_keys=True, default=str)
    bom = Bom(
        serial_number=uuid.uuid5(
            uuid.NAMESPACE_URL, f"urn:millrace:release:{hashlib.sha256(named.encode()).hexdigest()}"
        ),
        metadata=BomMetaData(component=application, timestamp=manifests["train"].ended_at),
        components=[model, *materials, *libraries],
    )
    trained_from = {BASE, DATASET}
    bom.register_dependency(
        application, [model, *(item for item in materials if item.bom_ref.value in {PROMPT, INDEX})]
    )
    bom.register_dependency(model, [item for item in materials if item.bom_ref.value in trained_from] + libraries)
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def _materials(
    parts: Parts, weights: Weights, fingerprint: str, manifests: Mapping[str, Manifest], no_packages: bool
) -> "list[Component]":
    """Return the model first, then what it and the release are made of."""
    from cyclonedx.model.component import Component, ComponentType

    train, dataset = manifests["train"], manifests["validate_dataset"]
    trained_from, revision = str(train.facts["base_model"]), str(train.facts["base_revision"])
    known = {"packages": _UNKNOWN} if no_packages else {}
    files = [
        _part(f"{weights.kind}/{name}", f"{MODEL}/{name}", item.sha256) for name, item in sorted(weights.files.items())
    ]
    about = _properties(
        kind=weights.kind, uri=weights.uri, weights_sha256=weights.sha256, recipe=train.facts.get("recipe"),
        training_fingerprint=train.facts.get("training_fingerprint"), trained_by_code=train.code_revision,
        trained_by_image=train.image_digest, **known,
    )  # fmt: skip
    counts = {f"rows.{name}": item.rows for name, item in dataset.outputs.items()} | {
        f"count.{name}": value for name, value in dataset.counts.items()
    }
    learning, data = ComponentType.MACHINE_LEARNING_MODEL, ComponentType.DATA
    return [
        Component(
            name=parts.model_name, type=learning, bom_ref=MODEL, version=parts.model_version, components=files, properties=about,
        ),
        Component(name=trained_from, type=learning, bom_ref=BASE, version=revision),
        Component(
            name="dataset", type=data, bom_ref=DATASET, properties=_properties(**counts), hashes=_sha256(parts.dataset_sha256),
        ),
        _part("prompt", PROMPT, hashlib.sha256(parts.prompt.encode()).hexdigest()),
        Component(
            name="index", type=data, bom_ref=INDEX, version=str(parts.index_version),
            properties=_properties(fingerprint=fingerprint, embedder=parts.embedder),
        ),
    ]  # fmt: skip


def _part(name: str, reference: str, sha256: str) -> "Component":
    from cyclonedx.model.component import Component, ComponentType

    return Component(name=name, type=ComponentType.FILE, bom_ref=reference, hashes=_sha256(sha256))


def _library(name: str, version: str) -> "Component":
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    purl = PackageURL("pypi", name=name, version=version)
    return Component(name=name, type=ComponentType.LIBRARY, bom_ref=purl.to_string(), version=version, purl=purl)


def _sha256(value: str | None) -> list[Any]:
    from cyclonedx.model import HashAlgorithm, HashType

    return [HashType(alg=HashAlgorithm.SHA_256, content=value)] if value else []


def _properties(**values: Any) -> list[Any]:
    """Return what CycloneDX has no field for, by names of ours; what is not known is left out."""
    from cyclonedx.model import Property

    return [Property(name=f"millrace:{name}", value=str(value)) for name, value in values.items() if value is not None]
