"""The table `quarantine`: what was rejected, by which rule and why.

Writes rows once a run, item and rule; a rerun replaces the reason. Fails only as the database does.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tasks.database import Connection

_EXCERPT = 300


@dataclass(frozen=True)
class Rejection:
    """One item and one rule that it breaks."""

    item: str
    rule: str
    reason: str
    excerpt: str


def record(
    connection: Connection, kind: Literal["document", "chunk", "example"], run: str, rejections: Iterable[Rejection]
) -> None:
    """Write rejections; an item that breaks two rules has two rows."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO quarantine (kind, item, rule, reason, excerpt, run) VALUES (%s, %s, %s, %s, %s, %s) "
            "ON CONFLICT (run, kind, item, rule) DO UPDATE SET reason = excluded.reason, excerpt = excluded.excerpt",
            [(kind, r.item, r.rule, _storable(r.reason), _storable(r.excerpt), run) for r in rejections],
        )


def rejections(item: str, text: str, broken: Mapping[str, str]) -> list[Rejection]:
    """Return the rejections of one item from what a validation report says of its row."""
    return [Rejection(item, rule, reason, text[:_EXCERPT]) for rule, reason in broken.items()]


def _storable(text: str) -> str:
    # Postgres text cannot hold NUL; lone surrogates cannot be encoded.
    return text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()
