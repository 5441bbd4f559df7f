"""Manifests and references: stable bytes, strict reading, and a bound on what travels through XCom."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.contracts import Artifact, Manifest, digest, digest_of, manifest_uri


def manifest(**changes: Any) -> Manifest:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    values: dict[str, Any] = {
        "stage": "train", "run": "s3://b/runs/d/r", "status": "complete", "fingerprint": "f", "code_revision": "c",
        "host": "h", "started_at": now, "ended_at": now,
    }  # fmt: skip
    return Manifest(**(values | changes))


def test_a_manifest_reads_back_as_it_was_written() -> None:
    first = manifest(
        outputs={"a": Artifact(uri="s3://b/a", sha256="0" * 64, bytes=3, rows=1)}, facts={"parts": ["0000"]}
    )
    assert Manifest.model_validate_json(first.to_bytes()) == first


def test_an_unknown_key_in_a_manifest_is_refused() -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate_json(manifest().to_bytes().replace(b'"host"', b'"hots"'))


def test_a_part_has_its_own_folder() -> None:
    assert manifest_uri("s3://b/runs/d/r/", "index", "0003") == "s3://b/runs/d/r/index/part-0003/manifest.json"


def test_a_reference_too_large_for_xcom_is_refused() -> None:
    with pytest.raises(ValueError, match="move facts to an output"):
        manifest(facts={"rows": ["x" * 100] * 1000}).reference()


def test_a_digest_depends_on_names_and_bytes_only() -> None:
    here = Artifact(uri="s3://b/here", sha256="a" * 64, bytes=1)
    there = here.model_copy(update={"uri": "s3://c/there"})
    assert digest_of({"x": here}) == digest_of({"x": there})
    assert digest_of({"x": here}) != digest_of({"y": here})
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
