"""What an index version is made with: extractor, rules, screening policy, chunker and its options, embedder.

Reads settings, the suites of expectations, the screening policy and the embedder's weights (their digest). Writes nothing.
Two versions with equal fingerprints hold equal chunks for equal documents, so that an unchanged document
is copied from one to the next; any change here makes every document anew (the cache of embeddings still
serves chunks whose text and embedder are the same).
"""

from dataclasses import asdict, dataclass

from tasks.contracts import digest
from tasks.knowledge.chunking import CHUNKER
from tasks.knowledge.embedder import embedder_name
from tasks.knowledge.extraction import EXTRACTOR
from tasks.screening import load_policy
from tasks.settings import Settings
from tasks.validation import load_suite


@dataclass(frozen=True)
class Pipeline:
    """The parts that decide what an index holds for a given document."""

    extractor: str
    document_rules: str
    screening: str
    chunker: str
    chunk_tokens: int
    chunk_rules: str
    embedder: str

    @property
    def fingerprint(self) -> str:
        """One digest of all parts."""
        return digest(asdict(self))


def pipeline(settings: Settings) -> Pipeline:
    """Return the pipeline that the settings ask for."""
    return Pipeline(
        extractor=EXTRACTOR,
        document_rules=digest(load_suite("documents")["expectations"]),
        screening=load_policy().fingerprint,
        chunker=CHUNKER,
        chunk_tokens=settings.chunk_tokens,
        chunk_rules=digest(load_suite("chunks")["expectations"]),
        embedder=embedder_name(settings),
    )
