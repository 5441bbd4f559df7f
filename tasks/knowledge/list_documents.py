"""Stage `list_documents`: compare what a corpus lists with what is known of its documents.

Reads the source's listing (no document's bytes), the tables `documents`, `erasures`, `index_versions`, and the golden
questions. Writes `plan`, one row a document with its change (`tasks.knowledge.reconciliation`), and `read-NNNN`, the
documents that part NNNN of `read_documents` reads. Tells of golden documents that are not listed, and of questions asked
twice (`golden_missing`, `golden_repeated`). Fails with `CorpusError` when the source cannot be read or lists
nothing, with `DataError` when a golden question can have no answer; is refused when more documents are gone than a
sync may remove, even if each new one, and each copy of one that is gone, were a moved one.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from tasks.contracts import Artifact
from tasks.database import Connection, connect
from tasks.errors import CorpusError
from tasks.knowledge import corpora, index_tables, reconciliation
from tasks.knowledge.embedders import dimensions
from tasks.knowledge.pipeline import pipeline
from tasks.knowledge.retrieval import GoldenQuestion, load_questions, repeated, require_known
from tasks.knowledge.sources import open_source
from tasks.stage import Stage, StageContext, StageOptions, StageResult, from_setting

log = logging.getLogger(__name__)


class Options(StageOptions):
    """What to compare."""

    corpus: str = from_setting("corpus", "A corpus of corpora.yaml; or another place to read `default` from")
    golden_questions: str = from_setting("golden_questions", "Golden questions (.jsonl)")
    max_removal_share: float = from_setting("max_removal_share", "Share of the documents one sync may remove")
    shard_documents: int = from_setting("shard_documents", "Documents in one part")
    max_shards: int = from_setting("max_shards", "Most parts of one sync")
    max_document_mb: float = from_setting("max_document_mb", "Larger documents are quarantined unread (MB)")
    confirm_removal: Literal["no", "yes"] = "no"


def run(context: StageContext, options: Options) -> StageResult:
    """Plan a sync: which documents are to be read, which are gone, and which stay as they are."""
    name, source = (
        corpora.name_of(context.settings, options.corpus),
        corpora.source_of(context.settings, options.corpus),
    )
    with connect() as connection:
        serving = index_tables.current(connection, name)
    made_with = pipeline(context.settings, serving.embedder if serving else None)
    questions = load_questions(options.golden_questions, context.storage)
    with connect() as connection:
        place = open_source(source, context.storage)
        listing = reconciliation.load_listing(connection, place.list())
        if not listing.documents:
            raise CorpusError(
                f"expected documents in {source}, found none. Next: correct MILLRACE_CORPUS, or add some."
            )
        others = _golden(connection, questions, options.golden_questions) | _ignored(place)
        base = index_tables.current(connection, name)
        fingerprint = made_with.fingerprint
        same_pipeline = base is not None and base.fingerprint == fingerprint
        counts = reconciliation.compare(
            connection, name, fingerprint if same_pipeline else None, int(options.max_document_mb * 1_000_000)
        )
        indexed = reconciliation.indexed_documents(connection, name)
        to_read = counts["new"] + counts["changed"]
        parts = min(options.max_shards, math.ceil(to_read / options.shard_documents))
        outputs = _write(context, connection, parts)
        kept = counts["new"] + reconciliation.copies_of_gone(connection)
        _warn_of_others(connection, name, context.run)
    lost = max(0, counts["gone"] - kept) / max(1, indexed)
    refused = lost > options.max_removal_share and options.confirm_removal == "no"
    return StageResult(
        outputs=outputs,
        counts={"documents": listing.documents, "indexed": indexed, "to_read": to_read, **counts, **others},
        metrics={"removal_share": lost},
        facts={
            "corpus": name,
            "source": source,
            "corpus_sha256": listing.sha256,
            "golden_questions": options.golden_questions,
            "fingerprint": fingerprint,
            "embedder": made_with.embedder,
            "dimensions": dimensions(context.settings),
            "vector_type": context.settings.vector_type,
            "text_search": context.settings.text_search,
            "same_pipeline": same_pipeline,
            "base_version": base.version if base else None,
            "parts": [f"{number:04d}" for number in range(parts)],
        },
        status="refused" if refused else "complete",
        reason=removal_reason(counts["gone"], indexed, options.max_removal_share, source) if refused else None,
    )


def removal_reason(removed: int, indexed: int, allowed: float, source: str) -> str:
    """Return the words of a refused removal."""
    return (
        f"expected at most {allowed:.0%} of {indexed} documents to be removed, found {removed} ({removed / max(1, indexed):.0%}) "
        f"gone from {source}. Next: check the corpus; to go on, start again with confirm_removal=yes."
    )


def _golden(connection: Connection, questions: Sequence[GoldenQuestion], place: str) -> dict[str, int]:
    """Tell what is wrong with the golden questions, and count it. Raises DataError where one has no document."""
    wanted = sorted({uri for question in questions for uri in question.documents})
    listed = {row["uri"] for row in connection.execute("SELECT uri FROM listing WHERE uri = ANY(%s)", (wanted,))}
    missing, twice = require_known(questions, listed, place), repeated(questions)
    for sentence in (*missing, *twice):
        log.warning("%s", sentence)
    return {"golden_missing": len(missing), "golden_repeated": len(twice)}


def _write(context: StageContext, connection: Connection, parts: int) -> dict[str, Artifact]:
    """Write the plan, and the documents that each part reads."""
    reconciliation.share_out(connection, max(1, parts))
    outputs = {
        "plan": context.storage.put_rows(
            f"{context.folder}/plan.jsonl",
            reconciliation.stream(
                connection, "SELECT uri, change, stamp, bytes, content_sha256 FROM plan ORDER BY uri"
            ),
        )
    }
    for number in range(parts):
        rows: Iterator[dict[str, Any]] = reconciliation.stream(
            connection,
            "SELECT uri, stamp, bytes, known_sha256, body_uri FROM plan WHERE part = %s ORDER BY uri",
            (number,),
        )
        outputs[f"read-{number:04d}"] = context.storage.put_rows(f"{context.folder}/read-{number:04d}.jsonl", rows)
    return outputs


def _warn_of_others(connection: Connection, corpus: str, run: str) -> None:
    """Tell of another run that builds a version of this corpus: whichever switches last is refused."""
    for row in connection.execute(
        "SELECT run, version FROM index_versions WHERE corpus = %s AND status IN ('building', 'checked') AND run <> %s "
        "AND created_at > now() - interval '8 hours' ORDER BY version",
        (corpus, run),
    ):
        log.warning(
            "%s builds index version=%d of this corpus too: the one that switches last is refused", *row.values()
        )


def _ignored(place: Any) -> dict[str, int]:
    """Return how many files of the source were passed over for their kind."""
    ignored = getattr(place, "ignored", None)
    return {"ignored": sum(ignored.values())} if ignored else {}


STAGE = Stage("list_documents", Options, run, settings=corpora.of_option)
