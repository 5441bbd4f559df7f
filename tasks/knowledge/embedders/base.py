"""What every embedder can do, and the batches that the local ones make.

Reads and writes nothing. Texts are sorted by length and packed into batches of a token budget, so that little is spent on
padding; widths are rounded up to a multiple, so that a backend meets few shapes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tasks.knowledge.embedders.folder import Kind, ModelFolder

if TYPE_CHECKING:
    import numpy
    from tokenizers import Tokenizer

    Vectors = numpy.ndarray[Any, numpy.dtype[numpy.float32]]

Plan = Callable[[Sequence[int]], Iterable[list[int]]]  # lengths in tokens to batches of positions


class Embedder(Protocol):
    """A model that is ready. Vectors are float32 and of length 1, so that a dot product is the cosine."""

    @property
    def name(self) -> str:
        """The identity: REFERENCE@DIGEST+PRECISION."""
        ...

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest text, in tokens, special ones included."""
        ...

    @property
    def tokenizer(self) -> "Tokenizer":
        """The model's own tokenizer."""
        ...

    @property
    def truncated(self) -> int:
        """Texts cut so far because they were longer than max_tokens."""
        ...

    def encode(self, texts: Sequence[str], kind: Kind = "document") -> "Vectors":
        """Return one vector a text, in order: float32, shape (texts, dimensions), normalised."""
        ...

    def encode_batches(self, texts: Sequence[str], kind: Kind = "document") -> "Iterator[tuple[list[int], Vectors]]":
        """Yield (positions, their vectors) batch by batch, for callers that store or show progress."""
        ...


@dataclass(frozen=True)
class Batch:
    """Texts of similar length as a backend takes them: int64 arrays of shape (texts, width)."""

    positions: list[int]
    ids: Any
    mask: Any


class Runner(Protocol):
    """A backend: token ids to vectors."""

    budget: int  # padded tokens of a batch
    multiple: int  # to which widths are rounded up

    def run(self, batches: Iterable[Batch]) -> "Iterator[tuple[list[int], Vectors]]":
        """Yield the vectors of each batch, in order; batches are taken as they are needed. Safe in several threads."""
        ...


class LocalEmbedder:
    """An Embedder of a folder's tokenizer and prompts, and a backend that runs its weights."""

    def __init__(self, folder: ModelFolder, name: str, runner: Runner) -> None:
        self.name = name
        self.tokenizer = folder.tokenizer
        self.max_tokens = folder.max_tokens
        self.dimensions = folder.dimensions
        self.truncated = 0
        self.runner = runner
        self.plan: Plan = lambda lengths: token_batches(lengths, runner.budget, runner.multiple)
        self._folder = folder

    def encode(self, texts: Sequence[str], kind: Kind = "document") -> "Vectors":
        """Return one vector a text, in order: float32, shape (texts, dimensions), normalised."""
        import numpy

        vectors = numpy.empty((len(texts), self.dimensions), dtype=numpy.float32)
        for positions, part in self.encode_batches(texts, kind):
            vectors[positions] = part
        return vectors

    def encode_batches(self, texts: Sequence[str], kind: Kind = "document") -> "Iterator[tuple[list[int], Vectors]]":
        """Yield (positions, their vectors) batch by batch, longest texts first, for callers that show progress."""
        prompt = self._folder.prompts[kind]
        encoded = [encoding.ids for encoding in self.tokenizer.encode_batch_fast([prompt + text for text in texts])]
        self.truncated += sum(len(ids) > self.max_tokens for ids in encoded)
        encoded = [self._cut(ids) for ids in encoded]
        plan = self.plan([len(ids) for ids in encoded])
        yield from self.runner.run(self._batch(positions, encoded) for positions in plan)

    def _cut(self, ids: list[int]) -> list[int]:
        # The last token is the closing special token: it stays.
        return ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]]

    def _batch(self, positions: list[int], encoded: Sequence[list[int]]) -> Batch:
        import numpy

        width = _rounded(max(len(encoded[position]) for position in positions), self.runner.multiple)
        width = min(width, self.max_tokens)
        ids = numpy.full((len(positions), width), self._folder.padding_id, dtype=numpy.int64)
        mask = numpy.zeros((len(positions), width), dtype=numpy.int64)
        for row, position in enumerate(positions):
            ids[row, : len(encoded[position])] = encoded[position]
            mask[row, : len(encoded[position])] = 1
        return Batch(positions, ids, mask)


def token_batches(lengths: Sequence[int], budget: int, multiple: int = 1) -> Iterator[list[int]]:
    """Yield positions in batches of similar length whose padded size stays within `budget` tokens, longest first."""
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    start = 0
    while start < len(order):
        size = max(1, budget // _rounded(lengths[order[start]], multiple))
        yield order[start : start + size]
        start += size


def _rounded(length: int, multiple: int) -> int:
    return -(-max(length, 1) // multiple) * multiple
