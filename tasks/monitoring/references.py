"""What a window is compared with: the first days of requests that the live model and prompt answered.

The lineage of the live release is every release with its model, prompt and embedder: a release that changes the index only, as
most nights of sync_knowledge make one, keeps the reference; a new model or prompt starts another, and so does a new embedder,
whose scores and vectors are others. Until a lineage is
REFERENCE_DAYS old its reference grows; then it is frozen: written once to `s3://BUCKET/references/` and to table
`drift_references`, and never made anew, so that a slow drift is not taken for the new usual. Fails with `DataError` when
the frozen bytes are not those of the table.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tasks.contracts import Artifact
from tasks.database import Connection
from tasks.errors import DataError
from tasks.monitoring.window import Window
from tasks.storage import Storage

REFERENCE_DAYS = 7
MOST_ROWS = 20_000


@dataclass(frozen=True)
class Lineage:
    """The releases that answer with the live model, prompt and embedder. `root` is the first of them, 0 before any release."""

    root: int
    releases: list[int] | None
    """None before any release: every request counts."""
    since: datetime | None = None
    """When it became live last: the first release after the last one of another model, prompt or embedder."""


@dataclass(frozen=True)
class Frozen:
    """A row of `drift_references`."""

    release: int
    uri: str
    sha256: str
    rows: int
    total: int
    """Requests of its time, of which `rows` were kept."""
    first_at: datetime
    last_at: datetime
    embedder: str


def lineage(connection: Connection) -> Lineage:
    """Return the lineage of the live release."""
    found = connection.execute(
        "SELECT release FROM releases WHERE (coalesce(adapter_sha256, ''), base_revision, prompt_sha256, embedder) = "
        "(SELECT coalesce(adapter_sha256, ''), base_revision, prompt_sha256, embedder FROM releases ORDER BY release DESC LIMIT 1) "
        "ORDER BY release"
    ).fetchall()
    numbers = [int(row["release"]) for row in found]
    if not numbers:
        return Lineage(0, None)
    row = connection.execute(
        "SELECT min(created_at) AS since FROM releases WHERE release > "
        "coalesce((SELECT max(release) FROM releases WHERE release <> ALL(%s)), 0)",
        (numbers,),
    ).fetchone()
    return Lineage(numbers[0], numbers, row["since"] if row else None)


def first_request(connection: Connection, of: Lineage) -> datetime | None:
    """Return when the first request of a lineage was answered (since its reference began anew, where it did), or None."""
    row = connection.execute(
        "SELECT min(created_at) AS first FROM requests WHERE (%s::integer[] IS NULL OR release = ANY(%s::integer[])) "
        "AND created_at >= coalesce((SELECT max(at) FROM drift_beginnings WHERE release = %s), '-infinity')",
        (of.releases, of.releases, of.root),
    ).fetchone()
    return row["first"] if row else None


def begin_anew(connection: Connection, by: str, reason: str) -> Lineage:
    """Let the reference of the live lineage begin now: what is usual has changed, and somebody says so."""
    of = lineage(connection)
    connection.execute("INSERT INTO drift_beginnings (release, by, reason) VALUES (%s, %s, %s)", (of.root, by, reason))
    # The bytes stay where they are; nothing names them any more.
    connection.execute("DELETE FROM drift_references WHERE release = %s", (of.root,))
    return of


def ends(first: datetime) -> datetime:
    """Return when the reference of a lineage, whose first request came at `first`, is complete."""
    return first + timedelta(days=REFERENCE_DAYS)


def frozen(connection: Connection, of: Lineage) -> Frozen | None:
    """Return the frozen reference of a lineage, or None."""
    row = connection.execute(
        "SELECT release, uri, sha256, rows, total, first_at, last_at, embedder FROM drift_references WHERE release = %s",
        (of.root,),
    ).fetchone()
    return Frozen(**row) if row else None


def read(storage: Storage, of: Frozen) -> Window:
    """Return the window of a frozen reference. Raises DataError."""
    window = Window.from_bytes(storage.get(Artifact(uri=of.uri, sha256=of.sha256, bytes=0, rows=of.rows)))
    if len(window) != of.rows:
        raise DataError(
            f"expected {of.rows} requests in {of.uri}, found {len(window)}. "
            "Next: python -m tasks renew-reference --by YOU --reason WHY."
        )
    return window


def freeze(
    connection: Connection, storage: Storage, bucket: str, of: Lineage, window: Window, total: int, embedder: str
) -> Frozen:
    """Keep a window as the reference of a lineage; where another run was first, return that run's."""
    name = f"{bucket}/references/release-{of.root}"
    body = window.to_bytes()
    # Named by its rows: two runs at once write two objects, and the table names one.
    artifact = storage.put_bytes(f"{name}/{window.ids[0]}-{len(window)}.npz", body, rows=len(window))
    moments = [datetime.fromtimestamp(float(window.at[place]), UTC) for place in (0, -1)]
    connection.execute(
        "INSERT INTO drift_references (release, uri, sha256, rows, total, first_at, last_at, embedder) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (of.root, artifact.uri, artifact.sha256, len(window), total, *moments, embedder),
    )
    kept = frozen(connection, of)
    assert kept is not None  # the row stands, ours or another's
    return kept
