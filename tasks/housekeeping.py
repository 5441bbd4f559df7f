"""Retire what nobody uses any more: index versions, run folders, served requests and their traces.

Reads `index_versions`, `releases` and the listing of `s3://BUCKET/runs/`. An index version is kept when it is current,
when the live release or one of the newest `MILLRACE_KEEP_RELEASES` names it, or when it is among the newest
`MILLRACE_KEEP_INDEX_VERSIONS` of its corpus that served before. What never served (being built, refused, left by a killed
tune-index) is kept for a day, and so are a killed tune-index' vectors.
A run folder is kept until nothing was written into it for `MILLRACE_KEEP_RUN_DAYS`. Of one that a release's evidence names, what
was measured and judged (`evaluate/`, `gate/`, `register/`) stays for good: cards, tags and `releases` point there. The rest of it
goes, as it may hold what people wrote, and so does the text of documents that questions were asked with. A day of requests is kept for
`MILLRACE_KEEP_REQUEST_DAYS`, and so are its traces in MLflow (`tasks.serving.retention`, which makes the partitions of the coming
days too). Writes `retired`, the list of what was (or with `dry_run` would be) retired. `models/`, `datasets/` and `releases/` are
never listed, so never deleted. Fails with `ServiceUnavailable`; what was retired before stays retired.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import Field

from tasks.backup.lock import alone
from tasks.database import Connection
from tasks.errors import ManifestError
from tasks.knowledge import index_tables, tuning
from tasks.knowledge.corpora import DEFAULT
from tasks.release import evidence
from tasks.release import ledger as releases
from tasks.release.ledger import ledger
from tasks.serving import retention
from tasks.stage import Stage, StageContext, StageOptions, StageResult
from tasks.storage import Storage

log = logging.getLogger(__name__)
_BUILD_TIME = timedelta(days=1)
_PROOF = ("evaluate", "gate", "register")  # the stages whose folders a release points to
_FOUND = "evaluate/sets/hits.jsonl"  # of those the one file with text of documents, that no verdict is bound to


class Options(StageOptions):
    """Whether to retire, or only to say what would be retired."""

    dry_run: Literal["yes", "no"] = Field(default="no", description="yes: only list")


@dataclass(frozen=True)
class Known:
    """What decides whether an index version is kept."""

    version: int
    status: str
    table_name: str
    created_at: datetime
    corpus: str = DEFAULT
    base_table: str | None = None


def run(context: StageContext, options: Options) -> StageResult:
    """Drop index versions and delete run folders that nobody uses; list each one."""
    # No backup may be copying: it would lack what is deleted here and is named by what it dumped before.
    now, dry = datetime.now(UTC), options.dry_run == "yes"
    url = context.settings.database_url.get_secret_value()
    with alone(url, "housekeeping"):
        days = context.settings.keep_request_days
        traces = retention.expire_traces(context.settings.mlflow_tracking_uri, days, now, dry=dry)
        requests = retention.keep_house(url, days, now, dry=dry)
        return _retire(context, now, dry, requests, traces)


def _retire(
    context: StageContext, now: datetime, dry: bool, requests: list[dict[str, Any]], traces: list[dict[str, Any]]
) -> StageResult:
    with ledger(context.settings) as connection:
        # Held until the end: no release can name a version while it is being dropped.
        releases.lock(connection)
        versions = old_versions(
            _known(connection),
            _released(connection, context.settings.keep_releases),
            context.settings.keep_index_versions,
            now,
        )
        for known in versions:
            if not dry:
                index_tables.drop(connection, known.version)
        vectors = tuning.delete_vectors(connection, tuning.LEFT, dry=dry)
        released = released_runs(context.storage, connection)
    limit = now - timedelta(days=context.settings.keep_run_days)
    folders = old_folders(context.storage.list_modified(f"{context.bucket}/runs/"), limit, context.run, released)
    objects = sum(count for _folder, count in folders)
    for folder, _count in folders:
        if not dry:
            context.storage.delete_prefix(folder)
    rows: list[dict[str, Any]] = [
        {"kind": "index_version", "name": known.table_name, "version": known.version, "status": known.status}
        for known in versions
    ]
    rows += [{"kind": "run_folder", "name": folder, "objects": count} for folder, count in folders]
    rows += requests + traces
    return StageResult(
        outputs={"retired": context.storage.put_rows(f"{context.folder}/retired.jsonl", rows)},
        counts={
            "index_versions": len(versions),
            "run_folders": len(folders),
            "objects": objects,
            "request_days": sum(row["kind"] == "request_day" for row in requests),
            "requests": sum(row["rows"] for row in requests),
            "traces": sum(row["rows"] for row in traces),
            "tuning_vectors": vectors,
        },
        facts={"dry_run": dry, "index_versions": [known.version for known in versions]},
    )


def old_versions(known: Sequence[Known], released: set[int], keep: int, now: datetime) -> list[Known]:
    """Return the versions to drop, oldest first.

    Of each corpus the newest `keep` that served and no release names stay, to go back to. What never served has a day.
    One on whose table another stands stays as long as that one.
    """
    shown = {item.base_table for item in known if item.status != "retired"}
    unused = [
        item
        for item in sorted(known, key=lambda item: item.version, reverse=True)
        if item.status not in {"current", "retired"} and item.version not in released and item.table_name not in shown
    ]
    left: Counter[str] = Counter()
    dropped = []
    for item in unused:
        if item.status == "former":
            left[item.corpus] += 1
            if left[item.corpus] > keep:
                dropped.append(item)
        elif now - item.created_at > _BUILD_TIME:
            dropped.append(item)
    return dropped[::-1]


def old_folders(
    objects: Iterable[tuple[str, datetime]], limit: datetime, own: str, released: Collection[str] = ()
) -> list[tuple[str, int]]:
    """Return (URI with a slash at its end, objects) of each run folder in which nothing was written since `limit`.

    Of a `released` one the folders of its stages are returned, but for those that hold what was measured and judged; of these
    only the file with what was found in documents.
    """
    newest: dict[str, datetime] = {}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    spared = {run.rstrip("/") + "/" for run in released}
    for uri, modified in objects:
        # s3://BUCKET/runs/DAG_ID/RUN_ID/STAGE/...
        parts = uri.split("/", 7)
        if len(parts) < 7:
            continue  # an object that is not inside a run folder is not ours to delete
        folder = "/".join(parts[:6]) + "/"
        newest[folder] = max(modified, newest.get(folder, modified))
        if folder not in spared:
            counts[folder][folder] += 1
        elif len(parts) == 8 and parts[6] not in _PROOF:
            counts[folder][f"{folder}{parts[6]}/"] += 1
        elif uri == f"{folder}{_FOUND}":
            counts[folder][uri] += 1
    own_folder = own.rstrip("/") + "/"
    old = [folder for folder in sorted(newest) if newest[folder] < limit and folder != own_folder]
    return [item for folder in old for item in sorted(counts[folder].items())]


def released_runs(storage: Storage, connection: Connection) -> set[str]:
    """Return the run folders in which the models of all releases were judged, as their evidence names them."""
    rows = connection.execute("SELECT DISTINCT evidence_uri, evidence_sha256 FROM releases").fetchall()
    found: set[str] = set()
    for row in rows:
        try:
            content = evidence.recall(storage, row["evidence_uri"], row["evidence_sha256"])
        except (ManifestError, ValueError) as error:
            log.warning(
                "what a release was judged by cannot be spared, its evidence does not say where it is: %s", error
            )
            continue
        found |= {str(manifest["run"]) for manifest in content.get("manifests", {}).values() if "run" in manifest}
    return found


def _known(connection: Connection) -> list[Known]:
    rows = connection.execute(
        "SELECT version, status, table_name, created_at, corpus, base_table FROM index_versions"
    ).fetchall()
    return [Known(**row) for row in rows]


def _released(connection: Connection, keep: int) -> set[int]:
    """Return the index versions that the newest releases name; the live one is the newest of them."""
    return {release.index_version for release in releases.history(connection, keep)}


STAGE = Stage("retire", Options, run)
