"""What a release came from: model, runs, recipe, base, code, dataset, examples, and the documents behind all of it.

Reads the ledger, the kept evidence (it holds the manifests of the fine-tune, so it outlives run folders), the frozen rows of
the dataset, `documents`, `erasures`, `feedback`, `requests`, and the table of the index version. Writes nothing. What
cannot be followed (a run folder that was retired, a dataset file that is gone) is a line of `not_followed`, never left out.
Fails with `ReleaseError` for a release that is not there, and as Postgres does.
"""

from tasks.contracts import Artifact, Manifest, manifest_uri
from tasks.errors import DataError, ManifestError, ServiceUnavailable
from tasks.release import evidence as proofs
from tasks.release import ledger as releases
from tasks.release.ledger import Release
from tasks.release.lineage_index import index_of
from tasks.release.lineage_rows import files_below, frozen, read, told
from tasks.release.lineage_walk import Found, Walk


def of_release(walk: Walk, release: Release) -> Found:
    """Return the lineage of a release."""
    live = releases.live(walk.connection)
    manifests = _manifests(walk, release)
    files = _dataset_files(walk, release, manifests.get("validate_dataset"))
    examples = read(walk, files)
    same = [one.release for one in releases.history(walk.connection, 10_000) if one.identity == release.identity]
    return {
        "release": {
            "release": release.release, "live": live == release, "kind": release.kind, "restores": release.restores,
            "created_at": release.created_at.isoformat(), "approved_by": release.approved_by, "reason": release.reason,
            "evidence": release.evidence_uri, "run": release.run, "releases_of_this_model": same,
        },
        "model": _model(walk, release, manifests),
        "runs": _runs(walk, release, manifests),
        "dataset": {"sha256": release.dataset_sha256, "files": examples.files},
        "examples": told(walk, examples),
        "index": index_of(walk, release),
        "not_followed": walk.lost,
    }  # fmt: skip


def _manifests(walk: Walk, release: Release) -> dict[str, Manifest]:
    """Return the manifests of the fine-tune from the kept evidence, as far as they can be read."""
    try:
        content = proofs.recall(walk.storage, release.evidence_uri, release.evidence_sha256)
        return {name: Manifest.model_validate(value) for name, value in content.get("manifests", {}).items()}
    except (ManifestError, ServiceUnavailable, ValueError) as error:
        walk.lost.append(f"evidence of release {release.release}: {error}")
        return {}


def _model(walk: Walk, release: Release, manifests: dict[str, Manifest]) -> Found:
    train, register = manifests.get("train"), manifests.get("register")
    facts = (train.facts if train else {}) | (register.facts if register else {})
    trained_from = facts.get("trained_from") or (train.facts.get("base_model") if train else None)
    rows = walk.connection.execute(
        "SELECT min(release) AS release FROM releases WHERE adapter_uri IS NULL AND base_model = %s AND release <> %s",
        (trained_from, release.release),
    ).fetchone()
    return {
        "name": release.model_name, "version": release.model_version,
        "weights": "adapter" if release.adapter_uri else "whole model", "uri": release.adapter_uri or release.base_model,
        "adapter_sha256": release.adapter_sha256, "base_model": release.base_model, "base_revision": release.base_revision,
        "trained_from": trained_from, "trained_from_release": rows["release"] if rows else None,
        "recipe": facts.get("recipe"), "trained_with_code": train.code_revision if train else None,
        "released_with_code": release.code_revision, "mlflow_run_id": facts.get("mlflow_run_id"),
        "prompt_sha256": release.prompt_sha256,
    }  # fmt: skip


def _runs(walk: Walk, release: Release, manifests: dict[str, Manifest]) -> list[Found]:
    told = [(one.stage, one.run, one.uri, one.ended_at.isoformat()) for one in manifests.values()]
    stage = "promote" if release.kind == "promotion" else "roll_back"
    told.append((stage, release.run, manifest_uri(release.run, stage), release.created_at.isoformat()))
    found = [
        {"stage": stage, "run": run, "ended_at": ended, "folder": "there" if _there(walk, uri) else "retired"}
        for stage, run, uri, ended in sorted(told, key=lambda item: item[3])
    ]
    for run in sorted({str(item["run"]) for item in found if item["folder"] == "retired"}):
        walk.lost.append(f"run folder {run} was retired: what its stages said is read from the kept evidence")
    return found


def _there(walk: Walk, uri: str) -> bool:
    return uri.startswith("s3://") and walk.storage.exists(uri)


def _dataset_files(walk: Walk, release: Release, validated: Manifest | None) -> dict[str, Artifact | str]:
    """Return the frozen rows by side: artifacts with a digest, or where there is no manifest, what lies at their place."""
    if release.dataset_sha256 is None:
        walk.lost.append("the release names no dataset")
        return {}
    if validated is not None:
        return frozen(validated)
    walk.lost.append(
        f"rows below {walk.bucket}/datasets/{release.dataset_sha256}/ are read as they lie there: their digests were in the evidence"
    )
    return files_below(walk, release.dataset_sha256)


def release_of(walk: Walk, subject: str) -> Release | None:
    """Return the release that `7`, `release:7` or the newest that `NAME/3` names; None where it names no release."""
    number = subject.removeprefix("release:")
    if number.isascii() and number.isdecimal():
        return releases.get(walk.connection, min(int(number), 2**31 - 1))
    if number != subject:
        raise DataError(f"expected release:NUMBER, found {subject!r}. Next: see `python -m tasks releases`.")
    name, _, version = subject.rpartition("/")
    for one in releases.history(walk.connection, 10_000):
        if (one.model_name, one.model_version) == (name, version):
            return one
    return None
