"""What a walk through lineage reads from, and what it could not follow. Reads and writes nothing by itself."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tasks.database import Connection
from tasks.storage import Storage

SHOWN = 10  # names of a list that are shown where --rows does not ask for all
Found = dict[str, Any]


@dataclass
class Walk:
    """What is read from, whether every name is wanted, and what could not be followed."""

    connection: Connection
    storage: Storage
    bucket: str
    rows: bool = False
    lost: list[str] = field(default_factory=list)

    def listed(self, names: Iterable[str]) -> Found:
        """Return how many names there are, and the first of them or all."""
        found = list(names)
        return {"count": len(found), "first" if not self.rows else "all": found if self.rows else found[:SHOWN]}
