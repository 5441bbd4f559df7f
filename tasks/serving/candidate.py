"""A registered model version that could answer beside the live model: what MLflow's registry says of it, and whether it fits.

Reads the registry; writes nothing. Only an adapter on the live base model fits. Fails with `ReleaseError` for a version that is
not there or does not fit, `SignatureError` for one that is not signed where MILLRACE_VERIFY_KEY is set, `ServiceUnavailable` when
MLflow does not answer, and `DataError` when it refuses the question.
"""

from dataclasses import dataclass

from tasks.errors import ReleaseError
from tasks.mlflow_http import MlflowHttp
from tasks.release.signed_candidate import check
from tasks.release.signing_keys import verify_keys
from tasks.serving.releases import Loaded
from tasks.settings import Settings


@dataclass(frozen=True)
class Candidate:
    """What the registry says of the version."""

    model_name: str
    model_version: str
    adapter_uri: str
    adapter_sha256: str
    base_model: str
    base_revision: str


def require_same_base(candidate: Candidate, loaded: Loaded) -> None:
    """Raise ReleaseError where the candidate cannot answer on the live base model, or is live itself."""
    release = loaded.release
    if (candidate.base_model, candidate.base_revision) != (release.base_model, release.base_revision):
        raise ReleaseError(
            f"expected a shadow on the live base model {release.base_model} {release.base_revision[:12]}, found version "
            f"{candidate.model_version} on {candidate.base_model} {candidate.base_revision[:12]}. "
            "Next: name a version trained on the live base model."
        )
    if candidate.adapter_sha256 == release.adapter_sha256:
        raise ReleaseError(
            f"expected a shadow that is not live, found version {candidate.model_version} live in release "
            f"{release.release}. Next: unset MILLRACE_SHADOW_MODEL_VERSION, or name another."
        )


def registered(settings: Settings, name: str, version: str) -> Candidate:
    """Return what the registry says of a version, proven by its signature where a key is set.

    Raises SignatureError, ReleaseError, ServiceUnavailable, DataError.
    """
    keys = verify_keys(settings)
    http = MlflowHttp(settings.mlflow_tracking_uri)
    try:
        tags = http.model_version(name, version)
    finally:
        http.close()
    if tags is None:
        raise ReleaseError(
            f"expected version {version} of {name} in MLflow's registry, found none. "
            "Next: correct MILLRACE_SHADOW_MODEL_VERSION; the candidate's number is in its approval."
        )
    if "adapter_sha256" not in tags or "adapter_uri" not in tags:
        raise ReleaseError(
            f"expected an adapter as version {version} of {name}, found {tags.get('weights', 'no record of its weights')}: "
            "only an adapter can answer beside the live model. Next: name another version."
        )
    if keys:
        check(keys, name, version, tags)
    named = {key: tags[key] for key in ("adapter_uri", "adapter_sha256", "base_model", "base_revision")}
    return Candidate(name, version, **named)
