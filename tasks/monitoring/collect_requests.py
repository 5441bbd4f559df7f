"""Freeze the two windows that a night compares: the current one, and the reference of the live release.

Reads `requests`, `feedback`, `releases`. The current window begins at `since`, or `hours` ago; where it holds fewer than
`MILLRACE_DRIFT_MIN_REQUESTS` it grows, up to `MILLRACE_DRIFT_LONGEST_DAYS` (one that a person gave does not). Of more than
MOST_ROWS a fixed sample is taken. The reference is that of `tasks.monitoring.references`. Rows are checked by the suite
`expectations/requests.json`; those that break a rule go to `quarantine`. Writes both windows (`.npz`). Vectors of another
embedder than most of the current window's cannot be compared: they are left out and counted. Fails with `OptionError`.
"""

from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy
from pydantic import Field

from tasks.contracts import Artifact, digest
from tasks.database import Connection, connect
from tasks.errors import OptionError
from tasks.monitoring import examples, recorded, references
from tasks.monitoring.recorded import Row
from tasks.monitoring.window import Window, window
from tasks.stage import Stage, StageContext, StageOptions, StageResult
from tasks.validation import validate

MOST_ROWS = 100_000
_CHECKED = ("id", "question", "best_score", "latency_ms", "embedding_norm")
Embedder = tuple[str, int]


class Options(StageOptions):
    """Where the current window begins."""

    since: str = Field(default="", description="ISO moment at which the current window begins; empty: the last hours")
    hours: float = Field(default=24, gt=0, le=24 * 366, description="Length of the current window without `since`")


@dataclass
class Side:
    """One of the two windows while it is made."""

    window: Window
    embedder: Embedder | None
    total: int
    """How many requests there were, sampled or not."""
    quarantined: int = 0
    frozen: str | None = None
    """Where a frozen reference lies."""
    rules: dict[str, int] | None = None


def run(context: StageContext, options: Options) -> StageResult:
    """Write the reference and the current window, checked row by row."""
    now = datetime.now(UTC)
    with connect(context.settings.database_url.get_secret_value()) as connection:
        since = window_start(options, now)
        # What another model answered (before a rollback, say) is no sign of how the live one does.
        of = references.lineage(connection)
        if not options.since:
            since = grown(context, connection, since, now, of.releases)
        current = _side(context, connection, since, now, of.releases, MOST_ROWS)
        reference = _reference(context, connection, since, of)
    left_out = _comparable(current, reference)
    sides = {"reference": reference, "current": current}
    outputs: dict[str, Artifact] = {}
    counts = {"quarantined": sum(side.quarantined for side in sides.values())}
    for name, side in sides.items():
        body = side.window.to_bytes()
        outputs[name] = context.storage.put_bytes(f"{context.folder}/{name}.npz", body, rows=len(side.window))
        counts |= {name: len(side.window), f"{name}_total": side.total, f"{name}_vectors_left_out": left_out[name]}
    rules = Counter[str]()
    for side in sides.values():
        rules.update(side.rules or {})
    return StageResult(
        outputs=outputs,
        counts=counts,
        facts={
            "windows": {name: _span(side.window) for name, side in sides.items()},
            "since": since.isoformat(),
            "until": now.isoformat(),
            "hours": round((now - since).total_seconds() / 3600, 3),
            "embedder": list(current.embedder) if current.embedder else None,
            "quarantined_by_rule": dict(rules),
            "recorded": current.quarantined + len(current.window),
            "quarantined_share": round(current.quarantined / max(1, current.quarantined + len(current.window)), 4),
            "reference_frozen": reference.frozen,
            "data_sha256": digest([sorted(side.window.ids.tolist()) for side in (reference, current)]),
        },
    )


def window_start(options: Options, now: datetime) -> datetime:
    """Return the moment at which the current window begins. Raises OptionError."""
    if not options.since:
        return now - timedelta(hours=options.hours)
    try:
        since = datetime.fromisoformat(options.since)
    except ValueError as error:
        raise OptionError(
            f"expected --since like 2026-01-31T04:00:00+00:00, found {options.since!r}. Next: correct it."
        ) from error
    since = since if since.tzinfo else since.replace(tzinfo=UTC)
    if since > now:
        raise OptionError(f"expected --since before now ({now.isoformat()}), found {options.since}. Next: correct it.")
    return since


def grown(
    context: StageContext, connection: Connection, since: datetime, now: datetime, of: list[int] | None
) -> datetime:
    """Return a beginning as early as it takes for enough requests: twice as long each time, up to the setting's days."""
    longest = max(now - since, timedelta(days=context.settings.drift_longest_days))
    length, least = now - since, context.settings.drift_min_requests
    while length < longest and recorded.count(connection, now - length, now, of) < least:
        length = min(2 * length, longest)
    return now - length


def _side(
    context: StageContext, connection: Connection, since: datetime, until: datetime, of: list[int] | None, most: int
) -> Side:
    rows = recorded.rows(connection, since, until, of, most)
    good, rules, bad = _check(context.run, connection, rows)
    embedder = Counter(row["embedder"] for row in good if row["vector"] is not None).most_common(1)
    name = embedder[0][0] if embedder else None
    for row in good:
        if row["embedder"] != name:
            row["vector"] = None
    return Side(window(good), name, recorded.count(connection, since, until, of), bad, None, rules)


def _reference(context: StageContext, connection: Connection, since: datetime, of: references.Lineage) -> Side:
    """Return the reference: the frozen one, or what there is of it; freeze it when it is complete."""
    kept = references.frozen(connection, of)
    if kept and kept.last_at < since:
        name, _, size = kept.embedder.rpartition("/")
        return Side(references.read(context.storage, kept), (name, int(size or 0)), kept.total, frozen=kept.uri)
    first = references.first_request(connection, of) or since
    complete = references.ends(first)
    side = _side(context, connection, first, min(since, complete), of.releases, references.MOST_ROWS)
    if len(side.window) < context.settings.drift_min_requests and complete < since:
        # A quiet first week: it goes on until there is enough to compare with.
        side = _side(context, connection, first, since, of.releases, references.MOST_ROWS)
    enough = len(side.window) >= context.settings.drift_min_requests
    if kept is None and complete <= since and enough and side.embedder is not None:
        embedder = f"{side.embedder[0]}/{side.embedder[1]}"
        side.frozen = references.freeze(
            connection, context.storage, context.bucket, of, side.window, side.total, embedder
        ).uri
    return side


def _comparable(current: Side, reference: Side) -> dict[str, int]:
    """Drop the reference's vectors where another embedder made them; return the requests without a vector to compare."""
    if reference.embedder != current.embedder:
        none = numpy.full(len(reference.window), -1, dtype=numpy.int64)
        reference.window = replace(reference.window, vector=none, vectors=numpy.empty((0, 0), numpy.float32))
    return {
        name: int((side.window.vector < 0).sum()) for name, side in (("reference", reference), ("current", current))
    }


def _check(run: str, connection: Connection, rows: list[Row]) -> tuple[list[Row], dict[str, int], int]:
    """Keep bad rows in `quarantine`; return the good ones, and the bad ones counted by rule and in all."""
    # Only what rules look at: Great Expectations hashes whole tables, and vectors are most of their bytes.
    report = validate("requests", [{name: row[name] for name in _CHECKED} for row in rows])
    bad = set(report.bad)
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO quarantine (kind, item, rule, reason, excerpt, run) VALUES ('request', %s, %s, %s, %s, %s) "
            "ON CONFLICT DO NOTHING",
            [
                (rows[position]["id"], rule, reason, examples.safe(rows[position]["question"] or ""), run)
                for position in sorted(bad)
                for rule, reason in report.rows[position].items()
            ],
        )
    return [row for position, row in enumerate(rows) if position not in bad], report.by_rule, len(bad)


def _span(side: Window) -> dict[str, Any]:
    if not len(side):
        return {"from": None, "to": None}
    first, last = (datetime.fromtimestamp(float(side.at[place]), UTC).isoformat() for place in (0, -1))
    return {"from": first, "to": last}


STAGE = Stage("collect_requests", Options, run)
