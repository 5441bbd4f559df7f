"""Stage `switch_index`: make the checked version of this run the one that serves.

One transaction: the new version becomes current, the old one former (it stays until housekeeping), and
`documents` says what the index now holds. Run twice it changes nothing. Fails with `DataError` when the
version was not checked; is refused when another run switched after this one had listed its documents.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.database import Connection, connect
from tasks.errors import DataError
from tasks.knowledge import index_tables
from tasks.knowledge.index_tables import Version
from tasks.stage import Stage, StageContext, StageOptions, StageResult


class Options(StageOptions):
    """None: what to switch to is in the run's manifests."""


def run(context: StageContext, options: Options) -> StageResult:
    """Switch to the version that `check_index` passed."""
    listed, target = context.inputs["list_documents"].facts, context.inputs["check_index"].facts["version"]
    facts: dict[str, Any] = {"version": target, "previous": listed["base_version"], "noop": listed["noop"]}
    counts = {name: context.inputs["check_index"].counts[name] for name in ("documents", "chunks")}
    if listed["noop"]:
        return StageResult(counts=counts, facts=facts)
    parts = context.inputs["validate_documents"].facts["parts"]
    indexed = [
        row
        for part in parts
        for row in context.storage.get_rows(context.input("validate_documents", f"documents-{part}"))
    ]
    unchanged = [
        row["uri"]
        for row in context.storage.get_rows(context.input("list_documents", "plan"))
        if row["change"] == "unchanged"
    ]
    with connect() as connection:
        serving = index_tables.lock_current(connection)
        if serving is None or serving.version != target:
            if (serving.version if serving else None) != listed["base_version"]:
                return StageResult(
                    counts=counts,
                    facts=facts,
                    status="refused",
                    reason=(
                        f"expected index version {listed['base_version']} to serve as when this run began, found "
                        f"{serving.version if serving else 'none'}. Next: start a new run of sync_knowledge."
                    ),
                )
            _switch(connection, serving, target)
            _update_documents(connection, index_tables.get(connection, target), listed["corpus"], indexed, unchanged)
    return StageResult(counts=counts, facts=facts)


def _switch(connection: Connection, serving: Version | None, target: int) -> None:
    found = index_tables.get(connection, target)
    if found.status != "checked":
        raise DataError(
            f"expected index version {target} to be checked, found it {found.status}. Next: clear check_index of this run."
        )
    if serving is not None:
        connection.execute("UPDATE index_versions SET status = 'former' WHERE version = %s", (serving.version,))
    connection.execute(
        "UPDATE index_versions SET status = 'current', switched_at = now() WHERE version = %s", (target,)
    )


def _update_documents(
    connection: Connection,
    version: Version,
    corpus: str,
    indexed: Sequence[Mapping[str, Any]],
    unchanged: Sequence[str],
) -> None:
    chunks = index_tables.documents_in(connection, version)
    keep = [*unchanged, *(row["uri"] for row in indexed)]
    connection.execute("DELETE FROM documents WHERE NOT uri = ANY(%s)", (keep,))
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO documents (uri, corpus, title, source_sha256, text_sha256, bytes, chunks) "
            "VALUES (%(uri)s, %(corpus)s, %(title)s, %(source_sha256)s, %(text_sha256)s, %(bytes)s, %(chunks)s) "
            "ON CONFLICT (uri) DO UPDATE SET corpus = excluded.corpus, title = excluded.title, "
            "source_sha256 = excluded.source_sha256, text_sha256 = excluded.text_sha256, bytes = excluded.bytes, "
            "chunks = excluded.chunks, last_changed = CASE WHEN documents.text_sha256 = excluded.text_sha256 "
            "THEN documents.last_changed ELSE now() END",
            [
                {name: row[name] for name in ("uri", "title", "source_sha256", "text_sha256", "bytes")}
                | {"corpus": corpus, "chunks": chunks.get(row["uri"], 0)}
                for row in indexed
            ],
        )


STAGE = Stage("switch_index", Options, run, needs=("list_documents", "validate_documents", "check_index"))
