"""What stages hand to each other: artifacts, manifests, references.

A stage is complete when its manifest says so *and* the bytes it names are there (DESIGN.md,
principle 1). A manifest is written last; a reference (`Manifest.reference`) is what travels through
Airflow: a URI, a digest, counts and small facts, never data.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT = "millrace.manifest/1"
MANIFEST_NAME = "manifest.json"
REFERENCE_BYTES = 32_768  # a reference goes through XCom and the Airflow database: keep it small


class Artifact(BaseModel):
    """Bytes in S3: where they are, their SHA-256, their length, and the number of rows where it has rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    rows: int | None = None


class Option(BaseModel):
    """A resolved option of a stage, and where its value came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Any
    origin: Literal["command", "settings", "default"]


class Manifest(BaseModel):
    """The proof that a stage ended, and what it ended with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["millrace.manifest/1"] = "millrace.manifest/1"
    stage: str
    part: str | None = None
    run: str
    status: Literal["complete", "refused"]
    reason: str | None = None
    fingerprint: str
    inputs: dict[str, Artifact] = {}
    outputs: dict[str, Artifact] = {}
    counts: dict[str, int] = {}
    metrics: dict[str, float] = {}
    facts: dict[str, Any] = {}
    options: dict[str, Option] = {}
    code_revision: str
    image_digest: str | None = None
    base_model: str | None = None
    host: str
    started_at: datetime
    ended_at: datetime
    resource_seconds: dict[str, float] = {}

    @property
    def uri(self) -> str:
        """Where this manifest is kept."""
        return manifest_uri(self.run, self.stage, self.part)

    def to_bytes(self) -> bytes:
        """Return the manifest as it is stored: JSON, sorted keys."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1).encode() + b"\n"

    def reference(self) -> dict[str, Any]:
        """Return what travels through XCom. Raises ValueError when it would be too large."""
        body = self.to_bytes()
        reference = {
            "manifest": self.uri,
            "sha256": hashlib.sha256(body).hexdigest(),
            "stage": self.stage,
            "status": self.status,
            "reason": self.reason,
            "counts": self.counts,
            "metrics": self.metrics,
            "facts": self.facts,
            "seconds": round((self.ended_at - self.started_at).total_seconds(), 3),
        }
        size = len(json.dumps(reference))
        if size > REFERENCE_BYTES:
            raise ValueError(
                f"the reference of {self.stage} has {size} bytes, more than {REFERENCE_BYTES}: move facts to an output"
            )
        return reference


def stage_uri(run: str, stage: str, part: str | None = None) -> str:
    """Return the folder of a stage in a run: `RUN/STAGE` or `RUN/STAGE/part-PART`."""
    return f"{run.rstrip('/')}/{stage}" + (f"/part-{part}" if part is not None else "")


def manifest_uri(run: str, stage: str, part: str | None = None) -> str:
    """Return where the manifest of a stage in a run is kept."""
    return f"{stage_uri(run, stage, part)}/{MANIFEST_NAME}"


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value with sorted keys, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


def digest_of(artifacts: Mapping[str, Artifact]) -> str:
    """Return one digest for a set of named artifacts: it depends on names and bytes, not on places."""
    return digest({name: artifact.sha256 for name, artifact in artifacts.items()})
