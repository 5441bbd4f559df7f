"""Stage `check_index`: finish the version that this run builds, and measure it before anything uses it.

Reads the parts of `index_documents`, the current version, and the golden questions. Copies the chunks of
unchanged documents from the current version, builds the vector index, and asks every golden question of
the new and of the current version, now. Writes `report`. Fails with `ManifestError` when a part is
missing; is refused when retrieval is below its bounds, or worse than the current version's by more than
the margin. The current version is not touched. A sync without changes builds nothing and measures what serves.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg.types.json import Jsonb

from tasks.database import Connection, connect
from tasks.errors import ManifestError, ModelError
from tasks.knowledge import index_tables
from tasks.knowledge.cache import text_sha256, vectors
from tasks.knowledge.index_tables import Version
from tasks.knowledge.measure import Measurement, measure
from tasks.knowledge.retrieval import GoldenQuestion, load_questions, require_known
from tasks.stage import Stage, StageContext, StageOptions, StageResult, from_setting

log = logging.getLogger(__name__)


class Options(StageOptions):
    """The bounds of the gate."""

    min_recall_at_5: float = from_setting("min_recall_at_5", "Least recall@5")
    min_ann_recall: float = from_setting("min_ann_recall", "Least recall of HNSW against an exact scan")
    retrieval_margin: float = from_setting("retrieval_margin", "Allowed loss against the current version")


def run(context: StageContext, options: Options) -> StageResult:
    """Finish and measure the index version of this run."""
    listed = context.inputs["list_documents"].facts
    plan = list(context.storage.get_rows(context.input("list_documents", "plan")))
    questions = load_questions(listed["golden_questions"], context.storage)
    require_known(questions, {row["uri"] for row in plan if row["change"] != "deleted"}, listed["golden_questions"])
    version, base = (_current(listed["base_version"]), None) if listed["noop"] else finish(context, plan)
    same_as = {
        row["uri"]: row["same_as"]
        for row in context.storage.get_rows(context.input("validate_documents", "duplicates"))
    }
    now = _measured(context, version, questions, same_as)
    before = _measured_before(context, base, questions, same_as) if base else None
    reasons = [] if listed["noop"] else verdict(now.means, before.means if before else None, options)
    if not listed["noop"]:
        version = _record(version, now, reasons)
    report = {
        "version": version.version,
        "previous": base.version if base else None,
        "metrics": now.means,
        "previous_metrics": before.means if before else None,
        "reasons": reasons,
        "questions": now.questions,
        "previous_questions": before.questions if before else [],
    }
    return StageResult(
        outputs={"report": context.storage.put_json(f"{context.folder}/report.json", report)},
        counts={"questions": len(questions), "documents": version.documents or 0, "chunks": version.chunks or 0},
        metrics=now.means | ({f"previous_{name}": value for name, value in before.means.items()} if before else {}),
        facts={
            "version": version.version,
            "noop": listed["noop"],
            "documents": version.documents,
            "chunks": version.chunks,
        },
        status="refused" if reasons else "complete",
        reason=f"{'; '.join(reasons)}. Next: see report.json of this stage; the current version stays."
        if reasons
        else None,
    )


def finish(context: StageContext, plan: Sequence[Mapping[str, Any]]) -> tuple[Version, Version | None]:
    """Return the finished version of this run, and the current one it stands beside.

    Raises ManifestError when the table does not hold exactly what the parts and the current version say.
    """
    listed, checked = context.inputs["list_documents"].facts, context.inputs["validate_documents"].facts
    manifests = context.parts("index_documents", len(checked["parts"]))
    unchanged = [row["uri"] for row in plan if row["change"] == "unchanged"]
    indexed = [
        row["uri"]
        for part in checked["parts"]
        for row in context.storage.get_rows(context.input("validate_documents", f"documents-{part}"))
    ]
    with connect() as connection:
        version = index_tables.begin(connection, context.run, listed)
    base = _current(listed["base_version"]) if listed["base_version"] is not None else None
    with connect() as connection:
        index_tables.keep_only(connection, version, [*unchanged, *indexed])
        copied = index_tables.copy_documents(connection, base, version, unchanged) if base else 0
        found = index_tables.documents_in(connection, version)
        loaded = sum(found.get(uri, 0) for uri in indexed)
        expected = sum(manifest.counts["chunks"] for manifest in manifests)
        if loaded != expected:
            raise ManifestError(
                f"expected {expected} chunks of {len(indexed)} documents in index version {version.version}, found {loaded}. "
                "Next: clear index_documents; its parts will be loaded again."
            )
        connection.execute(
            "UPDATE index_versions SET documents = %s, chunks = %s WHERE version = %s",
            (len(unchanged) + len(indexed), copied + loaded, version.version),
        )
    with connect() as connection:
        index_tables.build_hnsw(connection, version)
        version = index_tables.get(connection, version.version)
    log.info("index version=%d chunks=%d copied=%d loaded=%d", version.version, copied + loaded, copied, loaded)
    return version, base


def verdict(now: Mapping[str, float], before: Mapping[str, float] | None, options: Options) -> list[str]:
    """Return why the new version must not serve; nothing when it may."""
    bounds = [("recall_at_5", options.min_recall_at_5), ("ann_recall", options.min_ann_recall)]
    reasons = [
        f"expected {name} of at least {bound:.3f}, found {now[name]:.3f}" for name, bound in bounds if now[name] < bound
    ]
    for name in ("recall_at_5", "ndcg_at_10"):
        if before is not None and now[name] < before[name] - options.retrieval_margin:
            reasons.append(
                f"expected {name} within {options.retrieval_margin:.3f} of the current version's {before[name]:.3f}, "
                f"found {now[name]:.3f}"
            )
    return reasons


def _current(version: int) -> Version:
    with connect() as connection:
        return index_tables.get(connection, version)


def _measured(
    context: StageContext, version: Version, questions: Sequence[GoldenQuestion], same_as: Mapping[str, str]
) -> Measurement:
    found = vectors(context.settings, version.embedder, [question.question for question in questions]).by_sha256
    with connect() as connection:
        return measure(connection, version, questions, lambda q: found[text_sha256(q.question)], same_as)


def _measured_before(
    context: StageContext, base: Version, questions: Sequence[GoldenQuestion], same_as: Mapping[str, str]
) -> Measurement | None:
    """Measure the current version now; None when its embedder is not the configured one and cannot be asked."""
    try:
        return _measured(context, base, questions, same_as)
    except ModelError as error:
        log.warning("index version=%d is not measured again: %s", base.version, error)
        return None


def _record(version: Version, now: Measurement, reasons: Sequence[str]) -> Version:
    with connect() as connection:
        _update(connection, version.version, "refused" if reasons else "checked", now.means)
        return index_tables.get(connection, version.version)


def _update(connection: Connection, version: int, status: str, metrics: Mapping[str, float]) -> None:
    connection.execute(
        "UPDATE index_versions SET status = %s, metrics = %s WHERE version = %s AND status IN ('building', 'checked', 'refused')",
        (status, Jsonb(dict(metrics)), version),
    )


STAGE = Stage("check_index", Options, run, needs=("list_documents", "validate_documents"))
