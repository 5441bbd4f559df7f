"""The golden questions, asked again of the live release's index: what they find now, beside what they found when it was checked.

Reads the live release's index version, table `documents`, the golden questions, and the cache of embeddings; writes nothing
but that cache. An index that lost rows, or a Postgres that was restored without one, shows here before users complain.
A deployment without golden questions that can be read is a finding, not a failure of the nightly check.
"""

from dataclasses import dataclass

from tasks.database import Connection
from tasks.errors import BadInput
from tasks.knowledge import index_tables
from tasks.knowledge.cache import EmbeddingCache, text_sha256
from tasks.knowledge.corpora import DEFAULT, settings_of
from tasks.knowledge.measure import MEASURES, asking, measure
from tasks.knowledge.retrieval import load_questions
from tasks.release import ledger
from tasks.settings import Settings
from tasks.storage import Storage

SHOWN = "recall_at_5"


@dataclass(frozen=True)
class Golden:
    """Means over the golden questions now and when the index was checked; empty, and why, where there are none."""

    now: dict[str, float]
    then: dict[str, float]
    problem: str | None = None

    def fell(self, margin: float) -> str | None:
        """Return what fell by more than `margin`, in words, or None."""
        now, then = self.now.get(SHOWN), self.then.get(SHOWN)
        if now is None or then is None or now >= then - margin:
            return None
        return f"recall@5 {then:.3f} -> {now:.3f}"


def ask(settings: Settings, storage: Storage, connection: Connection) -> Golden:
    """Ask the golden questions of the corpus `default` of the live release's index version."""
    release = ledger.live(connection)
    if release is None:
        return Golden({}, {}, "no release is live")
    own = settings_of(settings, DEFAULT)
    try:
        questions = load_questions(own.golden_questions, storage)
        version = index_tables.get(connection, release.index_version)
        cache = EmbeddingCache(own, version.embedder)
        found = cache.vectors((question.question for question in questions), kind="query").by_sha256
    except BadInput as error:
        return Golden({}, {}, str(error))
    copies = connection.execute(
        "SELECT uri, same_as FROM documents WHERE corpus = %s AND same_as IS NOT NULL", (DEFAULT,)
    )
    same_as = {row["uri"]: row["same_as"] for row in copies}
    now = measure(connection, version, questions, lambda q: found[text_sha256(q.question)], same_as, asking(own)).means
    row = connection.execute("SELECT metrics FROM index_versions WHERE version = %s", (version.version,)).fetchone()
    then = {name: float(value) for name, value in (row["metrics"] if row else {}).items() if name in MEASURES}
    return Golden(now, then)
