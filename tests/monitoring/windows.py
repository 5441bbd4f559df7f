"""Windows of requests made for tests: about topics, with figures that a test may change."""

from typing import Any

import numpy

from tasks.monitoring.window import COLUMNS, Window, window

DIMENSIONS = 32
TOPICS = numpy.random.default_rng(0).standard_normal((12, DIMENSIONS))


def made(rows: int, seed: int, topics: tuple[int, ...] = (0, 1, 2, 3), **changes: Any) -> Window:
    """Return a window; a change is a value, or a function of the random generator, by column."""
    random = numpy.random.default_rng(seed)
    return window([_row(number, random, topics, changes) for number in range(rows)])


def _row(
    number: int, random: numpy.random.Generator, topics: tuple[int, ...], changes: dict[str, Any]
) -> dict[str, Any]:
    vector = TOPICS[int(random.choice(topics))] + 0.3 * random.standard_normal(DIMENSIONS)
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {
        "id": str(random.integers(2**62)),
        "at": 1_700_000_000.0 + 60 * number,
        "kind": "chat",
        "language": "en",
        "client": int(random.integers(8)),
        "asked": int(random.integers(2**62)),
        "vector": (vector / numpy.linalg.norm(vector)).astype(numpy.float32),
        "question_length": float(random.gamma(6, 10)),
        "best_score": float(0.6 + 0.08 * random.standard_normal()),
        "latency_ms": float(random.gamma(8, 100)),
        "failed": 0.0,
        "answer_length": float(random.gamma(6, 60)),
        "tokens": float(random.gamma(9, 60)),
        "refused": float(random.random() < 0.03),
        "grounded": float(numpy.clip(0.7 + 0.1 * random.standard_normal(), 0, 1)),
        "negative": float(random.random() < 0.1) if random.random() < 0.3 else None,
    }
    return row | {name: value(random) if callable(value) else value for name, value in changes.items()}


def joined(*sides: Window) -> Window:
    """Return the rows of several windows as one."""
    offsets = numpy.cumsum([0, *(len(side.vectors) for side in sides)])
    places = [
        numpy.where(side.vector < 0, -1, side.vector + start) for side, start in zip(sides, offsets, strict=False)
    ]
    names = ("ids", "at", "kinds", "languages", "clients", "questions", "figures")
    plain = {name: numpy.concatenate([getattr(side, name) for side in sides]) for name in names}
    return Window(**plain, vector=numpy.concatenate(places), vectors=numpy.concatenate([s.vectors for s in sides]))
