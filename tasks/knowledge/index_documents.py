"""Stage `index_documents` (one a part): chunk, embed and load documents into the version this run builds.

Reads one part of `validate_documents` and the table `embedding_cache`. Writes the chunks into the table of
the run's index version, new vectors into the cache, chunks that break a rule into `quarantine`, and
`chunks` (rows without vectors). Run twice, or by two at once, it ends with the same rows. Fails with
`DataError` when the run's version already serves, and `OptionError` without a part.
"""

import hashlib
import os
from typing import Any

from tasks.database import connect
from tasks.errors import OptionError
from tasks.knowledge import index_tables, quarantine
from tasks.knowledge.cache import text_sha256, vectors
from tasks.knowledge.chunking import Chunker
from tasks.knowledge.embedder import tokenizer_of
from tasks.knowledge.quarantine import Rejection
from tasks.stage import Stage, StageContext, StageOptions, StageResult, from_setting
from tasks.validation import validate


class Options(StageOptions):
    """How documents are cut."""

    chunk_tokens: int = from_setting("chunk_tokens", "Largest chunk, in tokens of the embedder")


def run(context: StageContext, options: Options) -> StageResult:
    """Chunk, embed and load the documents of one part."""
    if context.part is None:
        raise OptionError("expected --part, found none. Next: take one of facts.parts of validate_documents.")
    listed = context.inputs["list_documents"].facts
    documents = list(context.storage.get_rows(context.input("validate_documents", f"documents-{context.part}")))
    tokenizer, max_tokens = tokenizer_of(context.settings)
    chunker = Chunker(tokenizer, options.chunk_tokens, max_tokens)
    rows, rejected = apply_rules(
        [row for document in documents for row in chunk_rows(chunker, document)], options.chunk_tokens
    )
    found = vectors(
        context.settings,
        listed["embedder"],
        [row["text"] for row in rows],
        lambda done, total: context.progress(done, total, "chunks"),
        threads=_threads(context),
    )
    with connect() as connection:
        version = index_tables.begin(connection, context.run, listed)
    with connect() as connection:
        quarantine.record(connection, "chunk", context.run, rejected)
        index_tables.replace_documents(
            connection,
            version,
            [document["uri"] for document in documents],
            [{**row, "embedding": found.by_sha256[row["chunk_sha256"]]} for row in rows],
        )
    return StageResult(
        outputs={"chunks": context.storage.put_rows(f"{context.folder}/chunks.jsonl", rows)},
        counts={
            "documents": len(documents),
            "chunks": len(rows),
            "embedded": found.embedded,
            "from_cache": found.from_cache,
            "truncated": found.truncated,
            "quarantined": len({rejection.item for rejection in rejected}),
        },
        facts={"version": version.version},
    )


def _threads(context: StageContext) -> int | None:
    """Return this part's share of the cores where parts run beside each other on one machine; a pod has its own."""
    if context.settings.launcher != "process":
        return None
    parts = len(context.inputs["validate_documents"].facts["parts"])
    return max(1, (os.cpu_count() or 1) // parts)


def chunk_rows(chunker: Chunker, document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the chunks of a document as rows, without vectors."""
    uri = document["uri"]
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
            "chunk_sha256": text_sha256(chunk.text),
        }
        for chunk in chunker.chunks(document["text"])
    ]


def apply_rules(rows: list[dict[str, Any]], token_limit: int) -> tuple[list[dict[str, Any]], list[Rejection]]:
    """Return the chunks that keep every rule of expectations/chunks.json, and why the others do not."""
    report = validate("chunks", [{**row, "token_limit": token_limit} for row in rows])
    rejected = [
        rejection
        for position in report.bad
        for rejection in quarantine.rejections(
            f"{rows[position]['document_uri']}#{rows[position]['ordinal']}",
            rows[position]["text"],
            report.rows[position],
        )
    ]
    return [rows[position] for position in report.good], rejected


STAGE = Stage("index_documents", Options, run, needs=("list_documents", "validate_documents"))
