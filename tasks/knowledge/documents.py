"""What the parts of `read_documents` found, as temporary tables of a connection: for the stages that look at all of it.

Reads artifacts of `list_documents`, `read_documents` and `validate_documents`. Writes temporary tables only:

    plan      uri, change, content_sha256       of the listing
    same      uri, stamp                        read, and found to be as indexed
    fresh     uri, part, and what `documents` keeps of a good document; `kept` is false for copies
    refused   uri, rule, content_sha256, stamp  rejected: by a rule (its first), or as a copy (then `same_as`)
    staying   uri                               indexed documents that stay as they are

Nothing here holds a list as long as the corpus.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from tasks.contracts import Manifest
from tasks.database import Connection
from tasks.knowledge.reconciliation import load_rows
from tasks.stage import StageContext

_FRESH = {
    "uri": 'text COLLATE "C"', "part": "text", "title": "text", "text_sha256": "text", "content_sha256": "text",
    "bytes": "bigint", "stamp": "text", "signature": "bytea", "bands": "bigint[]",
}  # fmt: skip
_REFUSED = {"uri": 'text COLLATE "C"', "rule": "text", "same_as": "text", "content_sha256": "text"}


def manifests(context: StageContext) -> list[Manifest]:
    """Return the verified manifests of the parts of `read_documents`. Raises ManifestError when one is missing."""
    return context.parts("read_documents", context.inputs["list_documents"].facts["parts"])


def load(context: StageContext, connection: Connection, parts: list[Manifest]) -> None:
    """Make the temporary tables; `fresh` has no copies marked yet, and `refused` none of them."""
    plan = context.storage.get_rows(context.input("list_documents", "plan"))
    load_rows(
        connection,
        "plan",
        {"uri": 'text COLLATE "C"', "change": "text", "stamp": "text", "bytes": "bigint", "content_sha256": "text"},
        plan,
    )
    load_rows(connection, "same", {"uri": 'text COLLATE "C"', "stamp": "text"}, _rows(context, parts, "same"))
    load_rows(connection, "fresh", _FRESH, _fresh(context, parts))
    connection.execute("ALTER TABLE fresh ADD COLUMN kept boolean NOT NULL DEFAULT true")
    load_rows(connection, "refused", _REFUSED, _refused(context, parts))
    connection.execute(
        "CREATE TEMP TABLE staying ON COMMIT DROP AS "
        "SELECT uri FROM plan WHERE change = 'unchanged' UNION SELECT uri FROM same"
    )
    connection.execute("ALTER TABLE staying ADD PRIMARY KEY (uri)")


def load_judged(context: StageContext, connection: Connection, parts: list[Manifest]) -> None:
    """Make the temporary tables as `validate_documents` left them: copies are marked, and refused."""
    load(context, connection, parts)
    refuse_copies(connection, context.storage.get_rows(context.input("validate_documents", "copies")))


def refuse_copies(connection: Connection, copies: Iterable[dict[str, Any]]) -> None:
    """Load `copies` into a temporary table of that name, mark them in `fresh`, and add them to `refused`."""
    load_rows(connection, "copies", {"uri": 'text COLLATE "C"', "rule": "text", "same_as": "text"}, copies)
    connection.execute("UPDATE fresh SET kept = false FROM copies WHERE copies.uri = fresh.uri")
    connection.execute(
        "INSERT INTO refused (uri, rule, same_as, content_sha256) "
        "SELECT c.uri, c.rule, c.same_as, f.content_sha256 FROM copies c JOIN fresh f ON f.uri = c.uri"
    )


def _rows(context: StageContext, parts: list[Manifest], output: str) -> Iterator[dict[str, Any]]:
    for part in parts:
        yield from context.storage.get_rows(part.outputs[output])


def _fresh(context: StageContext, parts: list[Manifest]) -> Iterator[dict[str, Any]]:
    for part in parts:
        for row in context.storage.get_rows(part.outputs["documents"]):
            yield {**row, "part": part.part, "signature": bytes.fromhex(row["signature"])}


def _refused(context: StageContext, parts: list[Manifest]) -> Iterator[dict[str, Any]]:
    """Yield the first rejection of each rejected document."""
    for part in parts:
        before = None
        for row in context.storage.get_rows(part.outputs["rejected"]):
            if row["item"] != before:
                yield {
                    "uri": row["item"],
                    "rule": row["rule"],
                    "same_as": None,
                    "content_sha256": row["content_sha256"],
                }
            before = row["item"]
