"""Is the index behind its corpus? The listing of the corpus against table `documents`.

Reads the corpus listing (no document's text), `documents` and `quarantine`; writes nothing. A document
that the current index's own sync rejected is not missing: indexing again would reject it again. A corpus
that cannot be read is a finding, not a failure of the drift check.
"""

from dataclasses import dataclass

from tasks.database import Connection
from tasks.errors import CorpusError
from tasks.knowledge.sources import open_source
from tasks.settings import Settings
from tasks.storage import Storage


@dataclass(frozen=True)
class Gap:
    """Documents of the corpus that the index lacks, and those whose bytes changed since."""

    missing: int
    changed: int
    problem: str | None = None


def corpus_gap(settings: Settings, storage: Storage, connection: Connection) -> Gap:
    """Compare the corpus with what the current index holds."""
    try:
        listed = {item.uri: item.sha256 for item in open_source(settings.corpus, storage).list()}
    except CorpusError as error:
        return Gap(0, 0, str(error))
    if not listed:
        return Gap(0, 0, f"expected documents in {settings.corpus}, found none")
    rows = connection.execute("SELECT uri, source_sha256 FROM documents WHERE corpus = %s", (settings.corpus,))
    indexed = {row["uri"]: row["source_sha256"] for row in rows}
    rows = connection.execute(
        "SELECT item FROM quarantine WHERE kind = 'document' "
        "AND run = (SELECT run FROM index_versions WHERE status = 'current')"
    )
    rejected = {row["item"] for row in rows}
    return Gap(
        missing=len(listed.keys() - indexed.keys() - rejected),
        changed=sum(indexed[uri] != sha256 for uri, sha256 in listed.items() if uri in indexed),
    )
