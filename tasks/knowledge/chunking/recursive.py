"""The recursive chunker: chunks as full as they may be, cut where a reader would pause.

Reads and writes nothing but its arguments. The cut is the last boundary of the best kind (section or heading, blank
line, sentence, line, word) in the second half of what fits, so that a chunk is never shorter than half of the limit
unless its text ends. No chunk has more tokens than the limit, and none more than `CHARACTERS` characters a token:
a word of a million letters is a single unknown token to some models. `Cutter` serves the other chunkers too.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.knowledge.chunking import boundaries
from tasks.knowledge.chunking.boundaries import halves, trimmed
from tasks.knowledge.chunking.pieces import Chunk, Places, Section
from tasks.knowledge.chunking.tokens import Ruler, TokenCounter, exact_counts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHARACTERS = 32

Span = tuple[int, int]


def cut(text: str, tokens: Sequence[Span], limit: int) -> list[Span]:
    """Return spans of `text`, trimmed, of at most `limit` tokens each; `tokens` are the tokens' own spans."""
    places = [start for start, _level, _title in boundaries.headings(text)]
    return cut_stretch(Ruler.of_spans(text, tokens), 0, len(text), limit, places)


def cut_stretch(
    ruler: Ruler,
    start: int,
    end: int,
    limit: int,
    places: Sequence[int] = (),
    kinds: Sequence[re.Pattern[str]] = boundaries.TEXT,
    overlap: int = 0,
    characters: int | None = None,
) -> list[Span]:
    """Return trimmed spans of `text[start:end]` of at most `limit` tokens by the ruler, and `characters` where given."""
    text = ruler.text
    spans: list[Span] = []
    done = start  # up to here the text is in a chunk
    while done < end:
        start = _repeated(ruler, start, done, places, overlap) if spans and overlap else done
        stop = _stop(ruler, start, end, limit, places, kinds, characters)
        if stop <= done:  # what is repeated left no room for anything new
            start, stop = done, _stop(ruler, done, end, limit, places, kinds, characters)
        span = trimmed(text, start, stop)
        if span and trimmed(text, done, stop):
            spans.append(span)
        done = stop
    return spans


def _stop(
    ruler: Ruler,
    start: int,
    end: int,
    limit: int,
    places: Sequence[int],
    kinds: Sequence[re.Pattern[str]],
    characters: int | None,
) -> int:
    """Return where the chunk that begins at `start` ends."""
    most = ruler.reach(start, limit)
    least = ruler.reach(start, limit // 2)
    if characters is not None and most - start > characters:
        most = start + characters
        least = min(least, start + characters // 2)
    if most >= end:
        return end
    found = boundaries.best(ruler.text, min(least, most), most, places, kinds)
    return max(found if found is not None else most, start + 1)


def _repeated(ruler: Ruler, before: int, done: int, places: Sequence[int], overlap: int) -> int:
    """Return where the next chunk begins so that it repeats at most `overlap` tokens, from a whole sentence on."""
    index = max(ruler.tokens(0, done) - overlap, ruler.tokens(0, before) + 1)
    least = max(ruler.reach(0, index), before + 1) if index > 0 else before + 1
    while least < done and ruler.tokens(least, done) > overlap:
        least = ruler.reach(least, 1)
    return boundaries.first(ruler.text, least, done, places) if least < done else done


class Cutter:
    """One tokenizer and one limit: what all chunkers share."""

    def __init__(self, tokenizer: "Tokenizer", limit: int) -> None:
        self.counter = TokenCounter(tokenizer)
        self.limit = limit
        self.room = limit - self.counter.spare
        self.characters = limit * CHARACTERS

    def ruler(self, text: str) -> Ruler:
        """Return where the tokens of a text stand, words of more than a quarter of a chunk in parts."""
        return self.counter.ruler(text, self.limit // 4)

    def fits(self, ruler: Ruler, start: int, end: int) -> bool:
        """Tell whether a stretch is a chunk as it is."""
        return end - start <= self.characters and ruler.tokens(start, end) <= self.room

    def cut(
        self,
        ruler: Ruler,
        start: int,
        end: int,
        places: Sequence[int] = (),
        kinds: Sequence[re.Pattern[str]] = boundaries.TEXT,
        overlap: int = 0,
    ) -> list[Span]:
        """Return a stretch in trimmed spans that fit, by the ruler."""
        return cut_stretch(ruler, start, end, self.room, places, kinds, overlap, self.characters)

    def finish(self, ruler: Ruler, spans: Sequence[Span]) -> tuple[list[Span], list[int]]:
        """Return trimmed spans and their exact numbers of tokens; one that is too long after all is cut in halves."""
        kept = list(spans)
        counts = exact_counts(self.counter, ruler, kept)
        while any(count > self.limit and end - start > 1 for (start, end), count in zip(kept, counts, strict=True)):
            kept = [
                part
                for (start, end), count in zip(kept, counts, strict=True)
                for part in (halves(ruler.text, start, end) if count > self.limit else [(start, end)])
            ]
            counts = exact_counts(self.counter, ruler, kept)
        return kept, counts

    def made(self, ruler: Ruler, spans: Sequence[Span], places: Places) -> list[Chunk]:
        """Return spans as chunks that are embedded as they are shown."""
        kept, counts = self.finish(ruler, spans)
        return [
            Chunk(number, text, start, end, count, text, *places.over(start, end))
            for number, ((start, end), count) in enumerate(zip(kept, counts, strict=True))
            for text in [ruler.text[start:end]]
        ]


class RecursiveChunker:
    """Cuts any text; `overlap` is how many tokens of the chunk before it a chunk may repeat."""

    def __init__(self, cutter: Cutter, overlap: int = 0, kinds: Sequence[re.Pattern[str]] = boundaries.TEXT) -> None:
        self._cutter, self._overlap, self._kinds = cutter, overlap, kinds

    def chunks(self, text: str, sections: Sequence[Section] = (), format: str = "text") -> list[Chunk]:
        """Return the chunks of `text`, in order."""
        if not text.strip():
            return []
        places = Places(sections)
        named = [section.start for section in sections if section.headings]
        starts = sorted(named) if named else [start for start, _level, _title in boundaries.headings(text)]
        ruler = self._cutter.ruler(text)
        spans = self._cutter.cut(ruler, 0, len(text), starts, self._kinds, self._overlap)
        return self._cutter.made(ruler, spans, places)
