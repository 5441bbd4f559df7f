"""Simulated nights of requests, made from the demo's two sets of questions: for `benchmarks.drift`.

What is real: the questions (requests_before.jsonl and what is not answered of requests_after.jsonl), their vectors by the demo's
embedder, and their best scores against the chunks of the demo's corpus. What is simulated, with a seed: who asks what and
when (topic weights and clients vary from night to night by Dirichlet draws, so nights differ more than chance alone), a
paraphrase's distance from its question, and everything an answer has: its length, its groundedness, its rating, its time.

A shift changes a share of one night's requests:

- `knowledge`: they ask what the corpus does not hold; scores fall as they really do, answers leave their documents;
- `behaviour`: they ask what they always did, searches find it, and answers leave their documents and are rated badly;
- `traffic`: one new client sends questions that the corpus does not hold, or one question comes again and again from many,
  or requests fail; one of the three, drawn for each trial.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pydoc_data.topics import topics as pages
from typing import Any, Literal

import numpy

from benchmarks.stack import REPOSITORY
from tasks.monitoring.window import COLUMNS, Window

Shift = Literal["knowledge", "behaviour", "traffic"]
DAY = 86_400.0
CLIENTS, RATED, BAD, FAILED = 12, 0.2, 0.12, 0.01
PARAPHRASE = 0.35  # length of the noise beside a vector of length 1
SPREAD, CLIENT_SPREAD = 200.0, 60.0  # of the Dirichlet draws: the larger, the more alike the nights


@dataclass(frozen=True)
class Questions:
    """Questions with vectors and best scores; `family` numbers groups of wordings."""

    texts: list[str]
    family: Any
    vectors: Any
    scores: Any


@cache
def questions() -> tuple[Questions, Questions]:
    """Return the questions that the corpus answers, and those that it does not."""
    from tasks.knowledge.chunking import make_chunker
    from tasks.knowledge.embedders import load_embedder, load_tokenizer
    from tasks.models import fetch
    from tasks.settings import load_settings

    settings = load_settings(
        {
            "MILLRACE_DATABASE_URL": "postgresql://unused@127.0.0.1/unused",
            "MILLRACE_MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        }
    )
    embedder = load_embedder(settings)
    tokenizer = load_tokenizer(fetch(settings.embedder, REPOSITORY / ".millrace" / "models"))
    chunker = make_chunker("recursive", tokenizer, settings.chunk_tokens, 256)
    chunks = embedder.encode([chunk.text for text in pages.values() for chunk in chunker.chunks(text)])
    return _questions("before", embedder, chunks), _questions("after", embedder, chunks)


def _questions(name: str, embedder: Any, chunks: Any) -> Questions:
    lines = (REPOSITORY / "examples" / f"requests_{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if not row["family"].startswith("stay")]
    numbers: defaultdict[str, int] = defaultdict(lambda: len(numbers))
    texts = [row["question"] for row in rows]
    vectors = embedder.encode(texts, kind="query")
    family = numpy.array([numbers[row["family"]] for row in rows])
    return Questions(texts, family, vectors, (vectors @ chunks.T).max(axis=1))


class Traffic:
    """Nights of requests from one seed."""

    def __init__(self, seed: int) -> None:
        self._random = numpy.random.default_rng(seed)
        self._before, self._after = questions()
        families = int(self._before.family.max()) + 1
        self._weights = self._random.dirichlet(numpy.full(families, 5.0))
        self._clients = self._random.dirichlet(numpy.full(CLIENTS, 4.0))
        self._night = 0
        self._oddity = int(self._random.integers(3))

    def night(self, rows: int, shift: Shift | None = None, share: float = 0.0) -> Window:
        """Return one night of requests, a share of them shifted."""
        random = self._random
        weights = random.dirichlet(self._weights * SPREAD)
        clients = random.dirichlet(self._clients * CLIENT_SPREAD)
        odd = random.random(rows) < share if shift else numpy.zeros(rows, dtype=bool)
        asked = self._draw(self._before, weights, rows)
        vectors, scores = self._before.vectors[asked].copy(), self._before.scores[asked].copy()
        lengths = numpy.array([len(self._before.texts[place]) for place in asked], dtype=float)
        figures = self._figures(rows)
        who = random.choice(CLIENTS, rows, p=clients).astype(numpy.int64)
        identity = asked * 1_000_003 + random.integers(1_000_000, size=rows)  # wordings differ
        foreign = odd if shift == "knowledge" or (shift == "traffic" and self._oddity < 2) else numpy.zeros(rows, bool)
        if foreign.any():
            others = random.integers(len(self._after.texts), size=rows)
            if shift == "traffic" and self._oddity == 1:
                others[:] = others[0]
                identity[foreign] = -7
            vectors[foreign], scores[foreign] = (
                self._after.vectors[others[foreign]],
                self._after.scores[others[foreign]],
            )
            lengths[foreign] = [len(self._after.texts[place]) for place in others[foreign]]
            if shift == "traffic" and self._oddity == 0:
                who[foreign] = CLIENTS + 1
        if shift == "traffic" and self._oddity == 2:
            figures["failed"][odd] = 1.0
        elif shift:
            self._worse(figures, odd)
        figures |= {"best_score": scores + 0.02 * random.standard_normal(rows), "question_length": lengths}
        return self._window(rows, figures, who, identity, self._noisy(vectors))

    def alike(self, rows: int) -> Any:
        """Return vectors of questions of one mix of topics."""
        return self._noisy(self._before.vectors[self._draw(self._before, self._weights, rows)])

    def elsewhere(self, rows: int) -> Any:
        """Return vectors of questions that the corpus does not hold, of two families."""
        families = self._random.choice(int(self._after.family.max()) + 1, 2, replace=False)
        places = numpy.flatnonzero(numpy.isin(self._after.family, families))
        return self._noisy(self._after.vectors[self._random.choice(places, rows)])

    def _noisy(self, vectors: Any) -> Any:
        """Return vectors of paraphrases, of length 1."""
        noise = PARAPHRASE / numpy.sqrt(vectors.shape[1]) * self._random.standard_normal(vectors.shape)
        moved = vectors + noise
        return (moved / numpy.linalg.norm(moved, axis=1, keepdims=True)).astype(numpy.float32)

    def _draw(self, among: Questions, weights: Any, rows: int) -> Any:
        sizes = numpy.bincount(among.family, minlength=len(weights))
        chances = weights[among.family] / sizes[among.family]
        return self._random.choice(len(among.texts), rows, p=chances / chances.sum())

    def _figures(self, rows: int) -> dict[str, Any]:
        random = self._random
        rated = random.random(rows) < RATED
        return {
            "grounded": random.beta(11, 4, rows),
            "negative": numpy.where(rated, random.random(rows) < BAD, numpy.nan),
            "answer_length": random.gamma(6, 60, rows),
            "tokens": random.gamma(9, 60, rows),
            "latency_ms": random.gamma(8, 100, rows),
            "failed": (random.random(rows) < FAILED).astype(float),
            "refused": numpy.zeros(rows),
        }

    def _worse(self, figures: dict[str, Any], odd: Any) -> None:
        """Let some answers leave their documents, and be rated so."""
        figures["grounded"][odd] = self._random.beta(4, 8, int(odd.sum()))
        rated = odd & ~numpy.isnan(figures["negative"])
        figures["negative"][rated] = self._random.random(int(rated.sum())) < 0.6

    def _window(self, rows: int, figures: dict[str, Any], who: Any, asked: Any, vectors: Any) -> Window:
        failed = figures["failed"] == 1.0
        for name in ("grounded", "negative", "answer_length", "tokens", "refused"):
            figures[name] = numpy.where(failed, numpy.nan, figures[name])
        start = self._night * DAY
        self._night += 1
        return Window(
            ids=numpy.array([f"{self._night}-{row}" for row in range(rows)], dtype="U36"),
            at=numpy.sort(start + DAY * self._random.random(rows)),
            kinds=numpy.full(rows, "chat", dtype="U8"),
            languages=numpy.full(rows, "en", dtype="U8"),
            clients=who,
            questions=asked.astype(numpy.int64),
            figures=numpy.column_stack([figures[name] for name in COLUMNS]).astype(numpy.float64),
            vector=numpy.arange(rows),
            vectors=vectors,
        )


def joined(sides: list[Window]) -> Window:
    """Return several nights, each request with a vector, as one window."""
    names = ("ids", "at", "kinds", "languages", "clients", "questions", "figures", "vectors")
    plain = {name: numpy.concatenate([getattr(side, name) for side in sides]) for name in names}
    return Window(**plain, vector=numpy.arange(sum(map(len, sides))))
