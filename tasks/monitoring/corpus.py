"""Is the index behind its corpus? The listing of the corpus against table `documents`.

Reads the corpus listing (no document's text) and `documents`; writes nothing. A document that a sync rejected is in
`documents` too, and not missing: indexing again would reject it again, unless its stamp says that it changed. A row
without a stamp was written before there were stamps: nobody knows, and the next sync looks. A corpus that cannot be
read is a finding, not a failure of the drift check.
"""

from dataclasses import dataclass

from tasks.database import Connection
from tasks.errors import CorpusError
from tasks.knowledge import corpora
from tasks.knowledge.erasure import erased
from tasks.knowledge.sources import open_source
from tasks.settings import Settings
from tasks.storage import Storage

_NAMED = 5


@dataclass(frozen=True)
class Gap:
    """Documents of the corpus that the index lacks, and those whose bytes changed since."""

    missing: int
    changed: int
    problem: str | None = None
    named: tuple[str, ...] = ()
    """Some of them."""


def corpus_gap(settings: Settings, storage: Storage, connection: Connection) -> Gap:
    """Compare what the corpus `default`, which the assistant answers from, lists with what is known of it."""
    corpus, source = corpora.DEFAULT, corpora.source_of(settings, corpora.DEFAULT)
    rows = connection.execute("SELECT uri, stamp FROM documents WHERE corpus = %s", (corpus,))
    known = {row["uri"]: row["stamp"] for row in rows}
    gone, listed, missing, changed = erased(connection, corpus), 0, 0, 0
    named: list[str] = []
    try:
        for item in open_source(source, storage).list():
            if item.uri in gone:
                continue
            stamp = known.get(item.uri)
            listed += 1
            differs = bool(stamp) and stamp != item.stamp
            missing += stamp is None
            changed += differs
            if (stamp is None or differs) and len(named) < _NAMED:
                named.append(item.uri)
    except CorpusError as error:
        return Gap(0, 0, str(error))
    if not listed:
        return Gap(0, 0, f"expected documents in {source}, found none")
    return Gap(missing, changed, named=tuple(named))


def index_age(connection: Connection) -> float | None:
    """Return how many days ago the index version of the live release was built; None before any release."""
    row = connection.execute(
        "SELECT extract(epoch FROM now() - i.created_at) / 86400 AS days FROM releases r "
        "JOIN index_versions i ON i.version = r.index_version ORDER BY r.release DESC LIMIT 1"
    ).fetchone()
    return round(float(row["days"]), 3) if row else None
