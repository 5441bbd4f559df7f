"""Stage `read_documents` (one a part): fetch, extract, screen and check the documents that a sync must look at.

Reads the documents of one part of `list_documents` from their source (a rejected one that did not change: from where
quarantine keeps its bytes), the suite of documents, the screening policy, and the table `acceptances`. Writes
`documents` (the good ones: text, sections, metadata, digests, MinHash signature), `same` (whose bytes are the
indexed ones after all, and indexed ones that did not hold still: they stay as they are until the next sync, which reads
them, for their stamp is empty), `rejected` (rule, reason, excerpt, and where the bytes are kept) and `redactions`.
Batch by batch: memory does not grow with the part. Fails with `CorpusError` when the source as a whole cannot be read,
`OptionError` without a part; what is wrong with one document puts that one into quarantine.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from tasks.database import connect
from tasks.errors import ManifestError, OptionError
from tasks.knowledge import corpora, quarantine
from tasks.knowledge.examination import Body, examine
from tasks.knowledge.extraction import Extractor
from tasks.knowledge.near_duplicates import bands, signature
from tasks.knowledge.quarantine import Rejection
from tasks.knowledge.sources import DocumentRefused, Item, Source, open_source
from tasks.stage import Stage, StageContext, StageOptions, StageResult, from_setting

log = logging.getLogger(__name__)

BATCH_DOCUMENTS, BATCH_BYTES = 100, 8_000_000
_IN_MEMORY = 1_000_000  # bytes of rows put aside before they go to a file


class Options(StageOptions):
    """The limits of one document."""

    max_document_mb: float = from_setting("max_document_mb", "Larger documents are quarantined unread (MB)")
    extraction_seconds: float = from_setting("extraction_seconds", "Longest a document may take to extract")
    extraction_memory_gb: float = from_setting("extraction_memory_gb", "Most memory extraction may take (GiB)")
    near_duplicate_similarity: float = from_setting("near_duplicate_similarity", "From where on documents are copies")


class Aside:
    """Rows put aside in a scratch file, in their order, until the stage writes them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def add(self, row: Mapping[str, Any]) -> None:
        """Put a row aside."""
        self._file.write(json.dumps(row).encode() + b"\n")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield all rows."""
        self._file.seek(0)
        yield from map(json.loads, self._file)


@dataclass
class Found:
    """What a part found besides good documents."""

    same: Aside
    rejected: Aside
    redactions: Aside
    counts: Counter[str] = field(default_factory=Counter)  # documents by what became of them
    redacted: Counter[str] = field(default_factory=Counter)  # finds by rule


def run(context: StageContext, options: Options) -> StageResult:
    """Read and check the documents of one part."""
    if context.part is None:
        raise OptionError("expected --part, found none. Next: take one of facts.parts of list_documents.")
    listed, planned = context.inputs["list_documents"].facts, context.input("list_documents", f"read-{context.part}")
    with connect(vectors=False) as connection:
        accepted = quarantine.accepted(connection, listed["corpus"])
    with ExitStack() as stack:
        same, rejected, redactions = (stack.enter_context(SpooledTemporaryFile(max_size=_IN_MEMORY)) for _ in range(3))
        found = Found(Aside(same), Aside(rejected), Aside(redactions))
        reader = _Reader(context, options, listed["corpus"], open_source(listed["source"], context.storage), found)
        extractor = stack.enter_context(Extractor(options.extraction_seconds, options.extraction_memory_gb))
        good = (
            row
            for batch in reader.batches(context.storage.get_rows(planned), planned.rows or 0)
            for row in reader.good(batch, extractor, accepted)
        )
        outputs = {"documents": context.storage.put_rows(f"{context.folder}/documents.jsonl", good)}
        for name in ("same", "rejected", "redactions"):
            aside: Aside = getattr(found, name)
            outputs[name] = context.storage.put_rows(f"{context.folder}/{name}.jsonl", aside.rows())
    counts = {name: found.counts[name] for name in ("good", "same", "moving", "rejected")}
    return StageResult(
        outputs=outputs,
        counts={"read": planned.rows or 0, **counts, "redacted": found.redacted.total()},
        facts={"redacted_by_rule": dict(sorted(found.redacted.items()))},
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
            if len(batch) >= BATCH_DOCUMENTS or sum(len(body.body) for body in batch) >= BATCH_BYTES:
                yield batch
                batch = []
            self.context.progress(done, total, "documents")
        if batch:
            yield batch

    def _fetch(self, row: dict[str, Any]) -> Body | None:
        item = Item(row["uri"], row["stamp"], row["bytes"])
        try:
            body = self._kept(row["body_uri"])
            if body is None:
                body = self.source.read(item, int(self.options.max_document_mb * 1_000_000))
        except DocumentRefused as refused:
            if refused.rule == "document_holds_still" and row["known_sha256"] is not None:
                # It is about to be another; what is indexed of it stays, and the empty stamp has it read next time.
                log.warning("%s stays as it is indexed: %s", item.uri, refused.reason)
                self._stays("moving", {"uri": item.uri, "stamp": ""})
            else:
                self._reject([Rejection(item.uri, refused.rule, refused.reason, "")])
            return None
        content_sha256 = hashlib.sha256(body).hexdigest()
        if content_sha256 == row["known_sha256"]:
            self._stays("same", {"uri": item.uri, "stamp": item.stamp})
            return None
        return Body(item.uri, item.stamp, content_sha256, body)

    def _kept(self, place: str | None) -> bytes | None:
        """Return the bytes that quarantine keeps of a document; None when it keeps none, and its source is asked."""
        if place is None:
            return None
        try:
            return self.context.storage.get_bytes(place)
        except ManifestError as error:
            log.warning("the source is read again: %s", error)
            return None

    def _stays(self, count: str, row: Mapping[str, Any]) -> None:
        self.found.same.add(row)
        self.found.counts[count] += 1

    def _reject(self, rejections: Sequence[Rejection]) -> None:
        for rejection in rejections:
            self.found.rejected.add(vars(rejection))
        self.found.counts["rejected"] += len({rejection.item for rejection in rejections})

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
        self._reject(
            [replace(one, content_sha256=kept[one.item][0], body_uri=kept[one.item][1]) for one in examined.rejected]
        )
        for uri, hits in examined.redactions.items():
            self.found.redactions.add({"uri": uri, "redacted": dict(hits)})
            self.found.redacted.update(hits)
        for row in examined.rows:
            self.found.counts["good"] += 1
            signed = signature(row["text"])
            found = bands(signed, self.options.near_duplicate_similarity)
            yield row | {"signature": signed.hex(), "bands": list(found)}


STAGE = Stage("read_documents", Options, run, needs=("list_documents",), settings=corpora.of_listing)
