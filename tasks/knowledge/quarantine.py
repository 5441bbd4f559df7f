"""The table `quarantine`: what was rejected, by which rule and why; and `acceptances`, where a person stands for it all the same.

Writes rows once a run, item and rule; a rerun replaces the reason. A row is `held` until a person decides, or a later sync
settles it (`superseded`). The bytes of a rejected document are kept beside it
(`keep`), so that it can be looked at again, or shown, without its source. Fails only as the database and S3 do.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tasks.database import Connection
from tasks.storage import Storage

_EXCERPT = 300
_FOUND = ", found"  # behind it a reason may quote the document
DOCUMENT_OF_CHUNK = "regexp_replace(item, '#[0-9]+$', '')"  # SQL: items of chunks are numbered after their document
# Of a row `q`: another run has judged its document since.
_JUDGED_AGAIN = (
    "EXISTS (SELECT FROM quarantine n WHERE n.kind = q.kind AND n.corpus = q.corpus AND n.item = q.item AND n.id > q.id "
    "AND n.run <> q.run)"
)


@dataclass(frozen=True)
class Rejection:
    """One item and one rule that it breaks; of a document also which bytes these were, and where they are kept."""

    item: str
    rule: str
    reason: str
    excerpt: str
    content_sha256: str | None = None
    body_uri: str | None = None


def record(
    connection: Connection,
    kind: Literal["document", "chunk", "example"],
    run: str,
    rejections: Iterable[Rejection],
    corpus: str = "default",
) -> None:
    """Write rejections; an item that breaks two rules has two rows."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO quarantine (kind, item, rule, reason, excerpt, run, corpus, content_sha256, body_uri) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) "
            "ON CONFLICT (run, kind, item, rule) DO UPDATE SET reason = excluded.reason, excerpt = excluded.excerpt, "
            "content_sha256 = excluded.content_sha256, body_uri = excluded.body_uri",
            [
                (
                    kind,
                    r.item,
                    r.rule,
                    _storable(r.reason),
                    _storable(r.excerpt),
                    run,
                    corpus,
                    r.content_sha256,
                    r.body_uri,
                )
                for r in rejections
            ],
        )


def rejections(item: str, text: str, broken: Mapping[str, str]) -> list[Rejection]:
    """Return the rejections of one item from what a validation report says of its row."""
    return [Rejection(item, rule, reason, text[:_EXCERPT]) for rule, reason in broken.items()]


def unquoted(reason: str) -> str:
    """Return a reason without what was found, which may be words of the document."""
    return reason.partition(_FOUND)[0]


def latest(connection: Connection, corpus: str | None = None, rule: str | None = None) -> list[dict[str, Any]]:
    """Return the held rejections of documents, one a document: of the run that judged it last, its newest that fits."""
    rows = connection.execute(
        "SELECT DISTINCT ON (corpus, item) * FROM quarantine q WHERE kind = 'document' AND status = 'held' "
        "AND corpus = coalesce(%(corpus)s, corpus) AND rule = coalesce(%(rule)s, rule) "
        f"AND NOT {_JUDGED_AGAIN} ORDER BY corpus, item, id DESC".encode(),
        {"corpus": corpus, "rule": rule},
    )
    return list(rows)


def supersede(connection: Connection, corpus: str, run: str) -> None:
    """Close held rejections that the sync `run` settled: of documents that are indexed, listed no longer, or judged again
    since; of chunks of documents that were read again, or are listed no longer.

    Reads the temporary tables `plan` and `fresh` of the caller (tasks.knowledge.documents) and `documents` as the sync leaves it.
    """
    connection.execute(
        "UPDATE quarantine q SET status = 'superseded', decided_at = now(), note = %(note)s "
        "WHERE kind = 'document' AND corpus = %(corpus)s AND status = 'held' AND ("
        "NOT EXISTS (SELECT FROM plan p WHERE p.uri = q.item AND p.change <> 'gone') "
        "OR EXISTS (SELECT FROM documents d WHERE d.corpus = q.corpus AND d.uri = q.item AND d.status = 'indexed') "
        f"OR {_JUDGED_AGAIN})".encode(),
        {"corpus": corpus, "note": f"indexed, gone or judged again by {run}"},
    )
    connection.execute(
        "UPDATE quarantine q SET status = 'superseded', decided_at = now(), note = %(note)s "
        "WHERE kind = 'chunk' AND corpus = %(corpus)s AND status = 'held' AND run <> %(run)s AND ("
        f"EXISTS (SELECT FROM fresh f WHERE f.uri = {DOCUMENT_OF_CHUNK}) "
        f"OR NOT EXISTS (SELECT FROM plan p WHERE p.uri = {DOCUMENT_OF_CHUNK} AND p.change <> 'gone'))".encode(),
        {"corpus": corpus, "run": run, "note": f"its document was read again, or is gone, in {run}"},
    )


def keep(storage: Storage, bucket: str, corpus: str, content_sha256: str, body: bytes) -> str:
    """Keep the bytes of a rejected document, once; return where."""
    uri = f"{bucket}/quarantine/{corpus}/{content_sha256}"
    if not storage.exists(uri):
        storage.put_bytes(uri, body)
    return uri


def accepted(connection: Connection, corpus: str) -> dict[str, frozenset[str]]:
    """Return the rules against which a person accepted contents, by the content's SHA-256."""
    rows = connection.execute(
        "SELECT content_sha256, array_agg(rule) AS rules FROM acceptances WHERE corpus = %s GROUP BY content_sha256",
        (corpus,),
    )
    return {row["content_sha256"]: frozenset(row["rules"]) for row in rows}


def _storable(text: str) -> str:
    # Postgres text cannot hold NUL; lone surrogates cannot be encoded.
    return text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()
