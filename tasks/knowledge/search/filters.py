"""What a search may be narrowed to, as values; they become SQL here and nowhere else."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from psycopg import sql


@dataclass(frozen=True)
class Filters:
    """Conditions that a chunk must all meet; the empty one lets everything pass.

    Chunks of an index made before it was kept how far they reach are taken by where they start.
    """

    prefix: str | None = None  # of the document's URI
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)  # contained in the document's metadata
    heading: str | None = None  # one of the headings above any of the chunk, letter for letter
    first_page: int | None = None  # a chunk on pages 3 to 5 is on page 4
    last_page: int | None = None

    def condition(self) -> tuple[sql.Composable, dict[str, Any]]:
        """Return an SQL condition on a chunk's row and its values; TRUE when nothing is asked."""
        parts: list[tuple[sql.SQL, dict[str, Any]]] = []
        if self.prefix:
            parts.append((sql.SQL("starts_with(document_uri, %(prefix)s)"), {"prefix": self.prefix}))
        if self.metadata:
            parts.append((sql.SQL("metadata @> %(metadata)s::jsonb"), {"metadata": json.dumps(dict(self.metadata))}))
        if self.heading is not None:
            parts.append((sql.SQL("%(heading)s = ANY(coalesce(covered, headings))"), {"heading": self.heading}))
        if self.first_page is not None:
            parts.append((sql.SQL("coalesce(last_page, page) >= %(first_page)s"), {"first_page": self.first_page}))
        if self.last_page is not None:
            parts.append((sql.SQL("page <= %(last_page)s"), {"last_page": self.last_page}))
        values = {name: value for _condition, given in parts for name, value in given.items()}
        return sql.SQL(" AND ").join([condition for condition, _given in parts] or [sql.SQL("TRUE")]), values
