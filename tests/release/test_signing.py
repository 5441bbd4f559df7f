"""A release is what was signed, or it is refused: every column, every kept file, the index, the envelope; and its bill of materials."""

import json
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import pytest

from tasks.contracts import Artifact, Manifest, digest_of
from tasks.errors import ManifestError, SignatureError
from tasks.release import bill_of_materials, signing
from tasks.release import evidence as proofs
from tasks.release.ledger import Release
from tasks.release.signing import Recorded
from tasks.release.signing_keys import key_id, make_pair, sign, signing_key, verify_keys
from tests.release.test_signing_keys import with_keys

FOLDER = "s3://b/models/f/adapter"
NOW = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)
PACKAGES = [{"name": "peft", "version": "0.21.2"}, {"name": "torch", "version": "2.13.0+cpu"}]
KEYS = with_keys(*make_pair())


class Bucket:
    """S3 as a dictionary."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put_bytes(self, uri: str, body: bytes, **_: Any) -> Artifact:
        import hashlib

        self.objects[uri] = body
        return Artifact(uri=uri, sha256=hashlib.sha256(body).hexdigest(), bytes=len(body))

    def put_json(self, uri: str, value: Any) -> Artifact:
        return self.put_bytes(uri, json.dumps(value).encode())

    def get_bytes(self, uri: str) -> bytes:
        if uri not in self.objects:
            raise ManifestError(f"expected an object at {uri}, found none.")
        return self.objects[uri]

    def get(self, artifact: Artifact) -> bytes:
        found = self.put_bytes("s3://b/scratch", self.get_bytes(artifact.uri))
        if found.sha256 != artifact.sha256:
            raise ManifestError(f"expected other bytes at {artifact.uri}")
        return self.get_bytes(artifact.uri)

    def get_json(self, artifact: Artifact) -> Any:
        return json.loads(self.get(artifact))

    def exists(self, uri: str) -> bool:
        return uri in self.objects

    def verify(self, artifact: Artifact) -> None:
        self.get(artifact)


def manifest(stage: str, **changed: Any) -> Manifest:
    return Manifest(
        stage=stage, run="s3://b/runs/fine_tune/1", status="complete", fingerprint="f", code_revision="c0de",
        host="h", started_at=NOW, ended_at=NOW, **changed,
    )  # fmt: skip


class House:
    """A release with all that stands behind it, signed."""

    def __init__(self, *, packages: bool = True) -> None:
        self.bucket = cast(Any, Bucket())
        files = {
            n: self.bucket.put_bytes(f"{FOLDER}/{n}", n.encode()) for n in ("adapter_config.json", "a.safetensors")
        }
        outputs = {f"adapter/{name}": item for name, item in files.items()}
        if packages:
            outputs["packages"] = self.bucket.put_json("s3://b/models/f/packages.json", PACKAGES)
        rows = self.bucket.put_bytes("s3://b/d/train.jsonl", b"{}").model_copy(update={"rows": 64})
        facts = {"base_model": "hub:org/base", "base_revision": "b" * 40, "recipe": "demo", "training_fingerprint": "f"}
        self.content = {
            "adapter": {name: item.model_dump(mode="json") for name, item in files.items()},
            "manifests": {
                "train": manifest("train", outputs=outputs, facts=facts).model_dump(mode="json"),
                "validate_dataset": manifest(
                    "validate_dataset", outputs={"train": rows}, counts={"train": 64, "quarantined": 2}
                ).model_dump(mode="json"),
            },
        }
        evidence = proofs.keep(self.bucket, "s3://b", self.content)
        self.release = Release(
            release=7, created_at=NOW, kind="promotion", model_name="m", model_version="3", adapter_uri=FOLDER,
            adapter_sha256=digest_of(files), base_model="hub:org/base", base_revision="b" * 40, prompt_sha256="p" * 64,
            prompt="Be short.", index_version=4, embedder="e", dataset_sha256="d" * 64, code_revision="c0de",
            evidence_uri=evidence.uri, evidence_sha256=evidence.sha256, approved_by="Ada", reason="better",
            run="s3://b/runs/promote_release/1", restores=None,
        )  # fmt: skip
        self.index = {"version": 4, "fingerprint": "pipeline", "embedder": "e"}
        self.bom = bill_of_materials.keep(self.bucket, self.release.parts(), self.content, "pipeline")
        self.recorded = Recorded(self.index, self.bom, [self.signature()])

    def signature(self, own: Any = KEYS, **changed: Any) -> dict[str, Any]:
        private = signing_key(own)
        assert private is not None
        known = Recorded(self.index, self.bom, [])
        said = signing.statement(replace(self.release, **changed), known, self.bom, self.content, "promote")
        envelope = json.dumps(sign(private, signing._canonical(said)))
        return {"key_id": key_id(private.public_key()), "signed_by": "promote", "envelope": envelope}

    def check(self, release: Release | None = None, known: Recorded | None = None, own: Any = KEYS) -> Any:
        return signing.check(verify_keys(own), self.bucket, release or self.release, known or self.recorded)


@pytest.fixture
def house() -> House:
    return House()


def test_what_was_signed_verifies_whatever_the_time_zone_of_the_session(house: House) -> None:
    assert set(house.check().files) == {"adapter_config.json", "a.safetensors"}
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    house.check(replace(house.release, created_at=elsewhere))


@pytest.mark.parametrize("name", [item.name for item in fields(Release)])
def test_another_value_in_any_column_of_the_ledger_is_refused(house: House, name: str) -> None:
    value = getattr(house.release, name)
    other: Any = (
        NOW + timedelta(microseconds=1) if name == "created_at" else 99 if isinstance(value, int) else f"{value}x"
    )
    if name == "restores":
        other = 6
    with pytest.raises(SignatureError, match="release "):
        house.check(replace(house.release, **{name: other}))


@pytest.mark.parametrize("name", ["evidence.json", ".cdx.json"])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_kept_file_that_changed_is_refused(house: House, name: str, how: str) -> None:
    (uri,) = [uri for uri in house.bucket.objects if uri.endswith(name)]
    body = house.bucket.objects.pop(uri)
    if how == "changed":
        house.bucket.objects[uri] = body.replace(b"a", b"b", 1)
    with pytest.raises(SignatureError, match="not what was signed: expected"):
        house.check()


@pytest.mark.parametrize("name", ["version", "fingerprint", "embedder"])
def test_an_index_version_of_another_pipeline_is_refused(house: House, name: str) -> None:
    known = replace(house.recorded, index=house.index | {name: "other"})
    with pytest.raises(SignatureError, match=f"expected predicate.index.{name} as it was signed"):
        house.check(known=known)
    with pytest.raises(SignatureError, match="expected index version 4"):
        house.check(known=replace(house.recorded, index=None))


def test_another_bill_of_materials_is_refused(house: House) -> None:
    other = house.bucket.put_bytes(f"{house.bom.uri}x", b"{}")
    with pytest.raises(SignatureError, match="bill"):
        house.check(known=replace(house.recorded, bom=other))
    with pytest.raises(SignatureError, match="its bill of materials"):
        house.check(known=replace(house.recorded, bom=None))


def test_only_an_accepted_key_counts(house: House) -> None:
    other = with_keys(*make_pair())
    with pytest.raises(SignatureError, match="accepted keys"):
        house.check(own=other)
    with pytest.raises(SignatureError, match="found none; it is not loaded"):
        house.check(known=replace(house.recorded, signatures=[]))
    # While keys change: signed by both, or both accepted.
    twice = replace(house.recorded, signatures=[house.signature(other), house.signature()])
    house.check(known=twice)
    house.check(known=twice, own=other)
    house.check(own=with_keys(None, f"{other.verify_key},{KEYS.verify_key}"))


def test_the_signature_of_another_release_is_not_taken(house: House) -> None:
    """Restoring old parts under a new number needs a signature of its own."""
    earlier = replace(house.recorded, signatures=[house.signature(release=6)])
    with pytest.raises(SignatureError, match="expected predicate.release.release as it was signed"):
        house.check(known=earlier)


def test_a_column_added_later_is_empty_in_what_is_older() -> None:
    signed = {"predicate": {"release": {"a": 1}}}
    assert signing._difference(signed, {"predicate": {"release": {"a": 1, "b": None}}}) is None
    assert signing._difference(signed, {"predicate": {"release": {"a": 1, "b": 2}}}) == "predicate.release.b"
    assert signing._difference(signed, {"predicate": {"release": {}}}) == "predicate.release.a"


def test_the_bill_of_materials_is_valid_complete_and_the_same_each_time(house: House) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = house.bucket.get(house.bom).decode()
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    assert problem is None, problem
    # It is a validator: a component without its type is not valid.
    assert (
        JsonStrictValidator(SchemaVersion.V1_6).validate_str(text.replace('"type": "library"', '"kind": "x"'))
        is not None
    )
    again = House()
    assert again.bucket.get(again.bom).decode() == text
    found = json.loads(text)
    parts = {item["bom-ref"]: item for item in found["components"]}
    assert (parts["model"]["type"], parts["model"]["version"]) == ("machine-learning-model", "3")
    assert {item["name"] for item in parts["model"]["components"]} == {
        "adapter/adapter_config.json",
        "adapter/a.safetensors",
    }
    assert (parts["base-model"]["name"], parts["base-model"]["version"]) == ("hub:org/base", "b" * 40)
    assert parts["dataset"]["hashes"] == [{"alg": "SHA-256", "content": "d" * 64}]
    assert {"name": "millrace:rows.train", "value": "64"} in parts["dataset"]["properties"]
    assert parts["index"]["version"] == "4" and parts["prompt"]["hashes"]
    libraries = [item["purl"] for item in found["components"] if item["type"] == "library"]
    assert libraries == ["pkg:pypi/peft@0.21.2", "pkg:pypi/torch@2.13.0%2Bcpu"]
    trained_from = next(item["dependsOn"] for item in found["dependencies"] if item["ref"] == "model")
    assert {"base-model", "dataset", *libraries} == set(trained_from)
    other = bill_of_materials.text(house.release.parts(), house.content, "another pipeline", PACKAGES)
    assert json.loads(other)["serialNumber"] != found["serialNumber"]


def test_packages_that_no_training_recorded_are_said_to_be_missing() -> None:
    house = House(packages=False)
    found = json.loads(house.bucket.get(house.bom))
    assert not [item for item in found["components"] if item["type"] == "library"]
    model = next(item for item in found["components"] if item["bom-ref"] == "model")
    assert {"name": "millrace:packages", "value": "not recorded by the training"} in model["properties"]
