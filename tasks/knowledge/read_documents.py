"""Stage `read_documents` (one a part): fetch, extract, screen and check the documents that a sync must look at.

Reads the documents of one part of `list_documents` from their source (a rejected one that did not change: from where
quarantine keeps its bytes), the suite of documents, the screening policy, and the table `acceptances`. Writes
`documents` (the good ones: text, sections, metadata, digests, MinHash signature), `same` (whose bytes are the
indexed ones after all), `rejected` (rule, reason, excerpt, and where the bytes are kept) and `redactions`. Batch by
batch: memory does not grow with the part. Fails with `CorpusError` when the source as a whole cannot be read,
`OptionError` without a part; what is wrong with one document puts that one into quarantine.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tasks.database import connect
from tasks.errors import OptionError
from tasks.knowledge import corpora, quarantine
from tasks.knowledge.examination import Body, examine
from tasks.knowledge.extraction import Extractor
from tasks.knowledge.near_duplicates import bands, signature
from tasks.knowledge.quarantine import Rejection
from tasks.knowledge.sources import DocumentRefused, Item, Source, open_source
from tasks.stage import Stage, StageContext, StageOptions, StageResult, from_setting

_BATCH_DOCUMENTS, _BATCH_BYTES = 100, 8_000_000


class Options(StageOptions):
    """The limits of one document."""

    max_document_mb: float = from_setting("max_document_mb", "Larger documents are quarantined unread (MB)")
    extraction_seconds: float = from_setting("extraction_seconds", "Longest a document may take to extract")
    extraction_memory_gb: float = from_setting("extraction_memory_gb", "Most memory extraction may take (GiB)")
    near_duplicate_similarity: float = from_setting("near_duplicate_similarity", "From where on documents are copies")


@dataclass
class Found:
    """What a part found besides good documents."""

    same: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    redactions: dict[str, Mapping[str, int]] = field(default_factory=dict)
    good: int = 0


def run(context: StageContext, options: Options) -> StageResult:
    """Read and check the documents of one part."""
    if context.part is None:
        raise OptionError("expected --part, found none. Next: take one of facts.parts of list_documents.")
    listed, planned = context.inputs["list_documents"].facts, context.input("list_documents", f"read-{context.part}")
    with connect(vectors=False) as connection:
        accepted = quarantine.accepted(connection, listed["corpus"])
    found = Found()
    reader = _Reader(context, options, listed["corpus"], open_source(listed["source"], context.storage), found)
    with Extractor(options.extraction_seconds, options.extraction_memory_gb) as extractor:
        documents = context.storage.put_rows(
            f"{context.folder}/documents.jsonl",
            (
                row
                for batch in reader.batches(context.storage.get_rows(planned), planned.rows or 0)
                for row in reader.good(batch, extractor, accepted)
            ),
        )
    redacted: Counter[str] = Counter()
    for hits in found.redactions.values():
        redacted.update(hits)
    rejected = [vars(rejection) for rejection in found.rejected]
    return StageResult(
        outputs={
            "documents": documents,
            "same": context.storage.put_rows(f"{context.folder}/same.jsonl", found.same),
            "rejected": context.storage.put_rows(f"{context.folder}/rejected.jsonl", rejected),
            "redactions": context.storage.put_rows(
                f"{context.folder}/redactions.jsonl",
                ({"uri": uri, "redacted": dict(hits)} for uri, hits in sorted(found.redactions.items())),
            ),
        },
        counts={
            "read": planned.rows or 0,
            "good": found.good,
            "same": len(found.same),
            "rejected": len({rejection.item for rejection in found.rejected}),
            "redacted": sum(redacted.values()),
        },
        facts={"redacted_by_rule": dict(sorted(redacted.items()))},
    )


@dataclass
class _Reader:
    """Fetches planned documents and turns them into rows, batch by batch."""

    context: StageContext
    options: Options
    corpus: str
    source: Source
    found: Found

    def batches(self, planned: Iterator[dict[str, Any]], total: int) -> Iterator[list[Body]]:
        """Yield fetched documents, as many as fit a batch; those that cannot be read, or are the same, are put aside."""
        batch: list[Body] = []
        for done, row in enumerate(planned, start=1):
            body = self._fetch(row)
            if body is not None:
                batch.append(body)
            if len(batch) >= _BATCH_DOCUMENTS or sum(len(body.body) for body in batch) >= _BATCH_BYTES:
                yield batch
                batch = []
            self.context.progress(done, total, "documents")
        if batch:
            yield batch

    def _fetch(self, row: dict[str, Any]) -> Body | None:
        item = Item(row["uri"], row["stamp"], row["bytes"])
        try:
            if row["body_uri"] is not None:
                body = self.context.storage.get_bytes(row["body_uri"])
            else:
                body = self.source.read(item, int(self.options.max_document_mb * 1_000_000))
        except DocumentRefused as refused:
            self.found.rejected.append(Rejection(item.uri, refused.rule, refused.reason, ""))
            return None
        content_sha256 = hashlib.sha256(body).hexdigest()
        if content_sha256 == row["known_sha256"]:
            self.found.same.append({"uri": item.uri, "stamp": item.stamp})
            return None
        return Body(item.uri, item.stamp, content_sha256, body)

    def good(
        self, batch: list[Body], extractor: Extractor, accepted: Mapping[str, frozenset[str]]
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of the documents of a batch that keep every rule; put the others aside."""
        examined = examine(batch, extractor, accepted, self.context.settings)
        kept: dict[str, tuple[str, str]] = {}
        for body in batch:
            if any(rejection.item == body.uri for rejection in examined.rejected):
                place = quarantine.keep(
                    self.context.storage, self.context.bucket, self.corpus, body.content_sha256, body.body
                )
                kept[body.uri] = (body.content_sha256, place)
        for rejection in examined.rejected:
            sha256, place = kept[rejection.item]
            self.found.rejected.append(replace(rejection, content_sha256=sha256, body_uri=place))
        self.found.redactions.update(examined.redactions)
        for row in examined.rows:
            self.found.good += 1
            signed = signature(row["text"])
            found = bands(signed, self.options.near_duplicate_similarity)
            yield row | {"signature": signed.hex(), "bands": list(found)}


STAGE = Stage("read_documents", Options, run, needs=("list_documents",), settings=corpora.of_listing)
