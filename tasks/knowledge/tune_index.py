"""`python -m tasks tune-index`: which settings find the most for a corpus' golden questions.

Reads the documents of the corpus from their source, once, as a sync would. For each combination of chunker, size,
embedder it builds an index version of its own beside the others, asks the golden questions in each search mode, prints a row
of the table, adds a run to the MLflow experiment `tune_index`, and drops the version again. Vectors come from, and go
into, the cache of embeddings: what was embedded for one combination is not embedded again. Nothing that serves is touched. Fails
with `OptionError` for a wrong command, and with the errors of a sync.

    python -m tasks tune-index [--corpus NAME] [--chunkers A,B] [--sizes 128,200] [--overlaps 0] [--embedders REF,REF]
                               [--modes vector,hybrid] [--ef 40,80] [--documents N]
"""

import hashlib
import itertools
import logging
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tasks import tracking
from tasks.contracts import digest
from tasks.database import connect
from tasks.errors import OptionError
from tasks.knowledge import corpora, index_tables
from tasks.knowledge.cache import EmbeddingCache, text_sha256
from tasks.knowledge.chunking import make_chunker
from tasks.knowledge.embedders import dimensions, identity, tokenizer_of
from tasks.knowledge.examination import Body, examine
from tasks.knowledge.extraction import DocumentRefused, Extractor
from tasks.knowledge.index_documents import apply_rules, chunk_rows
from tasks.knowledge.measure import Asking, Measurement, measure
from tasks.knowledge.retrieval import GoldenQuestion, load_questions, require_known
from tasks.knowledge.sources import open_source
from tasks.settings import Settings, changed_settings, settings
from tasks.storage import Storage

log = logging.getLogger(__name__)
EXPERIMENT = "tune_index"
_OPTIONS = ("corpus", "chunkers", "sizes", "overlaps", "embedders", "modes", "ef", "documents")
_BATCH = 100


@dataclass(frozen=True)
class Combination:
    """What is built once: everything but how it is asked."""

    chunker: str
    size: int
    overlap: int
    embedder: str

    def settings(self, own: Settings) -> Settings:
        """Return the corpus' settings with those of the combination."""
        changes = {
            "chunker": self.chunker, "chunk_tokens": self.size, "chunk_overlap": self.overlap, "embedder": self.embedder,
        }  # fmt: skip
        return changed_settings(own, changes, "tune-index")


@dataclass(frozen=True)
class Tried:
    """A combination, how it was asked, and what it found."""

    combination: Combination
    asking: Asking
    chunks: int
    embedded: int
    found: Measurement


def main(arguments: list[str]) -> int:
    """Try the combinations that the command names, best recall@5 first in the table at the end."""
    from tasks.__main__ import parse_options

    given = parse_options(arguments)
    if unknown := sorted(set(given) - set(_OPTIONS)):
        raise OptionError(
            f"expected options of tune-index ({', '.join(_OPTIONS)}), found {unknown}. Next: correct them."
        )
    chosen = settings()
    own = corpora.settings_of(chosen, given.get("corpus"))
    combinations = [
        Combination(*values)
        for values in itertools.product(
            _words(given, "chunkers", own.chunker),
            _numbers(given, "sizes", own.chunk_tokens),
            _numbers(given, "overlaps", own.chunk_overlap),
            _words(given, "embedders", own.embedder),
        )
    ]
    askings = [
        Asking(mode=mode, ef=ef)  # type: ignore[arg-type]
        for mode, ef in itertools.product(_words(given, "modes", own.search_mode), _numbers(given, "ef", 80))
    ]
    storage = Storage(own.s3_endpoint_url)
    questions = load_questions(own.golden_questions, storage)
    tried: list[Tried] = []
    with tempfile.TemporaryFile() as kept:
        uris = set(_read(own, corpora.source_of(chosen, given.get("corpus")), storage, kept, given.get("documents")))
        require_known(questions, uris, own.golden_questions)
        for combination in combinations:
            tried += try_one(combination.settings(own), combination, askings, questions, kept)
    for row in table(tried):
        print(row)
    return 0


def _words(given: dict[str, str], name: str, default: str) -> list[str]:
    return [word.strip() for word in given.get(name, default).split(",") if word.strip()]


def _numbers(given: dict[str, str], name: str, default: int) -> list[int]:
    words = _words(given, name, str(default))
    if not words or not all(word.isdecimal() for word in words):
        raise OptionError(f"expected --{name} with numbers and commas, found {given.get(name)!r}. Next: correct it.")
    return [int(word) for word in words]


def _read(own: Settings, source: str, storage: Storage, kept: IO[bytes], most: str | None) -> Iterator[str]:
    """Write the good documents of the source to a scratch file; yield the URIs of all that were looked at."""
    import json

    place = open_source(source, storage)
    with Extractor(own.extraction_seconds, own.extraction_memory_gb) as extractor:
        items = itertools.islice(place.list(), int(most) if most else None)
        while batch := list(itertools.islice(items, _BATCH)):
            bodies = []
            for item in batch:
                yield item.uri
                try:
                    body = place.read(item, int(own.max_document_mb * 1_000_000))
                except DocumentRefused as refused:
                    log.info("passed over %s: %s", item.uri, refused)
                    continue
                bodies.append(Body(item.uri, item.stamp, hashlib.sha256(body).hexdigest(), body))
            for row in examine(bodies, extractor, settings=own).rows:
                kept.write(json.dumps(row).encode() + b"\n")


def try_one(
    own: Settings,
    combination: Combination,
    askings: Sequence[Asking],
    questions: Sequence[GoldenQuestion],
    kept: IO[bytes],
) -> list[Tried]:
    """Build one combination, ask in every way, drop it."""
    embedder = identity(own)
    run = f"tune/{uuid.uuid4().hex}"
    about = {
        "fingerprint": digest([run]), "corpus": "tuning", "source": "", "corpus_sha256": "", "embedder": embedder, "dimensions": dimensions(own),
        "vector_type": own.vector_type, "text_search": own.text_search, "settings": {},
    }  # fmt: skip
    with connect() as connection:
        version = index_tables.begin(connection, run, about)
    try:
        cache, chunks = EmbeddingCache(own, embedder), 0
        chunker = make_chunker(own.chunker, *_tokenized(own), own.chunk_overlap)
        for batch in _batches(kept):
            rows = [row for document in batch for row in chunk_rows(chunker, document)]
            rows, _rejected = apply_rules(rows, own.chunk_tokens, own.near_duplicate_similarity)
            vectors = cache.vectors(row["embedded"] for row in rows).by_sha256
            with connect() as connection:
                index_tables.replace_documents(
                    connection, version, [document["uri"] for document in batch],
                    ({**row, "embedding": vectors[row["chunk_sha256"]]} for row in rows),
                )  # fmt: skip
            chunks += len(rows)
        with connect() as connection:
            index_tables.build_indexes(connection, version)
        asked = EmbeddingCache(own, embedder).vectors((one.question for one in questions), kind="query").by_sha256
        tried = []
        for asking in askings:
            with connect() as connection:
                found = measure(connection, version, questions, lambda q: asked[text_sha256(q.question)], {}, asking)
            tried.append(Tried(combination, asking, chunks, cache.embedded, found))
            _track(own, run, tried[-1])
        return tried
    finally:
        with connect() as connection:
            index_tables.drop(connection, version.version)
            connection.execute(
                "DELETE FROM index_versions WHERE version = %s AND status = 'retired'", (version.version,)
            )


def _tokenized(own: Settings) -> tuple[Any, int, int]:
    tokenizer, most = tokenizer_of(own)
    return tokenizer, own.chunk_tokens, most


def _batches(kept: IO[bytes]) -> Iterator[list[dict[str, Any]]]:
    import json

    kept.seek(0)
    while lines := list(itertools.islice(kept, _BATCH)):
        yield [json.loads(line) for line in lines]


def _track(own: Settings, run: str, one: Tried) -> None:
    """Add a run of MLflow: the combination as parameters, what it found as metrics."""
    name = f"{run} {one.asking.mode} {one.asking.ef}"
    parameters = {**vars(one.combination), "mode": one.asking.mode, "ef": one.asking.ef}
    with tracking.answering(own) as client:
        made = tracking.run_for(client, name, {"stage": "tune_index"}, EXPERIMENT)
        for key, value in parameters.items():
            client.log_param(made, key, value)
        stamp = int(time.time() * 1000)
        for key, number in {
            **one.found.means,
            **one.found.latency,
            "chunks": one.chunks,
            "embedded": one.embedded,
        }.items():
            client.log_metric(made, key, float(number), timestamp=stamp)
        client.set_terminated(made)


def table(tried: Sequence[Tried]) -> list[str]:
    """Return the lines of the table, best recall@5 first, then nDCG@10."""
    head = (
        f"{'chunker':<16}{'size':>5}{'over':>5}  {'mode':<7}{'ef':>4}{'chunks':>8}{'embedded':>9}  {'recall@5':<22}{'nDCG@10':<22}"
        f"{'MRR':>6}{'p50 ms':>8}  embedder"
    )
    lines = [head]
    for one in sorted(tried, key=lambda t: (-t.found.means["recall_at_5"], -t.found.means["ndcg_at_10"])):
        recall, gain = one.found.intervals["recall_at_5"], one.found.intervals["ndcg_at_10"]
        lines.append(
            f"{one.combination.chunker:<16}{one.combination.size:>5}{one.combination.overlap:>5}  {one.asking.mode:<7}{one.asking.ef:>4}"
            f"{one.chunks:>8}{one.embedded:>9}  {f'{recall.value:.3f} [{recall.low:.3f}, {recall.high:.3f}]':<22}"
            f"{f'{gain.value:.3f} [{gain.low:.3f}, {gain.high:.3f}]':<22}{one.found.means['mrr']:>6.3f}{one.found.latency['p50_ms']:>8.1f}  "
            f"{Path(one.combination.embedder).name}"
        )
    return lines
