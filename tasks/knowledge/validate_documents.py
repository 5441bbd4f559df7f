"""Stage `validate_documents`: read the documents that a sync must index, and keep back the bad ones.

Reads the plan of `list_documents`, those documents from the corpus, the table `documents`, the suite and the
screening policy. Writes the good ones as `documents-NNNN` (parts for `index_documents`, balanced by bytes),
screened; the bad ones as `quarantine` and as rows of the table of that name, with the rule and the reason; and
`redactions`, how often each rule of the policy masked something in which document. Fails with `CorpusError`
when a document cannot be read; is refused when too large a share is bad, or nothing good is left.
"""

import math
from collections import Counter
from typing import Any

from tasks.contracts import Artifact
from tasks.database import connect
from tasks.knowledge import quarantine
from tasks.knowledge.cache import text_sha256
from tasks.knowledge.extraction import extract, title_of
from tasks.knowledge.quarantine import Rejection
from tasks.knowledge.sources import open_source
from tasks.screening import Outcome, load_policy, screen_all
from tasks.stage import Stage, StageContext, StageOptions, StageResult, from_setting
from tasks.validation import validate

DUPLICATE = "text_is_new"
_COLUMNS = ("uri", "title", "text", "source_sha256", "text_sha256", "bytes")


class Options(StageOptions):
    """How bad a corpus may be, and how its work is shared out."""

    max_quarantine_share: float = from_setting("max_quarantine_share", "Rejected share that fails a run")
    shard_documents: int = from_setting("shard_documents", "Documents in one part")
    max_shards: int = from_setting("max_shards", "Most parts of one sync")


def run(context: StageContext, options: Options) -> StageResult:
    """Read and check the documents to index; quarantine the bad ones."""
    listed = context.inputs["list_documents"]
    planned = list(context.storage.get_rows(context.input("list_documents", "plan")))
    unchanged = {row["uri"] for row in planned if row["change"] == "unchanged"}
    noop = listed.facts["noop"]
    rows = read(context, [row for row in planned if row["change"] in ("added", "changed", "rejected")])
    rows, rejected, screened = apply_policy(rows)
    if noop:  # only the rejected ones were read again: to know which document a copy stands for
        _rows, _rejections, same_as = without_duplicates(rows, _texts_of(unchanged))
        rows, rejected = [], []
    else:
        rows, broken = apply_rules(rows)
        rows, duplicates, same_as = without_duplicates(rows, _texts_of(unchanged))
        rejected += broken + duplicates
    with connect(vectors=False) as connection:
        quarantine.record(connection, "document", context.run, rejected)
    bad = {rejection.item for rejection in rejected}
    share = len(bad) / listed.counts["documents"]
    empty = not rows and not unchanged and not noop
    parts = write_parts(context, rows, options)
    return StageResult(
        outputs={
            "quarantine": context.storage.put_rows(
                f"{context.folder}/quarantine.jsonl", [vars(rejection) for rejection in rejected]
            ),
            "duplicates": context.storage.put_rows(
                f"{context.folder}/duplicates.jsonl",
                [{"uri": uri, "same_as": kept} for uri, kept in sorted(same_as.items())],
            ),
            "redactions": context.storage.put_rows(
                f"{context.folder}/redactions.jsonl",
                [{"uri": uri, "redacted": found} for uri, found in sorted(screened.redactions.items())],
            ),
            **parts,
        },
        counts={
            "valid": len(rows),
            "quarantined": len(bad),
            "redacted": 0 if noop else sum(screened.redacted_by_rule.values()),
        },
        metrics={"quarantine_share": share},
        facts={
            "parts": [name.removeprefix("documents-") for name in parts],
            "quarantined_by_rule": dict(sorted(Counter(rejection.rule for rejection in rejected).items())),
            "redacted_by_rule": {} if noop else screened.redacted_by_rule,
        },
        status="refused" if empty or share > options.max_quarantine_share else "complete",
        reason=_reason(share, options.max_quarantine_share, rejected, empty=empty),
    )


def _reason(share: float, allowed: float, rejected: list[Rejection], *, empty: bool) -> str | None:
    if not empty and share <= allowed:
        return None
    first = "; ".join(f"{rejection.item}: {rejection.reason}" for rejection in rejected[:3])
    return (
        f"expected at most {allowed:.0%} of the documents to break a rule and some to be good, found {share:.0%} broken "
        f"({first[:600]}). Next: see the table quarantine; correct the documents, or MILLRACE_MAX_QUARANTINE_SHARE."
    )


def read(context: StageContext, planned: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the planned documents say, in the plan's order. Raises CorpusError."""
    source = open_source(context.inputs["list_documents"].facts["corpus"], context.storage)
    rows = []
    for done, row in enumerate(planned, start=1):
        found = extract(row["uri"], source.read(row["uri"]))
        context.progress(done, len(planned), "documents")
        rows.append(
            {
                "uri": row["uri"],
                "title": found.title,
                "text": found.text,
                "source_sha256": row["source_sha256"],
                "text_sha256": text_sha256(found.text),
                "bytes": row["bytes"],
                "invalid_bytes": found.invalid_bytes,
            }
        )
    return rows


def apply_policy(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Rejection], Outcome]:
    """Return the rows that the screening policy lets pass, redacted; the rejections of the others; what was found.

    It comes before the other rules, so that no reason or excerpt of theirs repeats a secret.
    """
    outcome = screen_all(((row["uri"], [row["text"]]) for row in rows), load_policy())
    kept = []
    for row in rows:
        if row["uri"] in outcome.redactions:
            (text,) = outcome.texts[row["uri"]]
            row = row | {"text": text, "title": title_of(row["uri"], text), "text_sha256": text_sha256(text)}
        if row["uri"] in outcome.texts:
            kept.append(row)
    rejected = [
        rejection
        for uri, broken in outcome.blocked.items()
        for rejection in quarantine.rejections(uri, outcome.masked[uri], broken)
    ]
    return kept, rejected, outcome


def apply_rules(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Rejection]]:
    """Return the rows that keep every rule of expectations/documents.json, and why the others do not."""
    report = validate("documents", rows)
    rejected = [
        rejection
        for position in report.bad
        for rejection in quarantine.rejections(rows[position]["uri"], rows[position]["text"], report.rows[position])
    ]
    return [rows[position] for position in report.good], rejected


def without_duplicates(
    rows: list[dict[str, Any]], indexed: dict[str, str]
) -> tuple[list[dict[str, Any]], list[Rejection], dict[str, str]]:
    """Return the rows whose text is new, the rejections of the others, and which document each other one repeats.

    `indexed` holds the texts (by SHA-256) of documents that stay as they are; of new documents the first stays.
    """
    first = dict(indexed)
    kept: list[dict[str, Any]] = []
    rejected: list[Rejection] = []
    same_as: dict[str, str] = {}
    for row in rows:
        before = first.setdefault(row["text_sha256"], row["uri"])
        if before == row["uri"]:
            kept.append(row)
            continue
        same_as[row["uri"]] = before
        broken = {DUPLICATE: f"expected a text that no other document has, found that of {before}"}
        rejected += quarantine.rejections(row["uri"], row["text"], broken)
    return kept, rejected, same_as


def _texts_of(uris: set[str]) -> dict[str, str]:
    with connect(vectors=False) as connection:
        rows = connection.execute("SELECT text_sha256, uri FROM documents WHERE uri = ANY(%s)", (sorted(uris),))
        return {row["text_sha256"]: row["uri"] for row in rows}


def write_parts(context: StageContext, rows: list[dict[str, Any]], options: Options) -> dict[str, Artifact]:
    """Write the documents in parts of about equal bytes, the largest documents first."""
    if not rows:
        return {}
    parts: list[list[dict[str, Any]]] = [
        [] for _ in range(min(options.max_shards, math.ceil(len(rows) / options.shard_documents)))
    ]
    load = [0] * len(parts)
    for row in sorted(rows, key=lambda row: (-row["bytes"], row["uri"])):
        lightest = load.index(min(load))
        parts[lightest].append(row)
        load[lightest] += row["bytes"]
    return {
        f"documents-{number:04d}": context.storage.put_rows(
            f"{context.folder}/documents-{number:04d}.jsonl",
            [{name: row[name] for name in _COLUMNS} for row in sorted(part, key=lambda row: str(row["uri"]))],
        )
        for number, part in enumerate(parts)
    }


STAGE = Stage("validate_documents", Options, run, needs=("list_documents",))
