"""The rows of `shadow_answers`: what a candidate answered to a chat, beside what the live model took for it.

Writes that table, in the caller's transaction. Fails only as the database does.
"""

from dataclasses import asdict, dataclass
from uuid import UUID

from tasks.database import Connection


@dataclass(frozen=True)
class ShadowRow:
    """One row of `shadow_answers`."""

    request_id: UUID
    model_name: str
    model_version: str
    adapter_sha256: str
    release: int
    prompt_tokens: int
    live_ms: float
    live_finish_reason: str
    answer: str | None = None
    finish_reason: str | None = None
    completion_tokens: int = 0
    latency_ms: float | None = None
    grounded: float | None = None
    error: str | None = None


def insert(connection: Connection, row: ShadowRow) -> None:
    """Add one row; the same again changes nothing."""
    values = asdict(row)
    connection.execute(
        f"INSERT INTO shadow_answers ({', '.join(values)}) VALUES ({', '.join(f'%({name})s' for name in values)}) "
        "ON CONFLICT DO NOTHING".encode(),
        values,
    )
