"""Stage `validate_documents`: judge what the parts have read as a whole: copies, rejects, removals.

Reads the parts of `read_documents` and the table `documents`. Marks exact and near copies (of documents that stay, and
among the new ones: the first URI stays), and writes every rejection of the run to the table `quarantine`. Writes
`copies` and `quarantine`; says which parts have documents to index, and whether the sync is a noop. Fails with
`ManifestError` when a part is missing; is refused when too large a share was rejected, when more documents would leave
the index than a sync may remove, or when nothing good is left. Memory grows with the rejections of the run only.
"""

from collections.abc import Iterator
from typing import Any, Literal

from tasks.contracts import Manifest
from tasks.database import Connection, connect
from tasks.knowledge import corpora, documents, index_tables, quarantine
from tasks.knowledge.copies import Row, copies
from tasks.knowledge.erasure import erased_in
from tasks.knowledge.list_documents import removal_reason
from tasks.knowledge.quarantine import Rejection
from tasks.knowledge.reconciliation import stream
from tasks.stage import Stage, StageContext, StageOptions, StageResult, from_setting

SAME, ALIKE = "text_is_new", "text_is_not_alike"


class Options(StageOptions):
    """How bad a corpus may be, and how much of it may vanish."""

    max_quarantine_share: float = from_setting("max_quarantine_share", "Rejected share that fails a run")
    max_removal_share: float = from_setting("max_removal_share", "Share of the documents one sync may remove")
    near_duplicate_similarity: float = from_setting("near_duplicate_similarity", "From where on documents are copies")
    confirm_removal: Literal["no", "yes"] = "no"


def run(context: StageContext, options: Options) -> StageResult:
    """Judge the documents of a sync as a whole."""
    listed, parts = context.inputs["list_documents"], documents.manifests(context)
    corpus = listed.facts["corpus"]
    with connect(vectors=False) as connection:
        documents.load(context, connection, parts)
        outputs = {
            "copies": context.storage.put_rows(
                f"{context.folder}/copies.jsonl",
                _copies(context, connection, parts, corpus, options.near_duplicate_similarity),
            )
        }
        documents.refuse_copies(connection, context.storage.get_rows(outputs["copies"]))
        told = list(_rejections(context, connection, parts))
        quarantine.record(connection, "document", context.run, told, corpus)
        counts = _counts(connection, corpus)
        by_rule = _by_rule(told)
        index_parts = [
            row["part"] for row in connection.execute("SELECT DISTINCT part FROM fresh WHERE kept ORDER BY part")
        ]
        # A base with a document that was erased meanwhile is not taken over as it is.
        noop = listed.facts["same_pipeline"] and not index_parts and counts["removed"] == 0
        noop = noop and not erased_in(connection, index_tables.get(connection, listed.facts["base_version"]))
    outputs["quarantine"] = context.storage.put_rows(f"{context.folder}/quarantine.jsonl", map(vars, told))
    share = (counts["quarantined"] + counts["still_rejected"]) / listed.counts["documents"]
    reason = _reason(options, listed, counts, share, told)
    return StageResult(
        outputs=outputs,
        counts={**counts, "redacted": sum(part.counts["redacted"] for part in parts)},
        metrics={"quarantine_share": share, "removal_share": counts["removed"] / max(1, listed.counts["indexed"])},
        facts={
            "parts": index_parts,
            "noop": noop,
            "quarantined_by_rule": by_rule,
            "redacted_by_rule": _redacted(parts),
        },
        status="refused" if reason else "complete",
        reason=reason,
    )


def _copies(
    context: StageContext, connection: Connection, parts: list[Manifest], corpus: str, threshold: float
) -> Iterator[dict[str, Any]]:
    """Yield each new document whose text another has, but for those that a person accepted."""
    accepted = {sha256 for sha256, rules in quarantine.accepted(connection, corpus).items() if rules & {SAME, ALIKE}}
    new = (
        Row(row["uri"], row["text_sha256"], bytes.fromhex(row["signature"]), row["bands"])
        for part in parts
        for row in context.storage.get_rows(part.outputs["documents"])
        if row["content_sha256"] not in accepted
    )
    for copy in copies(connection, corpus, new, threshold):
        rule = SAME if copy.exact else ALIKE
        yield {"uri": copy.uri, "rule": rule, "same_as": copy.same_as, "similarity": round(copy.similarity, 3)}


def _rejections(context: StageContext, connection: Connection, parts: list[Manifest]) -> Iterator[Rejection]:
    """Yield every rejection of the run: by rules of one document, and as copies."""
    for part in parts:
        for row in context.storage.get_rows(part.outputs["rejected"]):
            yield Rejection(**row)
    for row in stream(connection, "SELECT uri, rule, same_as, content_sha256 FROM refused WHERE same_as IS NOT NULL"):
        what = "a text that no other document has" if row["rule"] == SAME else "a text unlike that of other documents"
        yield Rejection(
            row["uri"], row["rule"], f"expected {what}, found that of {row['same_as']}", "", row["content_sha256"]
        )


def _counts(connection: Connection, corpus: str) -> dict[str, int]:
    """Return how many documents are new, changed, moved, unchanged, gone and rejected, now that they were read."""
    row = connection.execute(
        """
        WITH gone AS (SELECT p.uri, EXISTS (SELECT FROM fresh f WHERE f.kept AND f.content_sha256 = p.content_sha256) AS moved
                      FROM plan p WHERE p.change = 'gone'),
             lost AS (SELECT count(*) AS n FROM refused r JOIN documents d ON d.corpus = %(corpus)s AND d.uri = r.uri
                      AND d.status = 'indexed'),
             was AS (SELECT f.uri, d.uri IS NOT NULL AS known FROM fresh f LEFT JOIN documents d
                     ON d.corpus = %(corpus)s AND d.uri = f.uri AND d.status = 'indexed' WHERE f.kept)
        SELECT (SELECT count(*) FROM gone WHERE moved) AS moved,
               (SELECT count(*) FROM gone WHERE NOT moved) AS deleted,
               (SELECT n FROM lost) AS lost,
               (SELECT count(*) FROM was WHERE known) AS changed,
               (SELECT count(*) FROM was WHERE NOT known) AS added,
               (SELECT count(*) FROM staying) AS unchanged,
               (SELECT count(*) FROM refused) AS quarantined,
               (SELECT count(*) FROM plan WHERE change = 'rejected') AS still_rejected
        """,
        {"corpus": corpus},
    ).fetchone()
    assert row is not None
    counts = {name: int(value) for name, value in row.items()}
    counts["added"] = max(0, counts["added"] - counts["moved"])
    # What leaves the index: deleted documents, and those that are rejected now.
    counts["removed"] = counts["deleted"] + counts.pop("lost")
    return counts | {"valid": counts["added"] + counts["moved"] + counts["changed"]}


def _by_rule(told: list[Rejection]) -> dict[str, int]:
    rules = sorted({rejection.rule for rejection in told})
    return {rule: len({r.item for r in told if r.rule == rule}) for rule in rules}


def _redacted(parts: list[Manifest]) -> dict[str, int]:
    rules = sorted({rule for part in parts for rule in part.facts["redacted_by_rule"]})
    return {rule: sum(part.facts["redacted_by_rule"].get(rule, 0) for part in parts) for rule in rules}


def _reason(
    options: Options, listed: Manifest, counts: dict[str, int], share: float, told: list[Rejection]
) -> str | None:
    """Return why the sync must not go on; None when it may."""
    if share > options.max_quarantine_share or not counts["valid"] + counts["unchanged"]:
        # What was found instead may quote the document, and a manifest outlives what quarantine keeps.
        first = "; ".join(f"{rejection.item}: {quarantine.unquoted(rejection.reason)}" for rejection in told[:3])
        return (
            f"expected at most {options.max_quarantine_share:.0%} of the documents to break a rule and some to be good, found "
            f"{share:.0%} broken ({first[:600]}). Next: `python -m tasks quarantine list`; correct the documents, or "
            "MILLRACE_MAX_QUARANTINE_SHARE."
        )
    indexed = listed.counts["indexed"]
    if counts["removed"] > options.max_removal_share * indexed and options.confirm_removal == "no":
        return removal_reason(counts["removed"], indexed, options.max_removal_share, listed.facts["source"])
    return None


STAGE = Stage("validate_documents", Options, run, needs=("list_documents",), settings=corpora.of_listing)
