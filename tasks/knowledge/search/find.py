"""`search`: one question, one ranking of chunks, each with its place and how it was found.

Reads `index_versions` and the version's table; writes nothing. Fails with `DataError` when the version is not
there, and with `OptionError` for a mode that is not known or that needs the question's text and has none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from tasks.database import Connection
from tasks.errors import OptionError, nearest
from tasks.knowledge import index_tables
from tasks.knowledge.index_tables import Version
from tasks.knowledge.search import candidates
from tasks.knowledge.search.candidates import Row
from tasks.knowledge.search.filters import Filters

if TYPE_CHECKING:
    import numpy

Mode = Literal["vector", "text", "hybrid"]
MODES: tuple[Mode, ...] = get_args(Mode)
# Candidates that HNSW looks at; what they find, measured on real chunks, is in benchmarks/results/index_recall.jsonl.
EF_SEARCH = 80
# Reciprocal rank fusion: 1 / (60 + rank), summed over the lists (Cormack, Clarke, Buettcher, SIGIR 2009).
RRF = 60
# However few hits are asked for, so many places of each list are fused, and so many hits reranked: the best few are those
# that the check, which asks for more, has measured.
FUSED, RERANKED = 100, 50


class Reranks(Protocol):
    """What orders hits anew (tasks.knowledge.reranker)."""

    def score(self, question: str, texts: Sequence[str]) -> list[float]:
        """Return how well each text answers the question; more is better."""
        ...


@dataclass(frozen=True)
class Hit:
    """One chunk found. `score` is its cosine similarity to the question, 1 at most, however it was found.

    `text` is `start` to `end` of the document's text, below `headings`, on `page` to `last_page` where it has pages;
    `covered` are all headings that any of it stands below. `parts` tells how it came to its place: vector_rank, text_rank,
    text_score, rrf, rerank, those that apply.
    """

    chunk_id: str
    document_uri: str
    title: str
    text: str
    ordinal: int
    score: float
    start: int = 0
    end: int = 0
    headings: tuple[str, ...] = ()
    page: int | None = None
    last_page: int | None = None
    covered: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    parts: Mapping[str, float] = field(default_factory=dict, hash=False)
    index_version: int = 0


def search(
    connection: Connection,
    version: int | None,
    query_vector: "Sequence[float] | numpy.ndarray[Any, Any]",
    k: int,
    *,
    text: str | None = None,
    mode: Mode = "vector",
    where: Filters | None = None,
    ef: int = EF_SEARCH,
    reranker: Reranks | None = None,
) -> list[Hit]:
    """Return the `k` best chunks of an index version (None: the current one of the corpus `default`), best first.

    Who asks for more gets the same first ones (in hybrid for up to FUSED). `text` is the question itself, which the modes
    `text` and `hybrid` and a reranker need. Raises DataError, OptionError.
    """
    if mode not in MODES:
        raise OptionError(
            f"expected a mode of {', '.join(MODES)}, found {mode!r}.{nearest(mode, MODES)} Next: correct it."
        )
    if text is None and (mode != "vector" or reranker is not None):
        raise OptionError(
            f"expected the question's text for mode {mode}{' with a reranker' if reranker else ''}, found none. "
            "Next: pass text=."
        )
    asked = _Asked(connection, index_tables.get(connection, version), query_vector, text or "", where or Filters(), ef)
    if reranker is None:
        return _FINDERS[mode](asked, k)
    hits = _FINDERS[mode](asked, max(k, RERANKED))
    return [*_reranked(hits[:RERANKED], asked.text, reranker), *hits[RERANKED:]][:k]


@dataclass(frozen=True)
class _Asked:
    connection: Connection
    version: Version
    vector: Any
    text: str
    where: Filters
    ef: int

    def near(self, k: int) -> list[Hit]:
        rows = candidates.nearest(self.connection, self.version, self.vector, k, self.where, self.ef)
        return [self._hit(row, {"vector_rank": place}) for place, row in enumerate(rows, start=1)]

    def worded(self, k: int, marks: bool = True) -> list[Hit]:
        rows = candidates.by_words(self.connection, self.version, self.text, self.vector, k, self.where, marks=marks)
        return [
            self._hit(row, {"text_rank": place, "text_score": row.pop("text_score")})
            for place, row in enumerate(rows, start=1)
        ]

    def _hit(self, row: Row, parts: Mapping[str, float]) -> Hit:
        headings = tuple(row["headings"])
        reach = {
            "last_page": row["page"] if row["last_page"] is None else row["last_page"],
            "covered": headings if row["covered"] is None else tuple(row["covered"]),
        }
        return Hit(**row | {"headings": headings} | reach, parts=parts, index_version=self.version.version)


def _hybrid(asked: _Asked, k: int) -> list[Hit]:
    """Fuse both lists. A chunk that only one of them found gets that one's share.

    People ask in sentences: what would exclude or demand words in the mode `text` (-m, "...") is a word like others here.
    """
    depth = max(k, FUSED)
    found: dict[str, Hit] = {}
    for rank, hits in (("vector_rank", asked.near(depth)), ("text_rank", asked.worded(depth, marks=False))):
        for hit in hits:
            before = found.get(hit.chunk_id)
            earlier = dict(before.parts) if before else {}
            fused = earlier.pop("rrf", 0.0) + 1 / (RRF + hit.parts[rank])
            found[hit.chunk_id] = replace(hit, parts={**earlier, **hit.parts, "rrf": fused})
    ordered = sorted(found.values(), key=lambda hit: (-hit.parts["rrf"], -hit.score, hit.document_uri, hit.ordinal))
    return ordered[:k]


def _reranked(hits: Sequence[Hit], question: str, reranker: Reranks) -> list[Hit]:
    scores = reranker.score(question, [hit.text for hit in hits])
    marked = [
        replace(hit, parts={**hit.parts, "rerank": float(score)}) for hit, score in zip(hits, scores, strict=True)
    ]
    return sorted(marked, key=lambda hit: -hit.parts["rerank"])  # a stable sort: equals keep the order they had


_FINDERS = {"vector": _Asked.near, "text": _Asked.worded, "hybrid": _hybrid}
