"""Vectors by text: from the table `embedding_cache` where they are, else from the embedder, which fills it.

Reads and writes `embedding_cache`. The model is loaded only when a vector is missing, so that unchanged
work costs no model. What was embedded is stored batch by batch: a run that is killed goes on where it
was. Fails with `ModelError` when a vector is missing and the embedder of that name cannot be loaded.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.database import connect
from tasks.knowledge.embedder import load_embedder
from tasks.settings import Settings

_BATCHES_A_COMMIT = 16


@dataclass(frozen=True)
class Vectors:
    """Vectors by the SHA-256 of their text, and where they came from."""

    by_sha256: dict[str, Any]
    embedded: int
    from_cache: int
    truncated: int


def text_sha256(text: str) -> str:
    """Return the key of a text in the cache."""
    return hashlib.sha256(text.encode()).hexdigest()


def vectors(
    settings: Settings,
    embedder: str,
    texts: Iterable[str],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    threads: int | None = None,
) -> Vectors:
    """Return a vector for every text, by the embedder of that name; equal texts are embedded once."""
    wanted = {text_sha256(text): text for text in texts}
    with connect() as connection:
        found = {
            row["chunk_sha256"]: _array(row["embedding"])
            for row in connection.execute(
                "SELECT chunk_sha256, embedding FROM embedding_cache WHERE embedder = %s AND chunk_sha256 = ANY(%s)",
                (embedder, list(wanted)),
            )
        }
    missing = [sha256 for sha256 in wanted if sha256 not in found]
    if not missing:
        return Vectors(found, 0, len(found), 0)
    model = load_embedder(settings, embedder, threads)
    from_cache = len(found)
    fresh: list[tuple[str, Any]] = []
    batches = model.encode_batches([wanted[sha256] for sha256 in missing])
    for number, (positions, part) in enumerate(batches, start=1):
        fresh += [(missing[position], vector) for position, vector in zip(positions, part, strict=True)]
        if number % _BATCHES_A_COMMIT == 0:
            _store(embedder, fresh)
            found.update(fresh)
            fresh = []
        progress(len(found) - from_cache + len(fresh), len(missing))
    _store(embedder, fresh)
    found.update(fresh)
    return Vectors(found, len(missing), from_cache, model.truncated)


def _array(value: Any) -> Any:
    """Return a stored vector as a float32 array, whatever the adapter gives."""
    import numpy

    return numpy.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value, dtype=numpy.float32)


def _store(embedder: str, fresh: Sequence[tuple[str, Any]]) -> None:
    with connect() as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO embedding_cache (chunk_sha256, embedder, embedding) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            [(sha256, embedder, vector) for sha256, vector in fresh],
        )
