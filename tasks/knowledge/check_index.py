"""Stage `check_index`: finish the version that this run builds, and measure it before anything uses it.

Reads the parts of `read_documents` and `index_documents`, the current version of the corpus, and the golden questions.
Takes the chunks of unchanged documents from the current version (shown from its table where little changed, else copied:
`tasks.knowledge.index_tables.overlays`), builds the indexes, and asks every golden question of
the new and of the current version, now. Writes `report`. Fails with `ManifestError` when a part is missing or the table
holds other chunks than the parts say; is refused when retrieval is below its bounds, or worse than the current version's
(`tasks.knowledge.retrieval_gate`), or when the current version cannot be measured too and nobody confirmed that. The
current version is not touched. A noop builds nothing and measures what serves.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Literal

from psycopg import sql
from psycopg.types.json import Jsonb

from tasks.database import Connection, connect
from tasks.errors import BadInput, DataError, ManifestError, ServiceUnavailable
from tasks.knowledge import corpora, documents, index_tables
from tasks.knowledge.cache import EmbeddingCache, text_sha256
from tasks.knowledge.index_tables import Version
from tasks.knowledge.measure import Measurement, asking, measure
from tasks.knowledge.retrieval import GoldenQuestion, load_questions
from tasks.knowledge.retrieval_gate import compared, verdict
from tasks.stage import Stage, StageContext, StageOptions, StageResult, from_setting

log = logging.getLogger(__name__)


class Options(StageOptions):
    """The bounds of the gate, and how is searched."""

    min_recall_at_5: float = from_setting("min_recall_at_5", "Least recall@5")
    min_ann_recall: float = from_setting("min_ann_recall", "Least recall of HNSW against an exact scan")
    retrieval_margin: float = from_setting("retrieval_margin", "Allowed loss against the current version")
    search_mode: str = from_setting("search_mode", "vector, text or hybrid")
    reranker: str | None = from_setting("reranker", "Cross-encoder that orders the hits")
    index_overlay_share: float = from_setting(
        "index_overlay_share", "Share of changed chunks laid over an earlier table"
    )
    confirm_unmeasured: Literal["no", "yes"] = "no"


def run(context: StageContext, options: Options) -> StageResult:
    """Finish and measure the index version of this run."""
    listed, noop = context.inputs["list_documents"].facts, context.inputs["validate_documents"].facts["noop"]
    questions = load_questions(listed["golden_questions"], context.storage)
    base = _version(listed["base_version"]) if listed["base_version"] is not None else None
    version, base = (base, None) if noop and base else (finish(context, base, options.index_overlay_share), base)
    same_now, same_before = _copies(context, listed["corpus"], questions)
    absent = _absent(version, questions, same_now)
    now = _measured(context, version, questions, same_now)
    alone = options.confirm_unmeasured == "yes"
    before, unmeasured = _measured_before(context, base, questions, same_before, alone) if base else (None, None)
    reasons: list[str] = []
    if not noop:
        reasons = verdict(now, before, options) + ([unmeasured] if unmeasured and not alone else [])
        version = _record(version, now, reasons)
    report = {
        "version": version.version,
        "previous": base.version if base else None,
        "search_mode": options.search_mode,
        "metrics": now.means,
        "intervals": {name: asdict(interval) for name, interval in now.intervals.items()},
        "differences": {name: asdict(one) for name, one in compared(now, before).items()} if before else None,
        "latency": now.latency,
        "previous_metrics": before.means if before else None,
        "previous_unmeasured": unmeasured,
        "reasons": reasons,
        "golden_absent": absent,
        "questions": now.questions,
        "previous_questions": before.questions if before else [],
    }
    return StageResult(
        outputs={"report": context.storage.put_json(f"{context.folder}/report.json", report)},
        counts={
            "questions": len(questions),
            "golden_absent": len(absent),
            "documents": version.documents or 0,
            "chunks": version.chunks or 0,
        },  # fmt: skip
        metrics=now.means | ({f"previous_{name}": value for name, value in before.means.items()} if before else {}),
        facts={"version": version.version, "noop": noop, "documents": version.documents, "chunks": version.chunks},
        status="refused" if reasons else "complete",
        reason=_refusal(reasons, unmeasured) if reasons else None,
    )


def _refusal(reasons: Sequence[str], unmeasured: str | None) -> str:
    go_on = " To go on without a comparison, start again with confirm_unmeasured=yes." if unmeasured in reasons else ""
    return f"{'; '.join(reasons)}. Next: see report.json of this stage; the current version stays.{go_on}"


def finish(context: StageContext, base: Version | None, overlay_share: float) -> Version:
    """Return the finished version of this run.

    Raises ManifestError when the table does not hold exactly what the parts and the current version say.
    """
    listed, judged = context.inputs["list_documents"].facts, context.inputs["validate_documents"].facts
    indexed = context.parts("index_documents", judged["parts"])
    expected = sum(part.counts["chunks"] for part in indexed)
    parts = documents.manifests(context)
    with connect() as connection:
        version = index_tables.begin(connection, context.run, listed)
    with connect() as connection:
        index_tables.lock_building(connection, version)
        documents.load_judged(context, connection, parts)
        connection.execute(
            "CREATE TEMP TABLE wanted ON COMMIT DROP AS SELECT uri FROM staying UNION SELECT uri FROM fresh WHERE kept"
        )
        connection.execute("CREATE TEMP TABLE unchanged ON COMMIT DROP AS SELECT uri, uri AS old_uri FROM staying")
        _require_none_erased(connection, listed["corpus"])
        # Of an earlier try may be rows of documents that are now unchanged: what is unchanged comes from the base alone.
        connection.execute("CREATE TEMP TABLE loaded ON COMMIT DROP AS SELECT uri FROM fresh WHERE kept")
        index_tables.keep_only(connection, version, "loaded")
        loaded = index_tables.count_chunks_of(connection, version, "loaded")
        if loaded != expected:
            raise ManifestError(
                f"expected {expected} chunks of the documents read in index version {version.version}, found {loaded}. "
                "Next: clear index_documents; its parts will be loaded again."
            )
        version, taken = _take_over(connection, base, version, overlay_share) if base else (version, 0)
        connection.execute(
            "UPDATE index_versions SET documents = (SELECT count(*) FROM wanted), chunks = %s WHERE version = %s",
            (taken + loaded, version.version),
        )
    with connect() as connection:
        index_tables.build_indexes(connection, version)
        version = index_tables.get(connection, version.version)
    log.info(
        "index version=%d chunks=%d %s=%d loaded=%d",
        version.version, taken + loaded, "shown" if version.base_table else "copied", taken, loaded,
    )  # fmt: skip
    return version


def _take_over(connection: Connection, base: Version, version: Version, overlay_share: float) -> tuple[Version, int]:
    """Give `version` the chunks of the documents of the temporary table `unchanged`; return it, and how many those are."""
    laid = index_tables.lay_over(connection, base, version, "unchanged", overlay_share)
    if laid is None:
        return version, index_tables.copy_documents(connection, base, version, "unchanged")
    return laid, index_tables.count_chunks_of(connection, laid, "unchanged")


def _require_none_erased(connection: Connection, corpus: str) -> None:
    """Refuse to finish a version with a document that was erased while it was built. Raises DataError."""
    row = connection.execute(
        "SELECT e.uri FROM erasures e JOIN wanted w ON w.uri = e.uri WHERE e.corpus = %s LIMIT 1", (corpus,)
    ).fetchone()
    if row:
        raise DataError(
            f"expected no document of this sync to be erased, found {row['uri']} erased since it began. "
            "Next: start a new run of sync_knowledge."
        )


def _version(version: int) -> Version:
    with connect() as connection:
        return index_tables.get(connection, version)


def _copies(
    context: StageContext, corpus: str, questions: Sequence[GoldenQuestion]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return, for documents of the questions that were left out as copies, the ones that stand for them: now, and before."""
    wanted = {uri for question in questions for uri in question.documents}
    with connect(vectors=False) as connection:
        rows = connection.execute(
            "SELECT uri, same_as FROM documents WHERE corpus = %s AND same_as IS NOT NULL AND uri = ANY(%s)",
            (corpus, sorted(wanted)),
        )
        before = {row["uri"]: row["same_as"] for row in rows}
    plan = context.storage.get_rows(context.input("list_documents", "plan")) if before else iter(())
    left = {row["uri"] for row in plan if row["change"] == "rejected" and row["uri"] in before}
    found = context.storage.get_rows(context.input("validate_documents", "copies"))
    now = {uri: same_as for uri, same_as in before.items() if uri in left}
    return now | {row["uri"]: row["same_as"] for row in found if row["uri"] in wanted}, before


def _absent(version: Version, questions: Sequence[GoldenQuestion], same_as: Mapping[str, str]) -> list[str]:
    """Return, and tell of, the golden documents that cannot be found: neither they nor what stands for them is in the index."""
    golden = {uri: same_as.get(uri, uri) for question in questions for uri in question.documents}
    query = sql.SQL("SELECT DISTINCT document_uri FROM {} WHERE document_uri = ANY(%s)").format(version.table)
    with connect() as connection:
        held = {row["document_uri"] for row in connection.execute(query, (sorted(set(golden.values())),))}
    absent = sorted(uri for uri, stands in golden.items() if stands not in held)
    for uri in absent:
        log.warning("index version=%d has no chunk of %s, which a golden question names", version.version, uri)
    return absent


def _measured(
    context: StageContext,
    version: Version,
    questions: Sequence[GoldenQuestion],
    same_as: Mapping[str, str],
) -> Measurement:
    cache = EmbeddingCache(context.settings, version.embedder)
    found = cache.vectors((question.question for question in questions), kind="query").by_sha256
    with connect() as connection:
        return measure(
            connection, version, questions, lambda q: found[text_sha256(q.question)], same_as, asking(context.settings)
        )


def _measured_before(
    context: StageContext,
    base: Version,
    questions: Sequence[GoldenQuestion],
    same_as: Mapping[str, str],
    alone: bool,
) -> tuple[Measurement | None, str | None]:
    """Measure the current version now; None, and why, when it cannot be (its embedder is gone, say).

    `alone`: a person lets the new one pass by itself, so that no answer of an old endpoint is waited for either.
    """
    try:
        return _measured(context, base, questions, same_as), None
    except (BadInput, ServiceUnavailable) as error:
        if isinstance(error, ServiceUnavailable) and not alone:
            raise  # it may answer again: the stage is tried once more
        log.warning("index version=%d is not measured again: %s", base.version, error)
        return None, f"expected version {base.version} to be measured too, found: {str(error).rstrip('.')}"


def _record(version: Version, now: Measurement, reasons: Sequence[str]) -> Version:
    with connect() as connection:
        # A late try of a part may have written since it was finished: what was measured must be what is there.
        index_tables.lock_building(connection, version)
        index_tables.require_whole(connection, version)
        _update(connection, version.version, "refused" if reasons else "checked", now.means)
        return index_tables.get(connection, version.version)


def _update(connection: Connection, version: int, status: str, metrics: Mapping[str, float]) -> None:
    connection.execute(
        "UPDATE index_versions SET status = %s, metrics = %s WHERE version = %s AND status IN ('building', 'checked', 'refused')",
        (status, Jsonb(dict(metrics)), version),
    )


STAGE = Stage("check_index", Options, run, needs=("list_documents", "validate_documents"), settings=corpora.of_listing)
