"""One trial of `tune-index`: build a combination of settings beside the index, ask the golden questions of it, drop it.

Reads the rows of documents from a scratch file. Writes an index version and scratch vectors (`tasks.knowledge.tuning`)
that are gone at its end, and a run of MLflow for each way of asking. Fails with the errors of a sync, and with
`ServiceUnavailable` when MLflow is away, `DataError` when it refuses a run.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, TypeVar

from tasks import tracking
from tasks.database import connect
from tasks.errors import DataError
from tasks.evaluation.paired import Interval
from tasks.knowledge import index_tables, tuning
from tasks.knowledge.cache import EmbeddingCache, text_sha256
from tasks.knowledge.chunking import Chunker, make_chunker
from tasks.knowledge.embedders import dimensions, identity, tokenizer_of
from tasks.knowledge.erasure import erased
from tasks.knowledge.index_documents import BATCH_CHARACTERS, BATCH_DOCUMENTS, apply_rules, chunk_rows
from tasks.knowledge.index_tables import Version
from tasks.knowledge.measure import Asking, Measurement, measure
from tasks.knowledge.retrieval import GoldenQuestion
from tasks.settings import Settings, changed_settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T = TypeVar("T")
EXPERIMENT = "tune_index"
HEAD = (
    f"{'chunker':<16}{'size':>5}{'over':>5}  {'mode':<7}{'ef':>5}{'chunks':>8}{'embedded':>9}  {'recall@5':<22}{'nDCG@10':<22}"
    f"{'MRR':>6}{'ann_recall':>11}{'p50 ms':>8}  embedder"
)


@dataclass(frozen=True)
class Combination:
    """What is built once: everything but how it is asked."""

    chunker: str
    size: int
    overlap: int
    embedder: str

    def settings(self, own: Settings) -> Settings:
        """Return the corpus' settings with those of the combination. Raises SettingsError."""
        changes = {
            "chunker": self.chunker, "chunk_tokens": self.size, "chunk_overlap": self.overlap, "embedder": self.embedder,
        }  # fmt: skip
        return changed_settings(own, changes, "tune-index")

    def cutter(self, own: Settings, tokenizer: "Tokenizer", most: int) -> Chunker:
        """Return its chunker, for an embedder with that tokenizer and largest input. Raises SettingsError."""
        chosen = self.settings(own)
        return make_chunker(chosen.chunker, tokenizer, chosen.chunk_tokens, most, chosen.chunk_overlap)

    def __str__(self) -> str:
        """Return the columns that all of its rows begin with."""
        return f"{self.chunker:<16}{self.size:>5}{self.overlap:>5}"


@dataclass(frozen=True)
class Tried:
    """A combination, how it was asked, and what it found."""

    combination: Combination
    asking: Asking
    chunks: int
    embedded: int
    found: Measurement

    def __str__(self) -> str:
        """Return its row of the table. The embedder is named whole: the ends of two references may be the same."""
        return (
            f"{self.combination}  {self.asking.mode:<7}{self.asking.ef:>5}{self.chunks:>8}{self.embedded:>9}  "
            f"{_shown(self.found.intervals['recall_at_5']):<22}{_shown(self.found.intervals['ndcg_at_10']):<22}"
            f"{self.found.means['mrr']:>6.3f}{self.found.means['ann_recall']:>11.3f}{self.found.latency['p50_ms']:>8.1f}  "
            f"{self.combination.embedder}"
        )


def _shown(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def best_first(tried: Iterable[Tried]) -> list[Tried]:
    """Return trials by recall@5, then nDCG@10."""
    return sorted(tried, key=lambda one: (-one.found.means["recall_at_5"], -one.found.means["ndcg_at_10"]))


@dataclass(frozen=True)
class Bench:
    """What all trials have in common."""

    own: Settings
    corpus: str
    askings: Sequence[Asking]
    questions: Sequence[GoldenQuestion]
    kept: IO[bytes]  # the documents' rows
    same_as: Mapping[str, str] = field(default_factory=dict)  # the document that stands for a copy
    indexed_by: str | None = (
        None  # the embedder of the corpus' current version: `auto` keeps its precision, as a sync does
    )

    def try_one(self, combination: Combination, tell: Callable[[Tried], None]) -> None:
        """Build one combination and ask in every way; `tell` hears of each as soon as it is measured."""
        own = combination.settings(self.own)
        chunker, embedder = combination.cutter(self.own, *tokenizer_of(own)), identity(own, current=self.indexed_by)
        about = {
            "corpus_sha256": "", "embedder": embedder, "dimensions": dimensions(own), "vector_type": own.vector_type,
            "text_search": own.text_search,
        }  # fmt: skip
        with tuning.version_of(about) as version:
            cache = EmbeddingCache(own, embedder, scratch=True)
            chunks = self._load(version, chunker, cache)
            embedded = cache.embedded
            asked = cache.vectors((one.question for one in self.questions), kind="query").by_sha256
            for asking in self.askings:
                with connect() as connection:
                    found = measure(
                        connection,
                        version,
                        self.questions,
                        lambda q: asked[text_sha256(q.question)],
                        self.same_as,
                        asking,
                    )
                tell(Tried(combination, asking, chunks, embedded, found))

    def _load(self, version: Version, chunker: Chunker, cache: EmbeddingCache) -> int:
        """Fill and index the version; return how many chunks it has."""
        with connect(vectors=False) as connection:
            gone = erased(connection, self.corpus)  # again for each: trials go on for hours
        self.kept.seek(0)
        documents = (row for row in map(json.loads, self.kept) if row["uri"] not in gone)
        chunks = 0
        for batch in bounded(documents, lambda row: len(row["text"]), BATCH_DOCUMENTS, BATCH_CHARACTERS):
            rows = [row for document in batch for row in chunk_rows(chunker, document)]
            rows, _rejected = apply_rules(rows, cache.settings.chunk_tokens, self.own.near_duplicate_similarity)
            vectors = cache.vectors(row["embedded"] for row in rows).by_sha256
            with connect() as connection:
                index_tables.replace_documents(
                    connection, version, [document["uri"] for document in batch],
                    ({**row, "embedding": vectors[row["chunk_sha256"]]} for row in rows),
                )  # fmt: skip
            chunks += len(rows)
        with connect() as connection:
            index_tables.build_indexes(connection, version)
        return chunks


def bounded(items: Iterable[T], size_of: Callable[[T], int], most: int, limit: int) -> Iterator[list[T]]:
    """Yield items in batches that end with the `most`th one, or the one that reaches `limit`."""
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if len(batch) >= most or size >= limit:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def track(own: Settings, tuned: str, one: Tried) -> None:
    """Add a run of MLflow: the combination as parameters, what it found as metrics."""
    name = f"{tuned} {' '.join(map(str, vars(one.combination).values()))} {one.asking.mode} {one.asking.ef}"
    parameters = {**vars(one.combination), "mode": one.asking.mode, "ef": one.asking.ef}
    numbers = {**one.found.means, **one.found.latency, "chunks": one.chunks, "embedded": one.embedded}
    from mlflow.exceptions import MlflowException

    try:
        _log_run(own, name, parameters, numbers)
    except MlflowException as error:
        raise DataError(
            f"expected MLflow to take a run of {EXPERIMENT}, found: {str(error)[:300]}. "
            "Next: restore the experiment if it was deleted, or correct what MLflow names."
        ) from error


def _log_run(own: Settings, name: str, parameters: Mapping[str, object], numbers: Mapping[str, float]) -> None:
    with tracking.answering(own) as client:
        made = tracking.run_for(client, name, {"stage": "tune_index"}, EXPERIMENT)
        for key, value in parameters.items():
            client.log_param(made, key, value)
        stamp = int(time.time() * 1000)
        for key, number in numbers.items():
            client.log_metric(made, key, float(number), timestamp=stamp)
        client.set_terminated(made)
