"""Replay: held documents, looked at again by today's rules, from the bytes that quarantine keeps.

Reads and writes the tables `quarantine` and `documents`; reads `acceptances` and the kept bytes. What passes is looked at
by the next sync, and so is what was never read: whatever kept it from being read (a limit, a permission) may have been
mended without a change of its bytes. Fails as the database and S3 do.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tasks.database import Connection, connect
from tasks.knowledge import corpora, index_tables, quarantine
from tasks.knowledge.examination import Body, Examination, examine
from tasks.knowledge.extraction import Extractor
from tasks.settings import Settings
from tasks.storage import Storage

# Rules of validate_documents: what they reject has a text, of which no excerpt and no bytes are kept.
COPIES = ("text_is_new", "text_is_not_alike")
OUTCOMES = {"passes": "pass", "rejected": "still rejected", "unread": "never read", "copy": "copies"}


def replay(own: Settings, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield of each held rejection (one a document) its outcome, a key of OUTCOMES, and a line that says so."""
    storage = Storage(own.s3_endpoint_url)
    for row in rows:
        if row["content_sha256"] is None:
            with connect(vectors=False) as connection:
                yield "unread", f"{row['item']}: was never read ({row['rule']}); {look_again(connection, row, 'reads')}"
        elif row["body_uri"] is None:
            yield (
                "copy",
                (
                    f"{row['item']}: is a copy ({row['rule']}: {row['reason']}); it is looked at again when that document changes or "
                    f"goes, and indexed beside it after `quarantine accept {row['id']}`"
                ),
            )
        else:
            yield _examined(own, row, storage.get_bytes(row["body_uri"]))


def look_again(connection: Connection, row: Mapping[str, Any], does: str) -> str:
    """Make the next sync look at a rejected document again (reconciliation: one without a rule); return what is then to be said."""
    found = connection.execute(
        "UPDATE documents SET rule = NULL WHERE corpus = %s AND uri = %s AND status = 'rejected' AND content_sha256 = %s",
        (row["corpus"], row["item"], row["content_sha256"] or ""),
    ).rowcount
    if found:
        return f"the next sync {does} it, if its source still lists it"
    # Its sync did not switch, or an index holds it: whether its source still has these bytes is not known here.
    return f"no finished sync left it so; the next one {does} it if its source has it as it was"


def _examined(own: Settings, row: Mapping[str, Any], body: bytes) -> tuple[str, str]:
    corpus, item, sha256 = row["corpus"], row["item"], hashlib.sha256(body).hexdigest()
    with connect(vectors=False) as connection:
        accepted = quarantine.accepted(connection, corpus)
    found = _examine(corpora.settings_of(own, corpus), Body(item, "", sha256, body), accepted)
    if found.rejected:
        return (
            "rejected",
            f"{item}: still rejected, {'; '.join(f'{one.rule}: {one.reason}' for one in found.rejected)}",
        )
    with connect(vectors=False) as connection:
        index_tables.lock_current(connection, corpus)  # as `accept` does
        connection.execute(
            "UPDATE quarantine SET status = 'passed', decided_at = now() WHERE kind = 'document' AND corpus = %s AND item = %s "
            "AND content_sha256 = %s AND status = 'held'",
            (corpus, item, sha256),
        )
        return "passes", f"{item}: passes; {look_again(connection, row, 'indexes')}"


def _examine(limits: Settings, body: Body, accepted: Mapping[str, frozenset[str]]) -> Examination:
    with Extractor(limits.extraction_seconds, limits.extraction_memory_gb) as extractor:
        return examine([body], extractor, accepted, limits)
