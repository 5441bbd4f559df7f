"""A window of requests as columns: what two windows are compared by. No question's text is in it.

`Window` holds a row a request: ids, moments (seconds since 1970, UTC), figures (NaN where a request has none), the
language of the question (empty: too short to tell), who asked and what was asked as 64-bit hashes, and the questions'
vectors (`vector[i]` is the row of `vectors` that request `i` has, -1 without one). Stored as one `.npz` without pickles.
Pure: reads and writes nothing but bytes. Fails with `DataError` when the bytes are no window.
"""

import io
from dataclasses import dataclass, fields
from typing import Any
from zipfile import BadZipFile

import numpy
from numpy.typing import NDArray

from tasks.errors import DataError

Floats = NDArray[numpy.float64]
Vectors = NDArray[numpy.float32]
COLUMNS = (
    "question_length", "best_score", "latency_ms", "failed", "answer_length", "tokens", "refused", "grounded", "negative",
)  # fmt: skip


@dataclass(frozen=True)
class Window:
    """Rows of a window, in order of time."""

    ids: NDArray[numpy.str_]
    at: Floats
    kinds: NDArray[numpy.str_]
    languages: NDArray[numpy.str_]
    clients: NDArray[numpy.int64]
    questions: NDArray[numpy.int64]
    figures: Floats
    """(rows, len(COLUMNS)); NaN where a request has no such figure."""
    vector: NDArray[numpy.int64]
    vectors: Vectors

    def __len__(self) -> int:
        return len(self.ids)

    def column(self, name: str) -> Floats:
        """Return a figure of every request, NaN where there is none."""
        found: Floats = self.figures[:, COLUMNS.index(name)]
        return found

    def take(self, kept: NDArray[Any]) -> "Window":
        """Return the rows that a mask or positions name, with their vectors."""
        places = self.vector[kept]
        used = places[places >= 0]
        moved = numpy.full(len(places), -1, dtype=numpy.int64)
        moved[places >= 0] = numpy.arange(len(used))
        plain = {name: getattr(self, name)[kept] for name in _ROWS}
        return Window(**plain, vector=moved, vectors=self.vectors[used])

    def to_bytes(self) -> bytes:
        """Return the window as an `.npz`."""
        body = io.BytesIO()
        numpy.savez(body, **{item.name: getattr(self, item.name) for item in fields(self)})
        return body.getvalue()

    @classmethod
    def from_bytes(cls, body: bytes) -> "Window":
        """Return the window that `to_bytes` wrote. Raises DataError."""
        try:
            with numpy.load(io.BytesIO(body), allow_pickle=False) as loaded:
                found = cls(**{item.name: loaded[item.name] for item in fields(cls)})
        except (ValueError, KeyError, BadZipFile, OSError) as error:
            raise DataError(
                f"expected a window of requests, found {error}. Next: run collect_requests again."
            ) from error
        if found.figures.shape != (len(found), len(COLUMNS)):
            raise DataError(
                f"expected {len(COLUMNS)} figures of {len(found)} requests, found {found.figures.shape}. "
                "Next: run collect_requests again."
            )
        return found


_ROWS = ("ids", "at", "kinds", "languages", "clients", "questions", "figures")


def window(rows: list[dict[str, Any]]) -> Window:
    """Return the window of rows that have COLUMNS, `id`, `at`, `kind`, `language`, `client`, `asked` and `vector` (or None)."""
    vectors = [row["vector"] for row in rows if row["vector"] is not None]
    has = numpy.array([row["vector"] is not None for row in rows], dtype=bool)
    places = numpy.full(len(rows), -1, dtype=numpy.int64)
    places[has] = numpy.arange(len(vectors))
    figures = [[numpy.nan if row[name] is None else float(row[name]) for name in COLUMNS] for row in rows]
    return Window(
        ids=numpy.array([row["id"] for row in rows], dtype="U36"),
        at=numpy.array([row["at"] for row in rows], dtype=numpy.float64),
        kinds=numpy.array([row["kind"] for row in rows], dtype="U8"),
        languages=numpy.array([row["language"] for row in rows], dtype="U8"),
        clients=numpy.array([row["client"] for row in rows], dtype=numpy.int64),
        questions=numpy.array([row["asked"] for row in rows], dtype=numpy.int64),
        figures=numpy.array(figures, dtype=numpy.float64).reshape(len(rows), len(COLUMNS)),
        vector=places,
        vectors=numpy.stack(vectors).astype(numpy.float32) if vectors else numpy.empty((0, 0), numpy.float32),
    )
