"""Stage `switch_index`: make the checked version of this run the one that serves.

Reads what the sync has read and judged, and the checked version. One transaction: the new version becomes current, the
old one former (it stays until housekeeping), and `documents` says what the index now holds and what was rejected. On a
noop only `documents` is brought up to date (stamps, rejects). Run twice it changes nothing. Fails with `DataError` when
the version was not checked; is refused when another run of this corpus switched after this one had listed it.
"""

from typing import Any

from psycopg import sql

from tasks.database import Connection, connect
from tasks.errors import DataError
from tasks.knowledge import corpora, documents, index_tables
from tasks.knowledge.index_tables import Version
from tasks.stage import Stage, StageContext, StageOptions, StageResult


class Options(StageOptions):
    """None: what to switch to is in the run's manifests."""


def run(context: StageContext, options: Options) -> StageResult:
    """Switch to the version that `check_index` passed."""
    listed, judged = context.inputs["list_documents"].facts, context.inputs["validate_documents"].facts
    checked = context.inputs["check_index"]
    target, noop, corpus = checked.facts["version"], judged["noop"], listed["corpus"]
    facts: dict[str, Any] = {"version": target, "previous": listed["base_version"], "noop": noop, "corpus": corpus}
    counts = {name: checked.counts[name] for name in ("documents", "chunks")}
    parts = documents.manifests(context)
    with connect() as connection:
        serving = index_tables.lock_current(connection, corpus)
        found = serving.version if serving else None
        if found not in (target, listed["base_version"]):
            return StageResult(
                counts=counts,
                facts=facts,
                status="refused",
                reason=(
                    f"expected index version {listed['base_version']} of {corpus} to serve as when this run began, found "
                    f"{found}. Next: start a new run of sync_knowledge."
                ),
            )
        if found != target:
            _switch(connection, serving, target)
        documents.load_judged(context, connection, parts)
        _update(connection, index_tables.get(connection, target), corpus, listed["fingerprint"])
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


def _update(connection: Connection, version: Version, corpus: str, fingerprint: str) -> None:
    """Make `documents` say what the corpus' index holds, and what was rejected."""
    about = {"corpus": corpus, "fingerprint": fingerprint}
    connection.execute(
        "DELETE FROM documents d WHERE corpus = %(corpus)s AND NOT EXISTS (SELECT FROM staying s WHERE s.uri = d.uri) "
        "AND NOT EXISTS (SELECT FROM fresh f WHERE f.uri = d.uri) AND NOT EXISTS (SELECT FROM refused r WHERE r.uri = d.uri) "
        "AND NOT EXISTS (SELECT FROM plan p WHERE p.uri = d.uri AND p.change = 'rejected')",
        about,
    )
    connection.execute(
        "UPDATE documents d SET stamp = s.stamp FROM same s WHERE d.corpus = %(corpus)s AND d.uri = s.uri", about
    )
    connection.execute(
        sql.SQL(
            "CREATE TEMP TABLE chunk_counts ON COMMIT DROP AS SELECT document_uri AS uri, count(*) AS chunks FROM {} c "
            "WHERE EXISTS (SELECT FROM fresh f WHERE f.uri = c.document_uri) GROUP BY document_uri"
        ).format(version.table)
    )
    connection.execute(
        "INSERT INTO documents (uri, corpus, title, status, rule, same_as, stamp, fingerprint, content_sha256, text_sha256, bytes, "
        "chunks, signature, bands) "
        "SELECT f.uri, %(corpus)s, f.title, 'indexed', NULL, NULL, f.stamp, %(fingerprint)s, f.content_sha256, f.text_sha256, f.bytes, "
        "coalesce(c.chunks, 0), f.signature, f.bands FROM fresh f LEFT JOIN chunk_counts c ON c.uri = f.uri WHERE f.kept "
        "UNION ALL "
        "SELECT r.uri, %(corpus)s, '', 'rejected', r.rule, r.same_as, p.stamp, %(fingerprint)s, coalesce(r.content_sha256, ''), '', "
        "p.bytes, 0, NULL, '{}' FROM refused r JOIN plan p ON p.uri = r.uri "
        "ON CONFLICT (corpus, uri) DO UPDATE SET title = excluded.title, status = excluded.status, rule = excluded.rule, "
        "same_as = excluded.same_as, stamp = excluded.stamp, fingerprint = excluded.fingerprint, "
        "content_sha256 = excluded.content_sha256, text_sha256 = excluded.text_sha256, bytes = excluded.bytes, "
        "chunks = excluded.chunks, signature = excluded.signature, bands = excluded.bands, "
        "last_changed = CASE WHEN documents.text_sha256 = excluded.text_sha256 THEN documents.last_changed ELSE now() END",
        about,
    )


STAGE = Stage(
    "switch_index",
    Options,
    run,
    needs=("list_documents", "validate_documents", "check_index"),
    settings=corpora.of_listing,
)
