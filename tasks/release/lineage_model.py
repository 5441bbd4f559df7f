"""What a model version came from that was never released, and what a dataset was made from and led to.

Reads MLflow's tags of the version, the manifests of its run folder as far as they are there, the frozen rows below
`s3://BUCKET/datasets/`, and the ledger. Writes nothing. What cannot be followed is a line of `not_followed`. Fails with
`DataError` for a dataset that nothing knows, and with `ServiceUnavailable` when MLflow, which alone knows the version, is away.
"""

from tasks import tracking
from tasks.contracts import Artifact, Manifest, stage_uri
from tasks.errors import DataError, ManifestError
from tasks.release import ledger as releases
from tasks.release.lineage_back import DIGEST, models_of, releases_of
from tasks.release.lineage_rows import files_below, frozen, read, told
from tasks.release.lineage_walk import Found, Walk
from tasks.settings import Settings

STAGES = ("validate_dataset", "train", "evaluate", "gate", "register")
_ABSENT = "RESOURCE_DOES_NOT_EXIST"


def of_version(walk: Walk, settings: Settings, subject: str) -> Found | None:
    """Return the lineage of `NAME/VERSION` that no release names; None where it is no version. Raises ServiceUnavailable."""
    name, _, version = subject.rpartition("/")
    known = walk.connection.execute("SELECT 1 FROM documents WHERE uri = %s", (subject,)).fetchone()
    if not name or known or not (version.isascii() and version.isdecimal()):
        return None
    tags = _tags(settings, name, version)
    if tags is None:
        return None
    manifests = _manifests(walk, tags)
    sha256 = str(tags.get("dataset_sha256", ""))
    examples = read(walk, _files(walk, sha256, manifests.get("validate_dataset")))
    return {
        "model": {"name": name, "version": version, "released": False} | dict(sorted(tags.items())),
        "runs": [
            {"stage": one.stage, "run": one.run, "ended_at": one.ended_at.isoformat()}
            for one in sorted(manifests.values(), key=lambda one: one.ended_at)
        ],
        "dataset": {"sha256": sha256 or None, "files": examples.files},
        "examples": told(walk, examples),
        "not_followed": walk.lost,
    }


def of_dataset(walk: Walk, settings: Settings, sha256: str) -> Found:
    """Return what a dataset was made from, and the models and releases trained on it. Raises DataError."""
    if not DIGEST.fullmatch(sha256):
        raise DataError(
            f"expected dataset: and a SHA-256 of 64 digits, found {sha256!r}. Next: see a release's lineage."
        )
    all_releases = releases.history(walk.connection, 10_000)
    files, models = files_below(walk, sha256), models_of(walk, settings, {sha256}, all_releases)
    if not files and not models:
        raise DataError(
            f"expected a dataset below {walk.bucket}/datasets/, or one that a model was trained on, found none {sha256}. "
            "Next: take the digest that the lineage of a release or of a document shows."
        )
    if not files:
        walk.lost.append(f"rows below {walk.bucket}/datasets/{sha256}/: they are gone")
    examples = read(walk, files)
    return {
        "dataset": {"sha256": sha256, "files": examples.files},
        "examples": told(walk, examples),
        "models": models,
        "releases": releases_of(all_releases, set(), {sha256}),
        "not_followed": walk.lost,
    }


def _tags(settings: Settings, name: str, version: str) -> dict[str, str] | None:
    from mlflow.exceptions import MlflowException

    with tracking.answering(settings) as client:
        try:
            return dict(client.get_model_version(name, version).tags)
        except MlflowException as error:
            if error.error_code not in {_ABSENT, "INVALID_PARAMETER_VALUE"}:
                raise
            return None


def _manifests(walk: Walk, tags: dict[str, str]) -> dict[str, Manifest]:
    """Return the manifests of the run that registered the version, as far as they are there."""
    place = tags.get("manifest", "")
    run = place.removesuffix("/register/manifest.json")
    if run == place or not run.startswith("s3://"):
        walk.lost.append("the run that registered it: its tag `manifest` names none")
        return {}
    found = {}
    for stage in STAGES:
        try:
            found[stage] = walk.storage.require_manifest(run, stage)
        except ManifestError:
            walk.lost.append(f"{stage_uri(run, stage)}: no manifest any more")
    return found


def _files(walk: Walk, sha256: str, validated: Manifest | None) -> dict[str, Artifact | str]:
    if validated is not None:
        return frozen(validated)
    if not DIGEST.fullmatch(sha256):
        walk.lost.append("its dataset: its tag `dataset_sha256` names none")
        return {}
    walk.lost.append(
        f"rows below {walk.bucket}/datasets/{sha256}/ are read as they lie there: no manifest says their digests"
    )
    return files_below(walk, sha256)
