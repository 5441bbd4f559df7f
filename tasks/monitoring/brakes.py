"""What holds a decision that is due: the brakes, in the order in which they are asked.

Reads `decisions`, `stage_costs`, `stage_runs`; writes nothing. A brake returns the route that stands instead, with its own
name in `held_by`. Alerts start nothing, so only `same_evidence` and the cool-down hold them: a person is told once.

| brake | holds |
| --- | --- |
| `agreement` | fewer than k of the last n windows since the last action, none overlapping another, wanted one for this cause |
| `busy` | a run of `sync_knowledge`, `fine_tune` or `promote_release` has not ended: one action at a time |
| `same_evidence` | this cause and these requests, or a window that shares most of its time with this one, were acted on |
| `cooldown` | the same action less than `MILLRACE_DRIFT_COOLDOWN_HOURS` ago |
| `budget` | `MILLRACE_DRIFT_TRAININGS` trainings, or `MILLRACE_GPU_BUDGET_HOURS`, in 30 days |
| `losing_candidates` | two trainings of this cause led to no other model: a person is asked |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from tasks.database import Connection
from tasks.monitoring.routes import Route
from tasks.settings import Settings

STARTS = ("refresh_knowledge", "train_again")
_MOST_LOSERS = 2
_COMMON = 0.1
_MOSTLY = 0.5


@dataclass(frozen=True)
class Now:
    """What the brakes know of the night at hand."""

    key: str
    since: datetime
    until: datetime
    agree: int
    """How many of the last windows must want it, this one included."""
    of: int
    running: int
    """Runs of the DAGs that a decision starts which have not ended."""
    lineage_since: datetime | None
    """When the live model and prompt were first released."""


Brake = Callable[[Connection, Settings, Route, Now], Route | None]


def braked(connection: Connection, settings: Settings, wanted: Route, now: Now) -> Route:
    """Return the wanted route, or what the first brake that holds makes of it."""
    if wanted.action == "none":
        return wanted
    brakes: list[Brake] = [_same_evidence, _cooldown]
    if wanted.action in STARTS:
        brakes = [_agreement, _busy, *brakes, _budget, _losing_candidates]
    for brake in brakes:
        held = brake(connection, settings, wanted, now)
        if held is not None:
            return held
    return wanted


def _held(wanted: Route, name: str, sentence: str) -> Route:
    return replace(wanted, action="none", held_by=name, sentence=sentence)


def _agreement(connection: Connection, _settings: Settings, wanted: Route, now: Now) -> Route | None:
    votes, windows = 1, 1
    edge = now.since
    for row in connection.execute(
        "SELECT d.evidence->'wanted'->>'cause' AS cause, d.evidence->'wanted'->>'action' AS action, "
        "(d.evidence->'window'->>'since')::timestamptz AS since, (d.evidence->'window'->>'until')::timestamptz AS until "
        "FROM decisions d WHERE d.evidence->'window' IS NOT NULL AND d.created_at > now() - interval '60 days' "
        "AND (%s::timestamptz IS NULL OR d.created_at >= %s) "
        # What was acted on is spent: the next action needs windows of its own.
        "AND d.id > coalesce((SELECT max(id) FROM decisions WHERE cause = %s AND dag_id IS NOT NULL), 0) "
        "ORDER BY until DESC, d.id DESC",
        (now.lineage_since, now.lineage_since, wanted.cause),
    ):
        if windows == now.of:
            break
        # A night begins some seconds earlier or later than the one before; more in common is no window of its own.
        if row["until"] - edge > _COMMON * (row["until"] - row["since"]):
            continue
        windows += 1
        votes += row["cause"] == wanted.cause and row["action"] != "none"
        edge = row["since"]
    if votes >= now.agree:
        return None
    return _held(
        wanted, "agreement",
        f"{wanted.action} is due ({wanted.sentence}), and {votes} of the last {windows} windows say so: {now.agree} are needed",
    )  # fmt: skip


def _busy(_connection: Connection, _settings: Settings, wanted: Route, now: Now) -> Route | None:
    if not now.running:
        return None
    text = f"{wanted.action} is due ({wanted.sentence}), but {now.running} runs of sync_knowledge, fine_tune or promote_release have not ended"
    return _held(wanted, "busy", text)


def _same_evidence(connection: Connection, _settings: Settings, wanted: Route, now: Now) -> Route | None:
    rows = connection.execute(
        "SELECT id, evidence->>'key' = %s AS same, (evidence->'window'->>'since')::timestamptz AS since, "
        "(evidence->'window'->>'until')::timestamptz AS until FROM decisions "
        "WHERE action <> 'none' AND (evidence->>'key' = %s OR (cause = %s AND action = %s)) ORDER BY id DESC LIMIT 20",
        (now.key, now.key, wanted.cause, wanted.action),
    ).fetchall()
    length = (now.until - now.since).total_seconds()
    for row in rows:
        known = row["since"] is not None and row["until"] is not None
        common = (min(now.until, row["until"]) - max(now.since, row["since"])).total_seconds() if known else 0.0
        if row["same"] or common > _MOSTLY * length:
            text = f"decision {row['id']} already acted on this evidence ({wanted.action}: {wanted.sentence})"
            return _held(wanted, "same_evidence", text)
    return None


def _cooldown(connection: Connection, settings: Settings, wanted: Route, _now: Now) -> Route | None:
    hours = settings.drift_cooldown_hours
    recent = connection.execute(
        "SELECT id, created_at FROM decisions WHERE action = %s "
        # An alert of one cause does not silence another's.
        "AND (action <> 'alert' OR cause = %s) AND created_at > now() - make_interval(secs => %s) ORDER BY id DESC LIMIT 1",
        (wanted.action, wanted.cause, hours * 3600),
    ).fetchone()
    if recent is None:
        return None
    return _held(
        wanted, "cooldown",
        f"{wanted.action} is due ({wanted.sentence}), but decision {recent['id']} of {recent['created_at']:%Y-%m-%d %H:%M} "
        f"did it less than {hours:g} hours ago",
    )  # fmt: skip


def _budget(connection: Connection, settings: Settings, wanted: Route, _now: Now) -> Route | None:
    if wanted.action != "train_again":
        return None
    row = _one(
        connection,
        "SELECT (SELECT count(*) FROM decisions WHERE action = 'train_again' AND created_at > now() - interval '30 days') "
        "AS trainings, (SELECT coalesce(sum((resource_seconds->>'gpu')::float), 0) / 3600 FROM stage_costs "
        "WHERE ended_at > now() - interval '30 days') AS gpu_hours",
    )
    most, hours = settings.drift_trainings, settings.gpu_budget_hours
    if row["trainings"] >= most:
        text = f"drift started {row['trainings']} trainings in 30 days, and {most} are allowed"
    elif hours is not None and row["gpu_hours"] >= hours:
        text = f"{row['gpu_hours']:.1f} GPU hours were used in 30 days, and {hours:g} are allowed"
    else:
        return None
    return _held(wanted, "budget", f"train_again is due ({wanted.sentence}), but {text}; a person may start it")


def _losing_candidates(connection: Connection, settings: Settings, wanted: Route, now: Now) -> Route | None:
    """Ask a person where two trainings of this cause led to no other model: a winner would have begun another lineage.

    Refused by the gate, by a person, or ended by a fault: all the same to who pays for them.
    """
    if wanted.action != "train_again":
        return None
    rows = connection.execute(
        "SELECT d.dag_run_id, (SELECT s.verdict FROM stage_runs s WHERE s.stage = 'gate' AND s.verdict IS NOT NULL "
        "AND right(s.run, length(d.dag_run_id) + 11) = '/fine_tune/' || d.dag_run_id ORDER BY s.id DESC LIMIT 1) AS verdict "
        "FROM decisions d WHERE d.action = 'train_again' AND d.cause = %s "
        "AND (%s::timestamptz IS NULL OR d.created_at >= %s) ORDER BY d.id DESC",
        (wanted.cause, now.lineage_since, now.lineage_since),
    ).fetchall()
    if len(rows) < _MOST_LOSERS:
        return None
    runs = " and ".join(f"{row['dag_run_id']}: {row['verdict'] or 'no verdict'}" for row in rows[:_MOST_LOSERS])
    text = f"training is due ({wanted.sentence}), but the last two led to no other model ({runs}); a person should look"
    asked = replace(wanted, action="alert", held_by="losing_candidates", sentence=text)
    return _same_evidence(connection, settings, asked, now) or _cooldown(connection, settings, asked, now) or asked


def _one(connection: Connection, query: str, *values: object) -> Mapping[str, Any]:
    row = connection.execute(query.encode(), values).fetchone()
    assert row is not None  # an aggregate has a row
    return row
