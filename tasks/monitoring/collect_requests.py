"""Freeze two windows of recorded requests: the current one, and the reference before it.

Reads table `requests`. The current window begins at `since`, or `hours` ago; of more than 5,000 rows a
fixed sample is taken. The reference is the newest 5,000 rows before it. Both are checked by the suite
`expectations/requests.json`; rows that break a rule go to `quarantine`. Writes both windows as rows, and
their vectors (one `.npy` each, `vector` in a row is the position in it). Vectors of another embedder
than the current window's cannot be compared: they are left out and counted. Fails with `OptionError`.
"""

import io
import math
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import numpy
from psycopg import sql
from pydantic import Field

from tasks.contracts import Artifact, digest
from tasks.database import Connection, connect
from tasks.errors import OptionError
from tasks.serving.refusals import LEFT
from tasks.stage import Stage, StageContext, StageOptions, StageResult
from tasks.validation import validate

MOST_ROWS = 5_000
_EXCERPT = 200
Row = dict[str, Any]


class Options(StageOptions):
    """Where the current window begins."""

    since: str = Field(default="", description="ISO moment at which the current window begins; empty: the last hours")
    hours: float = Field(default=24, gt=0, le=24 * 366, description="Length of the current window without `since`")


def run(context: StageContext, options: Options) -> StageResult:
    """Write the reference and the current window, checked row by row."""
    now = datetime.now(UTC)
    since = window_start(options, now)
    with connect(context.settings.database_url.get_secret_value()) as connection:
        current, current_total = _rows(connection, "r.created_at >= %s", since, newest=False)
        reference, reference_total = _rows(connection, "r.created_at < %s", since, newest=True)
        rules, quarantined = _check(context.run, connection, reference, current)
    embedder = Counter(row["embedder"] for row in current if row["embedding"] is not None).most_common(1)
    comparable = embedder[0][0] if embedder else None
    outputs: dict[str, Artifact] = {}
    counts = {"quarantined": quarantined}
    for name, rows, total in (("reference", reference, reference_total), ("current", current, current_total)):
        written, left_out = _write(context, name, rows, comparable)
        outputs |= written
        counts |= {name: len(rows), f"{name}_total": total, f"{name}_vectors_left_out": left_out}
    windows = {
        name: {"from": rows[0]["created_at"], "to": rows[-1]["created_at"]} if rows else {"from": None, "to": None}
        for name, rows in (("reference", reference), ("current", current))
    }
    return StageResult(
        outputs=outputs,
        counts=counts,
        facts={
            "windows": windows,
            "since": since.isoformat(),
            "embedder": list(comparable) if comparable else None,
            "quarantined_by_rule": rules,
            "data_sha256": digest([sorted(row["id"] for row in rows) for rows in (reference, current)]),
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


def _rows(connection: Connection, condition: LiteralString, since: datetime, *, newest: bool) -> tuple[list[Row], int]:
    """Return at most 5,000 rows in order of time, and how many there were."""
    where = sql.SQL(condition)
    counted = connection.execute(sql.SQL("SELECT count(*) AS rows FROM requests r WHERE ") + where, (since,)).fetchone()
    # A day's traffic is sampled by a digest of the id: the same rows at every try, evenly over the day.
    order = sql.SQL("r.created_at DESC, r.id" if newest else "md5(r.id::text)")
    found = connection.execute(
        sql.SQL(
            "SELECT r.id, r.created_at, r.kind, r.question, r.best_score, "
            # Of one whose client left: nothing failed, and its time is the client's.
            "CASE WHEN r.error IS DISTINCT FROM {left} THEN r.latency_ms END AS latency_ms, "
            "r.error IS NOT NULL AND r.error <> {left} AS failed, "
            "r.release, r.index_version, r.embedding, coalesce(i.embedder, '') AS embedder "
            "FROM requests r LEFT JOIN index_versions i ON i.version = r.index_version WHERE {where} ORDER BY {order} LIMIT {most}"
        ).format(where=where, order=order, most=sql.Literal(MOST_ROWS), left=sql.Literal(LEFT)),
        (since,),
    ).fetchall()
    return sorted(map(_clean, found), key=lambda row: (row["created_at"], row["id"])), int(
        counted["rows"] if counted else 0
    )


def _clean(row: Row) -> Row:
    """Return a row of plain values; `embedder` becomes what must be equal for vectors to be compared."""
    vector = row["embedding"]
    vector = (
        None if vector is None else numpy.asarray(getattr(vector, "to_numpy", lambda: vector)(), dtype=numpy.float32)
    )
    return row | {
        "id": str(row["id"]),
        "created_at": row["created_at"].astimezone(UTC).isoformat(),
        "question_length": len(row["question"]),
        "best_score": _finite(row["best_score"]),
        "latency_ms": _finite(row["latency_ms"]),
        "embedding": vector,
        "embedding_norm": None if vector is None else float(numpy.linalg.norm(vector)),
        "embedder": (row["embedder"], 0 if vector is None else len(vector)),
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _check(run: str, connection: Connection, reference: list[Row], current: list[Row]) -> tuple[dict[str, int], int]:
    """Take bad rows out of both windows and keep them in `quarantine`; count them by rule, and in all."""
    report = validate("requests", [*reference, *current])
    for row, broken in zip([*reference, *current], report.rows, strict=True):
        for rule, reason in broken.items():
            connection.execute(
                "INSERT INTO quarantine (kind, item, rule, reason, excerpt, run) VALUES ('request', %s, %s, %s, %s, %s) "
                "ON CONFLICT DO NOTHING",
                (row["id"], rule, reason, (row["question"] or "")[:_EXCERPT], run),
            )
    bad = set(report.bad)
    edge = len(reference)
    reference[:] = [row for position, row in enumerate(reference) if position not in bad]
    current[:] = [row for position, row in enumerate(current) if position + edge not in bad]
    return report.by_rule, len(bad)


def _write(
    context: StageContext, name: str, rows: list[Row], comparable: tuple[str, int] | None
) -> tuple[dict[str, Artifact], int]:
    """Write one window; return its artifacts and how many of its rows have no vector that can be compared."""
    vectors = [row["embedding"] for row in rows if row["embedding"] is not None and row["embedder"] == comparable]
    positions = iter(range(len(vectors)))
    plain = [
        {key: row[key] for key in row if key not in {"embedding", "embedding_norm", "embedder"}}
        | {"vector": next(positions) if row["embedding"] is not None and row["embedder"] == comparable else None}
        for row in rows
    ]
    body = io.BytesIO()
    numpy.save(body, numpy.stack(vectors) if vectors else numpy.empty((0, 0), numpy.float32), allow_pickle=False)
    return {
        name: context.storage.put_rows(f"{context.folder}/{name}.jsonl", plain),
        f"{name}_vectors": context.storage.put_bytes(
            f"{context.folder}/{name}_vectors.npy", body.getvalue(), rows=len(vectors)
        ),
    }, len(rows) - len(vectors)


STAGE = Stage("collect_requests", Options, run)
