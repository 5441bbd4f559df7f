"""What an index version is made with: extractors, rules, screening policy, chunker and its options, embedder, kind of index.

Reads settings, the suites of expectations, the screening policy and the embedder's folder (its digest). Writes nothing.
Two versions with equal fingerprints hold equal chunks for equal documents, so that an unchanged document
is copied from one to the next; any change here makes every document anew (the cache of embeddings still
serves chunks whose text and embedder are the same).
"""

from dataclasses import asdict, dataclass

from tasks.contracts import digest
from tasks.knowledge import chunking
from tasks.knowledge.embedders import identity, tokenizer_digest
from tasks.knowledge.extraction import extractor
from tasks.screening import load_policy
from tasks.settings import Settings
from tasks.validation import load_suite


@dataclass(frozen=True)
class Pipeline:
    """The parts that decide what an index holds for a given document."""

    extractor: str
    document_rules: str
    screening: str
    models: tuple[str | None, ...]
    near_duplicate_similarity: float
    chunker: str
    chunk_rules: str
    embedder: str
    tokenizer: str | None  # of an endpoint; any other is part of `embedder`
    vector_type: str
    text_search: str

    @property
    def fingerprint(self) -> str:
        """One digest of all parts."""
        return digest(asdict(self))


def pipeline(settings: Settings, current: str | None = None) -> Pipeline:
    """Return the pipeline that the settings ask for; `current` is the embedder of the corpus' current version."""
    return Pipeline(
        extractor=extractor(),
        document_rules=digest(load_suite("documents")["expectations"]),
        screening=load_policy(settings=settings).fingerprint,
        models=(settings.names_model, settings.toxicity_model),
        near_duplicate_similarity=settings.near_duplicate_similarity,
        chunker=chunking.fingerprint(settings.chunker, settings.chunk_tokens, settings.chunk_overlap),
        chunk_rules=digest(load_suite("chunks")["expectations"]),
        embedder=identity(settings, current=current),
        tokenizer=tokenizer_digest(settings),
        vector_type=settings.vector_type,
        text_search=settings.text_search,
    )
