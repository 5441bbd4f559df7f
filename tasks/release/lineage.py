"""What a release came from: model, runs, recipe, base, code, dataset, examples, and the documents behind all of it.

Reads the ledger, the kept evidence (it holds the manifests of the fine-tune, so it outlives run folders), the frozen rows of
the dataset, `documents`, `erasures`, `feedback`, `requests`, and the table of the index version. Writes nothing. What
cannot be followed (a run folder that was retired, a dataset file that is gone) is a line of `not_followed`, never left out.
Fails with `ReleaseError` for a release that is not there, and as Postgres does.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from tasks.contracts import Artifact, Manifest, manifest_uri
from tasks.database import Connection
from tasks.errors import DataError, ManifestError, ServiceUnavailable
from tasks.release import evidence as proofs
from tasks.release import ledger as releases
from tasks.release.index import RELEASABLE
from tasks.release.ledger import Release
from tasks.storage import Storage

SHOWN = 10  # names of a list that are shown where --rows does not ask for all
Found = dict[str, Any]


@dataclass
class Walk:
    """What is read from, whether every name is wanted, and what could not be followed."""

    connection: Connection
    storage: Storage
    bucket: str
    rows: bool = False
    lost: list[str] = field(default_factory=list)

    def listed(self, names: Iterable[str]) -> Found:
        """Return how many names there are, and the first of them or all."""
        found = list(names)
        return {"count": len(found), "first" if not self.rows else "all": found if self.rows else found[:SHOWN]}


def of_release(walk: Walk, release: Release) -> Found:
    """Return the lineage of a release."""
    live = releases.live(walk.connection)
    manifests = _manifests(walk, release)
    files = _dataset_files(walk, release, manifests.get("validate_dataset"))
    examples = _read(walk, files)
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
        "examples": {
            "by_origin": dict(sorted(examples.origins.items())),
            "files_of_curated_rows": dict(sorted(examples.curated.items())),
            "documents": walk.listed(_with_state(walk, examples.documents)),
            "documents_behind_feedback": walk.listed(_behind_feedback(walk, examples.feedback)),
        },
        "index": _index(walk, release),
        "not_followed": walk.lost,
    }  # fmt: skip


@dataclass
class Examples:
    """What the rows of a dataset say of where they came from."""

    files: list[Found] = field(default_factory=list)
    origins: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    curated: Counter[str] = field(default_factory=Counter)
    feedback: list[int] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        """Take a row into account."""
        origin, provenance = str(row.get("origin", "unknown")), row.get("provenance") or {}
        self.origins[origin] += 1
        if origin == "corpus":
            self.documents[str(provenance.get("document", row.get("source")))] += 1
        elif origin == "curated":
            self.curated[str(provenance.get("file") or "not recorded")] += 1
        elif origin == "feedback" and isinstance(provenance.get("feedback"), int):
            self.feedback.append(provenance["feedback"])


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
        sides = ("train", "validation", "held_out")
        return {side: validated.outputs[side] for side in sides if side in validated.outputs}
    folder = f"{walk.bucket}/datasets/{release.dataset_sha256}/"
    found: dict[str, Artifact | str] = {
        uri.removeprefix(folder).removesuffix(".jsonl"): uri for uri, _size, _etag in walk.storage.list(folder)
    }
    walk.lost.append(f"rows below {folder} are read as they lie there: their digests were in the evidence")
    return found


def _read(walk: Walk, files: dict[str, Artifact | str]) -> Examples:
    found = Examples()
    for side, file in files.items():
        uri = file if isinstance(file, str) else file.uri
        ids, origins = [], Counter[str]()
        try:
            for row in rows_of(walk.storage, file):
                found.add(row)
                ids.append(str(row.get("id")))
                origins[str(row.get("origin", "unknown"))] += 1
        except (ManifestError, ServiceUnavailable, ValueError) as error:
            walk.lost.append(f"rows of {side}: {error}")
            continue
        listed = {"ids": ids} if walk.rows else {}
        found.files.append({"side": side, "uri": uri, "rows": len(ids), "by_origin": dict(origins)} | listed)
    return found


def rows_of(storage: Storage, file: Artifact | str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset's file; those of an artifact are verified. Raises ManifestError, ValueError."""
    if isinstance(file, Artifact):
        yield from storage.get_rows(file)
        return
    for line in storage.get_bytes(file).splitlines():
        yield json.loads(line)


def _with_state(walk: Walk, documents: Counter[str]) -> list[str]:
    """Return each document with its rows, and what became of it since."""
    known = walk.connection.execute("SELECT uri, status FROM documents WHERE uri = ANY(%s)", (list(documents),))
    state = {row["uri"]: row["status"] for row in known}
    gone = walk.connection.execute("SELECT uri FROM erasures WHERE uri = ANY(%s)", (list(documents),))
    state |= {row["uri"]: "erased" for row in gone}
    return [f"{uri} ({documents[uri]} rows, {state.get(uri, 'not in the corpus now')})" for uri in sorted(documents)]


def _behind_feedback(walk: Walk, numbers: list[int]) -> list[str]:
    """Return the documents that were found for the requests behind feedback."""
    rows = walk.connection.execute(
        "SELECT f.id, coalesce(f.hits, r.hits) AS hits FROM feedback f LEFT JOIN requests r ON r.id = f.request_id "
        "WHERE f.id = ANY(%s)",
        (numbers,),
    ).fetchall()
    told = {row["id"]: row["hits"] for row in rows if row["hits"] is not None}
    if lost := len(set(numbers) - set(told)):
        walk.lost.append(f"{lost} examples from feedback: their requests are gone, and what was found for them")
    return sorted({str(hit["document_uri"]) for hits in told.values() for hit in hits if "document_uri" in hit})


def _index(walk: Walk, release: Release) -> Found:
    # Not index_tables.get: that one refuses what was retired, whose row is what is left to tell.
    row = walk.connection.execute(
        "SELECT version, corpus, source, status, embedder, run, chunks, documents, table_name FROM index_versions WHERE version = %s",
        (release.index_version,),
    ).fetchone()
    assert row is not None  # a foreign key of the ledger
    table, known = row.pop("table_name"), row.pop("documents")
    if (
        next(walk.storage.list(f"{row['run'].rstrip('/')}/") if row["run"].startswith("s3://") else iter(()), None)
        is None
    ):
        walk.lost.append(f"run folder {row['run']} of index version {row['version']} was retired")
    uris = documents_of(walk, table, row["status"])
    if uris is None:
        walk.lost.append(
            f"documents of index version {row['version']}: it is {row['status']}, and its table is gone "
            f"({known or 'an unknown number of'} documents)"
        )
        return row
    return row | {"documents": walk.listed(uris)}


def documents_of(walk: Walk, table: str, status: str) -> list[str] | None:
    """Return the documents of which an index version holds chunks; None where its table is gone."""
    if status not in RELEASABLE:
        return None
    query = sql.SQL("SELECT DISTINCT document_uri FROM {} ORDER BY 1").format(sql.Identifier(table))
    try:
        with walk.connection.transaction():
            return [row["document_uri"] for row in walk.connection.execute(query)]
    except psycopg.errors.UndefinedTable:
        return None


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
