"""The table `quarantine`: what was rejected, by which rule and why; and `acceptances`, where a person stands for it all the same.

Writes rows once a run, item and rule; a rerun replaces the reason. The bytes of a rejected document are kept beside it
(`keep`), so that it can be looked at again, or shown, without its source. Fails only as the database and S3 do.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tasks.database import Connection
from tasks.storage import Storage

_EXCERPT = 300


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
