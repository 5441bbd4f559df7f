"""Stage `switch_index`: make the checked version of this run the one that serves.

Reads what the sync has read and judged, and the checked version. One transaction: the new version becomes current, the
old one former (it stays until housekeeping), `documents` says what the index now holds and what was rejected, and held
rejections that this sync settled are closed. On a noop only these two tables are brought up to date (stamps, rejects).
Run twice it changes nothing. Fails with `DataError` when the version was not checked, or is not whole; is refused when
another run of this corpus switched after this one had listed it, or when a document of it was erased meanwhile.
"""

import shlex
from typing import Any

from psycopg import sql

from tasks.database import Connection, connect
from tasks.errors import DataError
from tasks.knowledge import corpora, documents, index_tables, quarantine
from tasks.knowledge.erasure import erased_in
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
            reason: str | None = (
                f"expected index version {listed['base_version']} of {corpus} to serve as when this run began, found {found}. "
                "Next: start a new run of sync_knowledge."
            )
        else:
            documents.load_judged(context, connection, parts)
            version = index_tables.get(connection, target)
            reason = _erased_meanwhile(connection, version, found != target)
        if reason:
            return StageResult(counts=counts, facts=facts, status="refused", reason=reason)
        if found != target:
            _switch(connection, serving, target)
        _update(connection, version, context.run, listed["fingerprint"])
        quarantine.supersede(connection, corpus, context.run)
    return StageResult(counts=counts, facts=facts)


def _erased_meanwhile(connection: Connection, version: Version, switches: bool) -> str | None:
    """Return why this run must not go on, where it found, or is to switch to, a document that was erased since it began."""
    row = connection.execute(
        "SELECT uri FROM erasures WHERE corpus = %s AND uri IN (SELECT uri FROM fresh UNION ALL SELECT uri FROM refused) LIMIT 1",
        (version.corpus,),
    ).fetchone()
    uri = row["uri"] if row else erased_in(connection, version) if switches else None
    if uri is None:
        return None
    return (
        f"expected no document of this sync to be erased, found {uri} erased since it began. "
        f"Next: `python -m tasks erase --document {shlex.quote(uri)} --corpus {version.corpus}` once more, then start a new run of sync_knowledge."
    )


def _switch(connection: Connection, serving: Version | None, target: int) -> None:
    found = index_tables.get(connection, target)
    if found.status != "checked":
        raise DataError(
            f"expected index version {target} to be checked, found it {found.status}. Next: clear check_index of this run."
        )
    index_tables.require_whole(connection, found)
    if serving is not None:
        connection.execute("UPDATE index_versions SET status = 'former' WHERE version = %s", (serving.version,))
    connection.execute(
        "UPDATE index_versions SET status = 'current', switched_at = now() WHERE version = %s", (target,)
    )


def _update(connection: Connection, version: Version, run: str, fingerprint: str) -> None:
    """Make `documents` say what the corpus' index holds, and what was rejected.

    A rejection that a person decided about while this run went on has no rule here: the next sync looks at it again.
    """
    about = {"corpus": version.corpus, "fingerprint": fingerprint, "run": run}
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
        "SELECT r.uri, %(corpus)s, '', 'rejected', CASE WHEN EXISTS (SELECT FROM quarantine q WHERE q.kind = 'document' "
        "AND q.corpus = %(corpus)s AND q.item = r.uri AND q.run = %(run)s AND q.status IN ('accepted', 'passed')) "
        "OR EXISTS (SELECT FROM acceptances a WHERE a.corpus = %(corpus)s AND a.content_sha256 = r.content_sha256 AND a.rule = r.rule) "
        "THEN NULL ELSE r.rule END, r.same_as, p.stamp, %(fingerprint)s, coalesce(r.content_sha256, ''), '', "
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
