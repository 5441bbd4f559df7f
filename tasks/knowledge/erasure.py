"""Erase one document: from the index, its copies and its traces; and say what had been built on it.

Adds a row to `erasures` first, which keeps the document from coming back: a sync passes it over, a dataset is not built from
it, and a sync that runs meanwhile cannot make it serve. Then deletes the objects that hold its text, below
`s3://BUCKET/quarantine/`, `teacher/` and in run folders, and the traces in MLflow of answers made from it, and in one
transaction the rows (tasks.knowledge.erasure_rows), and completes the audit row; one that says nothing was removed is of an
erasure that was cut off. Datasets, models and releases that were built on it are listed, not changed: they are evidence, and
whether to train again is a person's decision. Safe to repeat. What stays: docs/knowledge.md. Fails with `DataError` when
nothing of that document is known.
"""

import contextlib
import getpass
import os
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from tasks.database import Connection, connect
from tasks.errors import DataError
from tasks.knowledge import index_tables
from tasks.knowledge.erasure_rows import answered_from, copies_of, delete_rows, delete_unused_vectors, versions_with
from tasks.knowledge.index_tables import Version
from tasks.knowledge.traces import naming
from tasks.mlflow_http import MlflowHttp
from tasks.options import parse_options
from tasks.serving.spans import EXPERIMENT, trace_name
from tasks.settings import Settings
from tasks.storage import Storage

# Outputs of stages that hold texts of documents or say which they are, by the stage's folder in a run.
_TEXTS = ("read_documents/", "index_documents/", "validate_documents/", "build_dataset/", "validate_dataset/")
_NO_REASON = "no reason given"


@dataclass(frozen=True)
class Erasure:
    """What was removed (counts by place), what had been built on the document, and which others have its text."""

    removed: dict[str, int]
    built_on: dict[str, list[Any]]
    copies: list[str]


def erase(settings: Settings, storage: Storage, corpus: str, uri: str, by: str, reason: str) -> Erasure:
    """Erase the document `uri` of `corpus`. Raises DataError when nothing of it is known."""
    bucket = f"s3://{settings.s3_bucket}"
    with connect() as connection:
        number, before = _begin(connection, corpus, uri, by, reason)
        places = _bodies(connection, corpus, uri)
        answered = answered_from(connection, corpus, uri)
    datasets = sorted({place.split("/")[4] for place in naming(storage, f"{bucket}/datasets/", uri)})
    places += naming(storage, f"{bucket}/runs/", uri, _TEXTS)
    places += naming(storage, f"{bucket}/teacher/", uri, suffix=".json")
    objects = sum(storage.delete_prefix(place) for place in places)
    traces = _delete_traces(settings, answered)
    with connect() as connection:
        index_tables.lock_current(connection, corpus)  # no version is switched to, or dropped, until this is committed
        versions = versions_with(connection, corpus, uri)
        built_on = _built_on(connection, [one.version for one in versions if one.corpus == corpus], datasets)
        copies = copies_of(connection, corpus, uri)
        meanwhile = sorted({*answered_from(connection, corpus, uri)} - {*answered})
        removed = {"objects": objects, "traces": traces, **delete_rows(connection, versions, corpus, uri)}
        known = before or bool(datasets) or any(removed.values())
        if known:
            removed["cached_vectors"] = delete_unused_vectors(connection)
            connection.execute(
                "UPDATE erasures SET removed = %s, built_on = %s WHERE id = %s",
                (Jsonb(removed), Jsonb(built_on), number),
            )
        else:
            connection.execute("DELETE FROM erasures WHERE id = %s", (number,))
    if meanwhile:  # answered with the document while its objects were looked for
        removed["traces"] += _delete_traces(settings, meanwhile)
    if not known:
        raise DataError(
            f"expected a document {uri!r} in the corpus {corpus!r}, its quarantine, a dataset or a run, found none. "
            "Next: write the URI as `python -m tasks search` shows it."
        )
    _vacuum(settings, [version.own for version in versions])
    return Erasure(removed, built_on, copies)


def erased(connection: Connection, corpus: str) -> set[str]:
    """Return the documents of a corpus that were erased."""
    return {row["uri"] for row in connection.execute("SELECT uri FROM erasures WHERE corpus = %s", (corpus,))}


def erased_in(connection: Connection, version: Version) -> str | None:
    """Return an erased document that an index version holds all the same; None where there is none."""
    query = sql.SQL(
        # Not EXISTS: as a join it would read all of a version that stands on another, where one look-up each is enough.
        "SELECT uri FROM erasures e WHERE corpus = %s AND (SELECT TRUE FROM {} c WHERE c.document_uri = e.uri LIMIT 1) LIMIT 1"
    )
    row = connection.execute(query.format(version.table), (version.corpus,)).fetchone()
    return str(row["uri"]) if row else None


def _begin(connection: Connection, corpus: str, uri: str, by: str, reason: str) -> tuple[int, bool]:
    """Add the audit row; return its number, and whether the document was erased before."""
    before = uri in erased(connection, corpus)
    row = connection.execute(
        "INSERT INTO erasures (corpus, uri, requested_by, reason, removed, built_on) VALUES (%s, %s, %s, %s, '{}', '{}') "
        "RETURNING id",
        (corpus, uri, by, reason),
    ).fetchone()
    assert row is not None
    return int(row["id"]), before


def _bodies(connection: Connection, corpus: str, uri: str) -> list[str]:
    """Return where quarantine keeps bytes of the document that no other document has."""
    rows = connection.execute(
        "SELECT DISTINCT body_uri FROM quarantine q WHERE corpus = %(corpus)s AND item = %(uri)s AND body_uri IS NOT NULL "
        "AND NOT EXISTS (SELECT FROM quarantine o WHERE o.body_uri = q.body_uri AND o.item <> q.item)",
        {"corpus": corpus, "uri": uri},
    )
    return [row["body_uri"] for row in rows]


def _delete_traces(settings: Settings, requests: list[UUID]) -> int:
    """Delete the traces in MLflow of requests that were answered with the document; return how many there were."""
    if not requests:
        return 0
    with contextlib.closing(MlflowHttp(settings.mlflow_tracking_uri)) as http:
        return http.delete_traces(EXPERIMENT, [trace_name(one) for one in requests])


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


def _vacuum(settings: Settings, tables: list[sql.Identifier]) -> None:
    """Let Postgres overwrite what was deleted: a deleted row stays in its file until then."""
    with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as connection:
        others = ("documents", "quarantine", "embedding_cache", "requests", "feedback", "shadow_answers")
        for table in [*tables, *map(sql.Identifier, others)]:
            with contextlib.suppress(psycopg.errors.UndefinedTable):  # dropped meanwhile: nothing of it is left
                connection.execute(sql.SQL("VACUUM {}").format(table))


def main(arguments: list[str]) -> int:
    """`python -m tasks erase --document URI [--by WHO] [--reason WHY] [--corpus NAME]`: erase a document everywhere."""
    from tasks.errors import OptionError
    from tasks.settings import settings

    given = parse_options(arguments)
    if not given.get("document") or set(given) - {"document", "by", "reason", "corpus"}:
        raise OptionError(
            f"expected --document URI [--by WHO] [--reason WHY] [--corpus NAME], found {sorted(given)}. Next: correct the command."
        )
    own, by = settings(), given.get("by", "").strip() or _user()
    reason = given.get("reason", "").strip() or _NO_REASON
    storage, corpus = Storage(own.s3_endpoint_url), given.get("corpus", "default")
    done = erase(own, storage, corpus, given["document"], by, reason)
    print(f"erased {given['document']}: " + ", ".join(f"{count} {name}" for name, count in done.removed.items()))
    for name, found in done.built_on.items():
        print(f"  {name.replace('_', ' ')} built on it: {', '.join(map(str, found)) or 'none'}")
    print(f"  copies of it, to be erased too: {', '.join(done.copies) or 'none'}")
    print(f"  asked for by {by}: {reason}")
    print("Backups made before now still hold it until they are retired. To train without it: trigger fine_tune.")
    print("If a sync was running, it ends in an error, and may have written texts meanwhile: erase once more after it.")
    return 0


def _user() -> str:
    """Return the operating system's user; its number where it has no name, as in some pods."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"
