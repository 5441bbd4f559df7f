"""Stage `index_documents` (one a part): chunk, embed and load documents into the version this run builds.

Reads the documents of one part of `read_documents`, but for the copies that `validate_documents` found, and the table
`embedding_cache`. Writes the chunks into the table of the run's index version (new rows, each document whole, in one
transaction), new vectors into the cache, chunks that break a rule into `quarantine`. Batch by batch: memory does not grow
with the part, only with the number of copies. Run twice, or by two at once, it ends with the same rows; a version that was
checked before is building again, and has to be checked again. Fails with `DataError` when the run's version already
serves, `TryAgain` when another try has finished it meanwhile, and `OptionError` without a part.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tasks.contracts import Manifest, manifest_uri
from tasks.database import connect
from tasks.errors import OptionError
from tasks.knowledge import corpora, index_tables, quarantine
from tasks.knowledge.cache import EmbeddingCache, text_sha256
from tasks.knowledge.chunking import Chunker, Place, make_chunker
from tasks.knowledge.embedders import tokenizer_of
from tasks.knowledge.near_duplicates import repeated_chunks
from tasks.knowledge.quarantine import Rejection
from tasks.stage import Stage, StageContext, StageOptions, StageResult, from_setting
from tasks.validation import validate

SUITE, REPEATED = "chunks", "chunk_is_new"
BATCH_DOCUMENTS, BATCH_CHARACTERS = 50, 1_000_000


class Options(StageOptions):
    """How documents are cut."""

    chunker: str = from_setting("chunker", "How documents are cut")
    chunk_tokens: int = from_setting("chunk_tokens", "Largest chunk, in tokens of the embedder")
    chunk_overlap: int = from_setting("chunk_overlap", "Tokens a chunk repeats of the one before it")
    near_duplicate_similarity: float = from_setting("near_duplicate_similarity", "From where on chunks are copies")
    parts_at_once: int = 1  # the launcher's bound, which the DAG tells; by hand one part runs after another


def run(context: StageContext, options: Options) -> StageResult:
    """Chunk, embed and load the documents of one part."""
    if context.part is None:
        raise OptionError("expected --part, found none. Next: take one of facts.parts of validate_documents.")
    listed = context.inputs["list_documents"].facts
    tokenizer, max_tokens = tokenizer_of(context.settings)
    chunker = make_chunker(options.chunker, tokenizer, options.chunk_tokens, max_tokens, options.chunk_overlap)
    with connect() as connection:
        version = index_tables.begin(connection, context.run, listed)
    # What an earlier try measured is not true of the rows that are written now: it is measured again.
    context.storage.delete_prefix(manifest_uri(context.run, "check_index"))
    counts: Counter[str] = Counter(documents=0, chunks=0, quarantined=0)
    cache = EmbeddingCache(context.settings, listed["embedder"], _threads(context, options.parts_at_once))
    part = context.storage.require_manifest(context.run, "read_documents", context.part)
    for batch, seen in _batches(context, part):
        rows = [row for document in batch for row in chunk_rows(chunker, document)]
        rows, rejected = apply_rules(rows, options.chunk_tokens, options.near_duplicate_similarity)
        vectors = cache.vectors(row["embedded"] for row in rows).by_sha256
        with connect() as connection:
            index_tables.replace_documents(
                connection,
                version,
                [document["uri"] for document in batch],
                ({**row, "embedding": vectors[row["chunk_sha256"]]} for row in rows),
            )
            quarantine.record(connection, "chunk", context.run, rejected, listed["corpus"])
        counts.update(documents=len(batch), chunks=len(rows), quarantined=len({one.item for one in rejected}))
        context.progress(seen, part.counts["good"], "documents")
    counts.update(embedded=cache.embedded, from_cache=cache.from_cache, truncated=cache.truncated)
    return StageResult(counts=dict(counts), facts={"version": version.version})


def _batches(context: StageContext, part: Manifest) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Yield the documents of the part, copies left out, as many as fit a batch; and how many were seen, copies too."""
    copies = {row["uri"] for row in context.storage.get_rows(context.input("validate_documents", "copies"))}
    batch: list[dict[str, Any]] = []
    size = seen = 0
    for seen, document in enumerate(context.storage.get_rows(part.outputs["documents"]), start=1):
        if document["uri"] in copies:
            continue
        batch.append(document)
        size += len(document["text"])
        if len(batch) >= BATCH_DOCUMENTS or size >= BATCH_CHARACTERS:
            yield batch, seen
            batch, size = [], 0
    if batch:
        yield batch, seen


def _threads(context: StageContext, at_once: int) -> int | None:
    """Return this part's share of the cores where parts run beside each other on one machine; a pod has its own."""
    if context.settings.launcher != "process":
        return None
    parts = len(context.inputs["validate_documents"].facts["parts"])
    return max(1, (os.cpu_count() or 1) // min(parts, at_once))


def chunk_rows(chunker: Chunker, document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the chunks of a document as rows, without vectors; `embedded` is what the vector is made of."""
    uri = document["uri"]
    sections = tuple(
        Place(row["start"], tuple(row["headings"]), row["page"], row["kind"]) for row in document["sections"]
    )
    return [
        {
            "chunk_id": hashlib.sha256(f"{uri}\n{chunk.ordinal}\n{chunk.text}".encode()).hexdigest()[:32],
            "document_uri": uri,
            "ordinal": chunk.ordinal,
            "title": document["title"],
            "text": chunk.text,
            "tokens": chunk.tokens,
            "start": chunk.start,
            "end": chunk.end,
            "headings": list(chunk.headings),
            "page": chunk.page,
            "last_page": chunk.last_page,
            "covered": list(chunk.covered),
            "metadata": {"format": document["format"], **document["metadata"]},
            "chunk_sha256": text_sha256(chunk.embedded),
            "embedded": chunk.embedded,
        }
        for chunk in chunker.chunks(document["text"], sections, document["format"])
    ]


def apply_rules(
    rows: list[dict[str, Any]], token_limit: int, similarity: float
) -> tuple[list[dict[str, Any]], list[Rejection]]:
    """Return the chunks that keep every rule of expectations/chunks.json and repeat none of their document; why the others do not."""
    report = validate(SUITE, [{**row, "token_limit": token_limit} for row in rows])
    broken = [dict(found) for found in report.rows]
    for position, earlier in _repeated(rows, similarity).items():
        broken[position][REPEATED] = (
            f"expected a chunk that its document says once, found that of {rows[earlier]['document_uri']}#{rows[earlier]['ordinal']}"
        )
    rejected = [
        rejection
        for row, found in zip(rows, broken, strict=True)
        for rejection in quarantine.rejections(f"{row['document_uri']}#{row['ordinal']}", row["text"], found)
    ]
    return [row for row, found in zip(rows, broken, strict=True) if not found], rejected


def _repeated(rows: list[dict[str, Any]], similarity: float) -> dict[int, int]:
    """Return the position of each chunk that repeats an earlier one of its document, and that one's position."""
    found: dict[int, int] = {}
    by_document: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        by_document.setdefault(row["document_uri"], []).append(position)
    for positions in by_document.values():
        if len(positions) > 1:
            repeats = repeated_chunks([rows[position]["embedded"] for position in positions], similarity)
            found |= {positions[one]: positions[earlier] for one, earlier in repeats.items()}
    return found


STAGE = Stage(
    "index_documents", Options, run, needs=("list_documents", "validate_documents"), settings=corpora.of_listing
)
