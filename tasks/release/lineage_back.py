"""Where a document went: the index versions with its chunks, the datasets made from it, models, and releases.

Reads `documents`, `erasures`, the tables of all index versions that stand, every frozen dataset below
`s3://BUCKET/datasets/`, the ledger, and MLflow's registry for models that were never released. Writes nothing. What cannot
be followed (a retired index version, MLflow away) is a line of `not_followed`. Fails with `DataError` when nothing is known
of the document anywhere.
"""

import json
import re
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from tasks import tracking
from tasks.errors import DataError, ServiceUnavailable, SettingsError
from tasks.knowledge.erasure_rows import answered_from
from tasks.release import ledger as releases
from tasks.release.ledger import Release
from tasks.release.lineage_rows import rows_of
from tasks.release.lineage_walk import Found, Walk
from tasks.settings import Settings

DIGEST = re.compile(r"[0-9a-f]{64}")
MOST_REQUESTS = 1_000  # requests answered from a document whose feedback is looked for in datasets


def of_document(walk: Walk, settings: Settings, name: str) -> Found:
    """Return where a document went; `name` is its URI, or the SHA-256 of its content or text. Raises DataError."""
    uris = _uris(walk, name)
    known = walk.connection.execute(
        "SELECT corpus, uri, status, title, rule, first_seen, last_changed FROM documents WHERE uri = ANY(%s)", (uris,)
    ).fetchall()
    erased = walk.connection.execute(
        "SELECT corpus, uri, requested_by, reason, erased_at FROM erasures WHERE uri = ANY(%s)", (uris,)
    ).fetchall()
    versions, retired = _versions(walk, uris)
    datasets = _datasets(walk, uris, [row["corpus"] for row in known] or ["default"])
    if not (known or erased or versions or datasets):
        raise DataError(
            f"expected a release (7, release:7), a model version (NAME/3), a dataset (dataset:DIGEST), or a document that an "
            f"index version, a dataset or the corpus knows, found {name!r}. Next: write the URI as `python -m tasks search` shows it."
        )
    all_releases = releases.history(walk.connection, 10_000)
    through = {one["sha256"] for one in datasets}
    _tell_retired(walk, retired, all_releases)
    return {
        "document": uris,
        "corpus": [_texts(row) for row in known],
        "erased": [_texts(row) for row in erased],
        "index_versions": versions,
        "datasets": datasets,
        "models": models_of(walk, settings, through, all_releases),
        "releases": releases_of(all_releases, {one["version"] for one in versions}, through),
        "not_followed": walk.lost,
    }


def _uris(walk: Walk, name: str) -> list[str]:
    if not DIGEST.fullmatch(name):
        return [name.removeprefix("document:")]
    rows = walk.connection.execute(
        "SELECT DISTINCT uri FROM documents WHERE content_sha256 = %(name)s OR text_sha256 = %(name)s ORDER BY uri",
        {"name": name},
    )
    return [row["uri"] for row in rows] or [name]


def _versions(walk: Walk, uris: list[str]) -> tuple[list[Found], list[int]]:
    """Return the versions with chunks of the document, and those that cannot be looked into any more."""
    rows = walk.connection.execute(
        "SELECT version, corpus, status, table_name FROM index_versions ORDER BY version"
    ).fetchall()
    found: list[Found] = []
    retired: list[int] = []
    for row in rows:
        table = row.pop("table_name")
        query = sql.SQL("SELECT count(*) AS chunks FROM {} WHERE document_uri = ANY(%s)").format(sql.Identifier(table))
        try:
            with walk.connection.transaction():
                counted = walk.connection.execute(query, (uris,)).fetchone()
        except psycopg.errors.UndefinedTable:  # retired; or retired while we look
            retired.append(row["version"])
            continue
        if counted and counted["chunks"]:
            found.append(row | {"chunks": counted["chunks"]})
    return found, retired


def _tell_retired(walk: Walk, retired: list[int], all_releases: list[Release]) -> None:
    for version in retired:
        named = [str(one.release) for one in reversed(all_releases) if one.index_version == version]
        of = f" (releases {', '.join(named)})" if named else ""
        walk.lost.append(
            f"index version {version}{of} has no table any more: whether it held the document is not known"
        )


def _datasets(walk: Walk, uris: list[str], corpora: list[str]) -> list[Found]:
    """Return the datasets with rows made from the document, or from feedback on answers that were made from it."""
    asked: set[UUID] = {
        one for uri in uris for corpus in corpora for one in answered_from(walk.connection, corpus, uri)
    }
    if len(asked) > MOST_REQUESTS:
        walk.lost.append(
            f"feedback on {len(asked) - MOST_REQUESTS} of {len(asked)} requests that were answered from the document"
        )
    requests = {str(one) for one in sorted(asked)[:MOST_REQUESTS]}
    needles = [json.dumps(name, ensure_ascii=False).encode() for name in (*uris, *sorted(requests))]
    found: dict[str, Found] = {}
    for place, _size, _etag in walk.storage.list(f"{walk.bucket}/datasets/"):
        if not place.endswith(".jsonl") or not walk.storage.contains(place, *needles):
            continue
        ids = [str(row.get("id")) for row in rows_of(walk.storage, place) if _made_from(row, uris, requests)]
        if ids:
            sha256 = place.split("/")[4]
            one = found.setdefault(sha256, {"sha256": sha256, "rows": 0, "files": []})
            one["rows"] += len(ids)
            one["files"].append({"uri": place, "rows": len(ids)} | ({"ids": ids} if walk.rows else {}))
    return list(found.values())


def _made_from(row: dict[str, Any], uris: list[str], requests: set[str]) -> bool:
    provenance = row.get("provenance") or {}
    return provenance.get("document", row.get("source")) in uris or provenance.get("request") in requests


def models_of(walk: Walk, settings: Settings, datasets: set[str], all_releases: list[Release]) -> list[Found]:
    """Return the model versions trained on the datasets: those of the ledger, and those that were only registered."""
    found = {
        (one.model_name, one.model_version): {"dataset_sha256": one.dataset_sha256, "released": True}
        for one in all_releases
        if one.dataset_sha256 in datasets
    }
    try:
        with tracking.answering(settings) as client:
            for sha256 in sorted(datasets):
                for version in client.search_model_versions(f"tags.dataset_sha256 = '{sha256}'"):
                    known = {"dataset_sha256": sha256, "released": False}
                    found.setdefault((str(version.name), str(version.version)), known)
    except (ServiceUnavailable, SettingsError) as error:
        walk.lost.append(f"models that were registered and never released: {error}")
    return [{"name": name, "version": version} | found[name, version] for name, version in sorted(found)]


def releases_of(all_releases: list[Release], versions: set[int], datasets: set[str]) -> list[Found]:
    """Return the releases with one of these index versions, or trained on one of these datasets."""
    found = []
    for one in reversed(all_releases):
        through = [
            word
            for word, holds in (("index", one.index_version in versions), ("training", one.dataset_sha256 in datasets))
            if holds
        ]
        if through:
            live = one == all_releases[0]
            found.append({"release": one.release, "live": live, "through": through, "kind": one.kind})
    return found


def _texts(row: dict[str, Any]) -> Found:
    return {name: value if value is None else str(value) for name, value in row.items()}
