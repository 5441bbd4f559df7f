"""Erase one document: from the index, its copies and its traces; and say what had been built on it.

Reads and writes the tables of chunks, `documents`, `embedding_cache`, `quarantine`, `acceptances`, `requests`; deletes objects below
`s3://BUCKET/quarantine/` and those objects of run folders that hold the document's text. Adds a row to `erasures`, which keeps
the document from coming back: a sync passes it over, a dataset is not built from it. Datasets, models and releases that were built
on it are listed, not changed: they are evidence, and whether to train again is a person's decision. Safe to repeat: objects go first, rows
and the audit row in one transaction. Backups made before still hold the document until they are retired (docs/backup.md).
Fails with `DataError` when nothing of that document is known.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from tasks.database import Connection, connect, pgvector_version
from tasks.errors import DataError
from tasks.knowledge import index_tables
from tasks.knowledge.index_tables import Version
from tasks.settings import Settings
from tasks.storage import Storage

log = logging.getLogger(__name__)

_SAFE_DELETES = (0, 8, 4)  # before it, a vacuum after a deletion could harm an HNSW index
# Outputs of stages that hold texts of documents or say which they are, by the stage's folder in a run.
_TEXTS = ("read_documents/", "index_documents/", "validate_documents/", "build_dataset/", "validate_dataset/")


@dataclass(frozen=True)
class Erasure:
    """What was removed (counts by place), and what had been built on the document."""

    removed: dict[str, int]
    built_on: dict[str, list[Any]]


def erase(settings: Settings, storage: Storage, corpus: str, uri: str, by: str, reason: str) -> Erasure:
    """Erase the document `uri` of `corpus`. Raises DataError when nothing of it is known."""
    bucket = f"s3://{settings.s3_bucket}"
    with connect() as connection:
        versions = _versions_with(connection, corpus, uri)
        bodies = _bodies(connection, corpus, uri)
        known = _known(connection, corpus, uri)
    datasets = sorted({place.split("/")[4] for place in _naming(storage, f"{bucket}/datasets/", uri)})
    traces = list(_naming(storage, f"{bucket}/runs/", uri, _TEXTS))
    if not (versions or bodies or known or datasets or traces):
        raise DataError(
            f"expected a document {uri!r} in the corpus {corpus!r}, its quarantine, a dataset or a run, found none. "
            "Next: write the URI as `python -m tasks search` shows it."
        )
    objects = sum(storage.delete_prefix(place) for place in [*bodies, *traces])
    with connect() as connection:
        built_on = _built_on(connection, [version.version for version in versions], datasets)
        removed = {"objects": objects, **_delete_rows(connection, versions, corpus, uri)}
        connection.execute(
            "INSERT INTO erasures (corpus, uri, requested_by, reason, removed, built_on) VALUES (%s, %s, %s, %s, %s, %s)",
            (corpus, uri, by, reason, Jsonb(removed), Jsonb(built_on)),
        )
    _vacuum(settings, [version.table_name for version in versions])
    return Erasure(removed, built_on)


def erased(connection: Connection, corpus: str) -> set[str]:
    """Return the documents of a corpus that were erased."""
    return {row["uri"] for row in connection.execute("SELECT uri FROM erasures WHERE corpus = %s", (corpus,))}


def _versions_with(connection: Connection, corpus: str, uri: str) -> list[Version]:
    """Return the index versions whose table holds the document."""
    rows = connection.execute(
        "SELECT version FROM index_versions WHERE corpus = %s AND status <> 'retired' ORDER BY version", (corpus,)
    ).fetchall()
    found = [index_tables.get(connection, row["version"]) for row in rows]
    query = sql.SQL("SELECT 1 FROM {} WHERE document_uri = %s LIMIT 1")
    return [version for version in found if connection.execute(query.format(version.table), (uri,)).fetchone()]


def _known(connection: Connection, corpus: str, uri: str) -> bool:
    query = "SELECT 1 FROM documents WHERE corpus = %s AND uri = %s UNION ALL SELECT 1 FROM quarantine WHERE corpus = %s AND item = %s"
    return connection.execute(query, (corpus, uri, corpus, uri)).fetchone() is not None


def _bodies(connection: Connection, corpus: str, uri: str) -> list[str]:
    """Return where quarantine keeps bytes of the document that no other document has."""
    rows = connection.execute(
        "SELECT DISTINCT body_uri FROM quarantine q WHERE corpus = %(corpus)s AND item = %(uri)s AND body_uri IS NOT NULL "
        "AND NOT EXISTS (SELECT FROM quarantine o WHERE o.body_uri = q.body_uri AND o.item <> q.item)",
        {"corpus": corpus, "uri": uri},
    )
    return [row["body_uri"] for row in rows]


def _naming(storage: Storage, prefix: str, uri: str, within: tuple[str, ...] = ("",)) -> Iterator[str]:
    """Yield the objects of rows (.jsonl) below a prefix that name the document."""
    needle = json.dumps(uri, ensure_ascii=False).encode()
    for place, _size, _etag in storage.list(prefix):
        if place.endswith(".jsonl") and any(part in place for part in within) and storage.contains(place, needle):
            yield place


def _built_on(connection: Connection, versions: list[int], datasets: list[str]) -> dict[str, list[Any]]:
    rows = connection.execute(
        "SELECT release, model_name, model_version, index_version, dataset_sha256 FROM releases "
        "WHERE index_version = ANY(%s) OR dataset_sha256 = ANY(%s) ORDER BY release",
        (versions, datasets),
    ).fetchall()
    models = sorted(
        {f"{row['model_name']} {row['model_version']}" for row in rows if row["dataset_sha256"] in datasets}
    )
    return {
        "index_versions": versions,
        "datasets": datasets,
        "models": models,
        "releases": [row["release"] for row in rows],
    }


def _delete_rows(connection: Connection, versions: list[Version], corpus: str, uri: str) -> dict[str, int]:
    """Delete every row about the document; return how many, by table."""
    removed = {"chunks": 0, "cached_vectors": 0}
    hashes: set[str] = set()
    for version in versions:
        rows = connection.execute(
            sql.SQL("SELECT chunk_sha256 FROM {} WHERE document_uri = %s").format(version.table), (uri,)
        )
        hashes |= {row["chunk_sha256"] for row in rows}
        removed["chunks"] += _delete_chunks(connection, version, uri)
    removed["cached_vectors"] = _delete_vectors(connection, corpus, hashes)
    statements = {
        "documents": "DELETE FROM documents WHERE corpus = %(corpus)s AND uri = %(uri)s",
        "quarantine": "DELETE FROM quarantine WHERE corpus = %(corpus)s AND (item = %(uri)s OR starts_with(item, %(uri)s || '#'))",
        "requests": (
            "UPDATE requests SET hits = (SELECT coalesce(jsonb_agg(hit), '[]') FROM jsonb_array_elements(hits) AS hit "
            "WHERE hit->>'document_uri' <> %(uri)s) WHERE hits @> jsonb_build_array(jsonb_build_object('document_uri', %(uri)s::text))"
        ),
    }
    for name, statement in statements.items():
        removed[name] = connection.execute(statement.encode(), {"corpus": corpus, "uri": uri}).rowcount
    return removed


def _delete_chunks(connection: Connection, version: Version, uri: str) -> int:
    """Delete the document's chunks; with a pgvector whose vacuum may harm an index, that is dropped before and built after."""
    rebuild = pgvector_version(connection) < _SAFE_DELETES and version.status not in ("building",)
    if rebuild:
        index_tables.drop_indexes(connection, version)
    count = connection.execute(sql.SQL("DELETE FROM {} WHERE document_uri = %s").format(version.table), (uri,)).rowcount
    if rebuild:
        index_tables.build_indexes(connection, version)
    connection.execute(
        sql.SQL(
            "UPDATE index_versions SET documents = documents - 1, chunks = chunks - %s WHERE version = %s AND documents > 0"
        ),
        (count, version.version),
    )
    return count


def _delete_vectors(connection: Connection, corpus: str, hashes: set[str]) -> int:
    """Delete cached vectors of chunks that no other document has."""
    rows = connection.execute("SELECT version FROM index_versions WHERE status <> 'retired'").fetchall()
    kept: set[str] = set()
    for row in rows:
        version = index_tables.get(connection, row["version"])
        query = sql.SQL("SELECT DISTINCT chunk_sha256 FROM {} WHERE chunk_sha256 = ANY(%s)").format(version.table)
        kept |= {found["chunk_sha256"] for found in connection.execute(query, (sorted(hashes),))}
    return connection.execute(
        "DELETE FROM embedding_cache WHERE chunk_sha256 = ANY(%s)", (sorted(hashes - kept),)
    ).rowcount


def _vacuum(settings: Settings, tables: list[str]) -> None:
    """Let Postgres overwrite what was deleted: a deleted row stays in its file until then."""
    import psycopg

    with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as connection:
        for table in [*tables, "documents", "quarantine", "embedding_cache"]:
            connection.execute(sql.SQL("VACUUM {}").format(sql.Identifier(table)))


def main(arguments: list[str]) -> int:
    """`python -m tasks erase --document URI --by WHO --reason WHY [--corpus NAME]`: erase a document everywhere."""
    from tasks.__main__ import parse_options
    from tasks.errors import OptionError
    from tasks.settings import settings

    given = parse_options(arguments)
    if {"document", "by", "reason"} - set(given) or set(given) - {"document", "by", "reason", "corpus"}:
        raise OptionError(
            f"expected --document URI --by WHO --reason WHY [--corpus NAME], found {sorted(given)}. Next: correct the command."
        )
    own = settings()
    done = erase(
        own,
        Storage(own.s3_endpoint_url),
        given.get("corpus", "default"),
        given["document"],
        given["by"],
        given["reason"],
    )
    print(f"erased {given['document']}: " + ", ".join(f"{count} {name}" for name, count in done.removed.items()))
    for name, found in done.built_on.items():
        print(f"  {name.replace('_', ' ')} built on it: {', '.join(map(str, found)) or 'none'}")
    print("Backups made before now still hold it until they are retired. To train without it: trigger fine_tune.")
    return 0
