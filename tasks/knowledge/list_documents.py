"""Stage `list_documents`: compare what a corpus holds with what the current index version holds.

Reads the corpus's listing, the tables `documents`, `index_versions` and `quarantine`, and the golden
questions' documents. Writes `plan`: one row a document, with its change. Fails with `CorpusError` when
the corpus cannot be read or holds nothing, with `DataError` when a golden question can have no answer;
is refused when too large a share of the documents would vanish.
"""

import logging
from typing import Any, Literal

from tasks.contracts import digest
from tasks.database import Connection, connect
from tasks.errors import CorpusError
from tasks.knowledge import index_tables
from tasks.knowledge.embedder import embedder_dimensions
from tasks.knowledge.pipeline import pipeline
from tasks.knowledge.retrieval import load_questions, require_known
from tasks.knowledge.sources import Item, open_source
from tasks.stage import Stage, StageContext, StageOptions, StageResult, from_setting

log = logging.getLogger(__name__)


class Options(StageOptions):
    """What to compare."""

    corpus: str = from_setting("corpus", "Documents: pydoc:topics, a folder, or s3://bucket/prefix")
    golden_questions: str = from_setting("golden_questions", "Golden questions (.jsonl)")
    max_removal_share: float = from_setting("max_removal_share", "Share of the documents one sync may remove")
    confirm_removal: Literal["no", "yes"] = "no"


def run(context: StageContext, options: Options) -> StageResult:
    """Plan a sync: which documents were added, changed, deleted, and which stay as they are."""
    items = list(open_source(options.corpus, context.storage).list())
    if not items:
        raise CorpusError(
            f"expected documents in {options.corpus}, found none (.txt, .md and .rst files are documents). "
            "Next: correct MILLRACE_CORPUS, or add documents."
        )
    require_known(
        load_questions(options.golden_questions, context.storage), {i.uri for i in items}, options.golden_questions
    )
    made_with = pipeline(context.settings)
    corpus_sha256 = digest([[item.uri, item.sha256] for item in items])
    with connect() as connection:
        base = index_tables.current(connection)
        known = _known(connection) if base else {}
        rejected = _rejected(connection, base.run) if base else set()
    same_pipeline = base is not None and base.fingerprint == made_with.fingerprint
    noop = same_pipeline and base is not None and (base.corpus, base.corpus_sha256) == (options.corpus, corpus_sha256)
    rows = plan(items, known, rejected, same_pipeline=same_pipeline)
    counts = {
        kind: sum(row["change"] == kind for row in rows)
        for kind in ("added", "changed", "unchanged", "deleted", "rejected")
    }
    share = counts["deleted"] / max(1, len(known))
    refused = share > options.max_removal_share and options.confirm_removal == "no"
    return StageResult(
        outputs={"plan": context.storage.put_rows(f"{context.folder}/plan.jsonl", rows)},
        counts={"documents": len(items), **counts},
        metrics={"removal_share": share},
        facts={
            "corpus": options.corpus,
            "corpus_sha256": corpus_sha256,
            "golden_questions": options.golden_questions,
            "fingerprint": made_with.fingerprint,
            "embedder": made_with.embedder,
            "dimensions": embedder_dimensions(context.settings),
            "same_pipeline": same_pipeline,
            "base_version": base.version if base else None,
            "noop": noop,
        },
        status="refused" if refused else "complete",
        reason=(
            f"expected at most {options.max_removal_share:.0%} of {len(known)} documents to be removed, found "
            f"{counts['deleted']} ({share:.0%}) gone from {options.corpus}. "
            "Next: check the corpus; to go on, start again with confirm_removal=yes."
            if refused
            else None
        ),
    )


def plan(
    items: list[Item], known: dict[str, dict[str, Any]], rejected: set[str], *, same_pipeline: bool
) -> list[dict[str, Any]]:
    """Return one row a document: the listed ones in their order, then those that are gone.

    A document that the current version's run rejected is looked at again in every sync that is not a noop: what it
    was rejected for (another document with the same text, say) may have changed.
    """
    rows: list[dict[str, Any]] = []
    for item in items:
        before = known.get(item.uri)
        if before is None:
            change = "rejected" if item.uri in rejected else "added"
        else:
            change = "unchanged" if same_pipeline and before["source_sha256"] == item.sha256 else "changed"
        rows.append({"uri": item.uri, "change": change, "source_sha256": item.sha256, "bytes": item.bytes})
    listed = {item.uri for item in items}
    rows += [
        {"uri": uri, "change": "deleted", "source_sha256": row["source_sha256"], "bytes": row["bytes"]}
        for uri, row in sorted(known.items())
        if uri not in listed
    ]
    return rows


def _known(connection: Connection) -> dict[str, dict[str, Any]]:
    return {
        row["uri"]: row for row in connection.execute("SELECT uri, source_sha256, text_sha256, bytes FROM documents")
    }


def _rejected(connection: Connection, run: str) -> set[str]:
    query = "SELECT DISTINCT item FROM quarantine WHERE kind = 'document' AND run = %s"
    return {row["item"] for row in connection.execute(query, (run,))}


STAGE = Stage("list_documents", Options, run)
