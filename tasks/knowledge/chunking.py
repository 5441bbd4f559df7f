"""Text to chunks of at most so many tokens, cut where a reader would pause.

Reads and writes nothing but its arguments. Every character of a text is in exactly one chunk, except
white space between chunks. A document is tokenised once; the cut is the last boundary of the highest
kind (heading, blank line, sentence, line, word) in the second half of what fits. Chunks are counted
again by the tokenizer at the end, and one that is too long after all (a tokenizer that joins across our
cut) is cut once more: no chunk is ever longer than the limit.

Change CHUNKER when the outcome changes: it is part of an index version's fingerprint.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.errors import SettingsError
from tasks.knowledge.extraction import UNDERLINED_HEADING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNKER = "boundaries/1"

# Boundaries by kind, best first: a chunk may end where one of these begins (headings) or ends (the others).
_HEADING = re.compile(rf"^ {{0,3}}#{{1,6}}[ \t]+\S|{UNDERLINED_HEADING.pattern}", re.MULTILINE)
_BLANK = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE = re.compile(r"[.!?:][\"')\]]*\s+")
_LINE = re.compile(r"\n\s*")
_WORD = re.compile(r"\s+")


@dataclass(frozen=True)
class Chunk:
    """A piece of a text: `text[start:end]`, with its number of tokens (special tokens not counted)."""

    ordinal: int
    text: str
    start: int
    end: int
    tokens: int


@dataclass(frozen=True)
class Chunker:
    """Cuts texts for one embedder, whose input is at most `max_tokens` long.

    What is embedded is the chunk's own text: its title before it was measured too, on the golden questions of the
    demo corpus, and changed recall@5 and nDCG@10 by less than 0.006 either way.
    """

    tokenizer: "Tokenizer"
    chunk_tokens: int
    max_tokens: int

    def __post_init__(self) -> None:
        """Refuse chunks that the embedder would cut."""
        special = int(self.tokenizer.num_special_tokens_to_add(False))
        if self.chunk_tokens > self.max_tokens - special:
            raise SettingsError(
                f"expected MILLRACE_CHUNK_TOKENS of at most {self.max_tokens - special} for this embedder "
                f"({self.max_tokens} tokens with {special} special ones), found {self.chunk_tokens}. Next: lower it."
            )

    def chunks(self, text: str) -> list[Chunk]:
        """Return the chunks of `text`, in order."""
        limit = self.chunk_tokens
        spans = cut(text, self._spans(text), limit)
        counts = self._count([text[start:end] for start, end in spans])
        while any(count > limit for count in counts):
            spans = [
                part
                for (start, end), count in zip(spans, counts, strict=True)
                for part in (halves(text, start, end) if count > limit else [(start, end)])
            ]
            counts = self._count([text[start:end] for start, end in spans])
        return [
            Chunk(ordinal, text[start:end], start, end, count)
            for ordinal, ((start, end), count) in enumerate(zip(spans, counts, strict=True))
        ]

    def _spans(self, text: str) -> list[tuple[int, int]]:
        return [span for span in self.tokenizer.encode(text, add_special_tokens=False).offsets if span[1] > span[0]]

    def _count(self, texts: Sequence[str]) -> list[int]:
        return [len(e.ids) for e in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def cut(text: str, tokens: Sequence[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """Return spans of `text`, trimmed, of at most `limit` tokens each; `tokens` are the tokens' own spans."""
    starts = [start for start, _end in tokens]
    kinds = boundaries(text)
    spans: list[tuple[int, int]] = []
    position = 0
    while position < len(text):
        first = bisect_left(starts, position)
        if first + limit >= len(starts):
            end = len(text)
        else:
            # The cut may lie after the middle of what fits, at the latest where the first token too many begins.
            least, most = starts[first + limit // 2], starts[first + limit]
            end = next((found for kind in kinds if (found := _last(kind, least, most)) is not None), most)
        if span := trimmed(text, position, end):
            spans.append(span)
        position = max(end, position + 1)
    return spans


def boundaries(text: str) -> list[list[int]]:
    """Return the positions where a text may be cut, by kind, best kind first."""
    return [
        [match.start() for match in _HEADING.finditer(text)],
        *([match.end() for match in pattern.finditer(text)] for pattern in (_BLANK, _SENTENCE, _LINE, _WORD)),
    ]


def trimmed(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Return the span without white space at its ends, or None when nothing is left."""
    piece = text[start:end]
    inner = piece.strip()
    if not inner:
        return None
    start += len(piece) - len(piece.lstrip())
    return start, start + len(inner)


def halves(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Return a span as two, cut at white space near its middle where there is some."""
    middle = (start + end) // 2
    spaces = [match.end() + start for match in _WORD.finditer(text[start:end])]
    at = min(spaces, key=lambda position: abs(position - middle), default=middle)
    return [span for span in (trimmed(text, start, at), trimmed(text, at, end)) if span]


def _last(positions: Sequence[int], least: int, most: int) -> int | None:
    """Return the last position in (least, most], or None."""
    index = bisect_right(positions, most) - 1
    return positions[index] if index >= 0 and positions[index] > least else None
