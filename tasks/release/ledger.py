"""The ledger of releases: rows are only added, and the newest row is what is live.

Reads and writes table `releases` (a trigger refuses to change or remove its rows). One release names
everything the assistant answers with: adapter and base model (where a whole model was trained, that model is
the base, and there is no adapter), prompt text, index version, evidence, and who approved it. `append` adds
one row in the caller's transaction, under an advisory lock, and only when the live release is still the one
that the decision was made against. Fails with `ReleaseError`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Literal, LiteralString

from psycopg import sql

from tasks.database import Connection, connect
from tasks.errors import ReleaseError
from tasks.settings import Settings

Kind = Literal["promotion", "rollback"]
_LOCK = 0x4C656467  # any constant number, other than the migrations'; ours spells "Ledg"


@dataclass(frozen=True)
class Parts:
    """What a release is made of. Two releases with equal parts answer alike."""

    model_name: str
    model_version: str
    adapter_uri: str | None
    adapter_sha256: str | None
    base_model: str
    base_revision: str
    prompt_sha256: str
    prompt: str
    index_version: int
    embedder: str
    dataset_sha256: str | None
    code_revision: str
    evidence_uri: str
    evidence_sha256: str
    prompt_version: str | None = None
    """`prompts:/NAME/VERSION` of MLflow's prompt registry; None where MLflow was away, or had none yet."""


@dataclass(frozen=True)
class Release:
    """One row of the ledger; `release` is its number."""

    release: int
    created_at: datetime
    kind: Kind
    model_name: str
    model_version: str
    adapter_uri: str | None
    adapter_sha256: str | None
    base_model: str
    base_revision: str
    prompt_sha256: str
    prompt: str
    index_version: int
    embedder: str
    dataset_sha256: str | None
    code_revision: str
    evidence_uri: str
    evidence_sha256: str
    approved_by: str
    reason: str
    run: str
    restores: int | None
    prompt_version: str | None = None

    def parts(self) -> Parts:
        """Return what this release is made of."""
        return Parts(**{item.name: getattr(self, item.name) for item in fields(Parts)})

    @property
    def identity(self) -> tuple[str | None, str]:
        """What names the model: its adapter and base, or only the base where the whole model was trained."""
        return self.adapter_sha256, self.base_revision

    def answers_like(self, other: "Release | Parts") -> bool:
        """Return whether both answer with the same model, prompt and index version."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("adapter_sha256", "base_revision", "prompt_sha256", "index_version")
        )


@contextmanager
def ledger(settings: Settings) -> Iterator[Connection]:
    """Open the database of the ledger; one transaction, committed at the end of the block."""
    with connect(settings.database_url.get_secret_value()) as connection:
        yield connection


def live(connection: Connection) -> Release | None:
    """Return the live release, or None before the first one."""
    return _one(connection, "ORDER BY release DESC LIMIT 1")


def get(connection: Connection, number: int) -> Release:
    """Return release `number`. Raises ReleaseError when the ledger has none."""
    found = _one(connection, "WHERE release = %s", number)
    if found is None:
        newest = live(connection)
        known = f"1 to {newest.release}" if newest else "none at all"
        raise ReleaseError(
            f"expected a release of the ledger ({known}), found {number}. Next: choose one that `python -m tasks releases` shows."
        )
    return found


def by_run(connection: Connection, run: str) -> Release | None:
    """Return the release that the run folder `run` made, or None."""
    return _one(connection, "WHERE run = %s", run)


def history(connection: Connection, limit: int = 20) -> list[Release]:
    """Return the newest releases, newest first."""
    rows = connection.execute(
        sql.SQL("SELECT {} FROM releases ORDER BY release DESC LIMIT %s").format(_COLUMNS), (limit,)
    )
    return [Release(**row) for row in rows]


def before(connection: Connection, release: Release) -> Release | None:
    """Return the newest earlier release that answers differently, or None.

    A rollback stands for what it restores: going back from it leads to what was live before that,
    never forward to the release that was rolled back.
    """
    origin = release
    while origin.restores is not None:
        origin = get(connection, origin.restores)
    for earlier in history(connection, limit=origin.release + 1_000):
        if earlier.release < origin.release and not earlier.answers_like(origin):
            return earlier
    return None


def taken_back(connection: Connection, values: Mapping[str, object]) -> tuple[int, Release] | None:
    """Return the newest release with these columns that a rollback took back, and that rollback; None where none did.

    A rollback takes back every release after the one it restores, in the parts that the restored one has not.
    """
    row = connection.execute(
        sql.SQL(
            "SELECT taken.release AS taken, back.release AS back FROM releases back "
            "JOIN releases kept ON kept.release = back.restores "
            "JOIN releases taken ON taken.release > kept.release AND taken.release < back.release "
            "WHERE back.kind = 'rollback' AND ({taken}) IS NOT DISTINCT FROM ({wanted}) "
            "AND ({kept}) IS DISTINCT FROM ({taken}) ORDER BY back.release DESC, taken.release DESC LIMIT 1"
        ).format(
            taken=sql.SQL(", ").join(sql.Identifier("taken", name) for name in values),
            kept=sql.SQL(", ").join(sql.Identifier("kept", name) for name in values),
            wanted=sql.SQL(", ").join(map(sql.Placeholder, values)),
        ),
        values,
    ).fetchone()
    return (int(row["taken"]), get(connection, int(row["back"]))) if row else None


def lock(connection: Connection) -> None:
    """Hold the ledger until the end of the transaction: releases are made, and index versions retired, one at a time."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))


def append(
    connection: Connection,
    parts: Parts,
    *,
    kind: Kind,
    approved_by: str,
    reason: str,
    run: str,
    expected_live: int | None,
    restores: int | None = None,
) -> Release:
    """Add one row and return it; a run that already made the same release gets that one.

    Raises ReleaseError when the run made another one, or `expected_live` is no longer live.
    """
    lock(connection)
    made = by_run(connection, run)
    if made is not None:
        if not made.answers_like(parts):
            raise ReleaseError(
                f"expected run {run} to make one release, found that it made release {made.release} of other parts. "
                "Next: trigger a new run."
            )
        return made
    now = live(connection)
    if (now.release if now else None) != expected_live:
        raise ReleaseError(
            f"expected release {expected_live or 'none'} to be live still, found {now.release if now else 'none'}. "
            "Next: trigger a new run; it compares with what is live now."
        )
    values = asdict(parts) | {
        "kind": kind,
        "approved_by": approved_by,
        "reason": reason,
        "run": run,
        "restores": restores,
    }
    row = connection.execute(
        sql.SQL("INSERT INTO releases ({}) VALUES ({}) RETURNING {}").format(
            sql.SQL(", ").join(map(sql.Identifier, values)),
            sql.SQL(", ").join(map(sql.Placeholder, values)),
            _COLUMNS,
        ),
        values,
    ).fetchone()
    assert row is not None  # INSERT ... RETURNING gives a row or raises
    return Release(**row)


_COLUMNS = sql.SQL(", ").join(sql.Identifier(item.name) for item in fields(Release))


def _one(connection: Connection, clause: LiteralString, *values: object) -> Release | None:
    query = sql.SQL("SELECT {} FROM releases ").format(_COLUMNS) + sql.SQL(clause)
    row = connection.execute(query, values).fetchone()
    return Release(**row) if row else None
