"""How many tokens a text has, and where: exactly as the tokenizer would say, without asking it twice about a word.

`TokenCounter(tokenizer)` reads nothing but the tokenizer and keeps counts of words in memory, at most `REMEMBERED` of
them. `counter.count(text)` equals `len(tokenizer.encode(text, add_special_tokens=False).ids)` for every text;
`counter.ruler(text)` measures a whole text once, so that a chunker can ask for any stretch of it. Fails with
`ModelError` for a tokenizer that cuts or pads.

Where words add up (tasks.knowledge.chunking.tokenizers proves it) a text costs a regular expression, a dictionary and
a sum; elsewhere the tokenizer reads it once, and every finished chunk once more.
"""

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from tasks.knowledge.chunking.tokenizers import splitting

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REMEMBERED = 200_000  # words; about 25 MB
_LONGEST = 64  # characters of a word that is remembered
_WINDOW = 10_000  # characters that the tokenizer gets at once where only places are wanted
_SEGMENT = 1 << 18  # characters whose words are in memory at once
_WHITE = " \t\n\r"
_ALPHANUMERIC = re.compile(r"[0-9A-Za-z]+")


class TokenCounter:
    """Counts tokens of one tokenizer. Not for two threads at once: its memory is one dictionary."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self.tokenizer = tokenizer
        self._splitting = splitting(tokenizer)
        self._known = _Remembered(_counting(tokenizer, self._splitting.lower if self._splitting else None))

    @property
    def proven(self) -> bool:
        """Whether counts come from remembered words; else each text is given to the tokenizer."""
        return self._splitting is not None

    @property
    def spare(self) -> int:
        """Tokens by which a piece may grow when the white space before it is taken away."""
        return 1 if self._splitting is not None and self._splitting.kind == "bytes" else 0

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`, special tokens not counted."""
        return self.counts([text])[0]

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Return the numbers of tokens of several texts."""
        if self._splitting is not None:
            find, known = self._splitting.part.findall, self._known.__getitem__
            return [sum(map(known, find(text))) for text in texts]
        return [len(encoding) for encoding in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def ruler(self, text: str, refined: int = 16) -> "Ruler":
        """Return where the tokens of `text` stand; a word of more than `refined` tokens may be cut inside."""
        if self._splitting is None:
            ruler = Ruler(text, adds_up=False)
            ruler.extend(*self._inside(text))
            return ruler
        ruler = Ruler(text, adds_up=self._splitting.kind == "words")
        for start, end in self._segments(text, self._splitting.edge):
            parts = self._splitting.part.findall(text, start, end)
            counts = list(map(self._known.__getitem__, parts))
            done = 0
            for place in (
                [place for place, count in enumerate(counts) if count > refined] if max(counts) > refined else []
            ):
                ruler.extend(map(len, parts[done:place]), counts[done:place])
                ruler.extend(*self._inside(parts[place]))
                ruler.adds_up = ruler.adds_up and len(parts[place]) <= _WINDOW
                done = place + 1
            ruler.extend(map(len, parts[done:] if done else parts), counts[done:] if done else counts)
        return ruler

    def _segments(self, text: str, edge: re.Pattern[str]) -> Iterator[tuple[int, int]]:
        start = 0
        while start < len(text):
            found = edge.search(text, start + _SEGMENT) if start + _SEGMENT < len(text) else None
            end = found.start() if found else len(text)
            yield start, end
            start = end

    def _inside(self, text: str) -> tuple[Sequence[int], Sequence[int]]:
        """Return lengths and token counts of the parts of a text that begin where its tokens do."""
        starts: list[int] = []
        counts: list[int] = []
        for window in range(0, len(text), _WINDOW):
            piece = text[window : window + _WINDOW]
            starts.append(window)
            counts.append(0)
            for start, _end in self.tokenizer.encode(piece, add_special_tokens=False).offsets:
                if window + start > starts[-1]:
                    starts.append(window + start)
                    counts.append(0)
                counts[-1] += 1
        return [end - start for start, end in zip(starts, [*starts[1:], len(text)], strict=True)], counts


class _Remembered(dict[str, int]):
    """Tokens by text; one that is missing is counted. Forgets all when it is full."""

    def __init__(self, count: Callable[[str], int]) -> None:
        super().__init__()
        self._count = count

    def __missing__(self, text: str) -> int:
        count = self._count(text)
        if len(text) <= _LONGEST:
            if len(self) >= REMEMBERED:
                self.clear()
            self[text] = count
        return count


def _counting(tokenizer: "Tokenizer", lower: bool | None) -> Callable[[str], int]:
    """Return the function that counts the tokens of a word; `lower` as in Splitting."""
    encode, added = tokenizer.encode, tokenizer.get_added_tokens_decoder().values()
    odd = any(not token.content.isascii() or not token.content.isprintable() for token in added)
    if lower is None or odd:  # the normalizer may turn an odd one into plain letters
        return lambda word: len(encode(word, add_special_tokens=False))
    tokenize = tokenizer.model.tokenize
    pattern = "|".join(sorted({re.escape(token.content) for token in added})) or r"(?!)"
    # Most are looked for in the text as it is, some in what the normalizer made of it.
    added_within = re.compile(pattern, re.IGNORECASE if any(token.normalized for token in added) else 0).search
    plain = _Remembered((lambda part: len(tokenize(part.lower()))) if lower else (lambda part: len(tokenize(part))))

    def count(word: str) -> int:
        bare = word.rstrip(_WHITE)
        if not bare.isascii() or not bare.isprintable() or added_within(bare):
            return len(encode(word, add_special_tokens=False))
        # ASCII after BERT's pre-tokenizer: each mark is a word and one token, the rest are words as the model knows them.
        parts = _ALPHANUMERIC.findall(bare)
        return len(bare) - len("".join(parts)) + sum(map(plain.__getitem__, parts))

    return count


class Ruler:
    """Where the tokens of a text stand: a text in parts, each with its number of tokens.

    Between two places where words begin the number of tokens is exact if `adds_up`; elsewhere it is an estimate.
    """

    def __init__(self, text: str, adds_up: bool) -> None:
        self.text = text
        self.adds_up = adds_up
        self.starts = array("q", [0])  # of the parts; the last is the end of the text
        self.before = array("q", [0])  # tokens up to each start

    def extend(self, lengths: Iterable[int], counts: Iterable[int]) -> None:
        """Add parts, by their lengths and numbers of tokens."""
        self.starts.extend(accumulate(lengths, initial=self.starts.pop()))
        self.before.extend(accumulate(counts, initial=self.before.pop()))

    @classmethod
    def of_spans(cls, text: str, spans: Sequence[tuple[int, int]]) -> "Ruler":
        """Return the ruler of a text whose tokens stand at `spans`."""
        starts = [0, *(start for start, _end in spans), len(text)]
        lengths = [end - start for start, end in zip(starts, starts[1:], strict=False)]
        ruler = cls(text, adds_up=False)
        ruler.extend(lengths, [0, *([1] * len(spans))])
        return ruler

    def tokens(self, start: int, end: int) -> int:
        """Return the number of tokens of `text[start:end]`, parts that are cut counted whole."""
        return self.before[bisect_left(self.starts, end)] - self.before[bisect_right(self.starts, start) - 1]

    def reach(self, start: int, limit: int) -> int:
        """Return the last place up to which there are at most `limit` tokens; always one after `start`."""
        first = bisect_right(self.starts, start) - 1
        found = self.starts[bisect_right(self.before, self.before[first] + limit) - 1]
        return found if found > start else self.starts[min(first + 1, len(self.starts) - 1)]

    def counted(self, start: int, end: int) -> int | None:
        """Return the exact number of tokens of a trimmed stretch, or None where it must be counted anew."""
        text = self.text
        if not self.adds_up or (start and text[start - 1] not in _WHITE) or text[end : end + 1] not in _WHITE:
            return None
        return self.tokens(start, end)


def exact_counts(counter: TokenCounter, ruler: Ruler, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Return the number of tokens of each trimmed stretch, by the ruler where that is exact, else by the counter."""
    found: list[Any] = [ruler.counted(start, end) for start, end in spans]
    missing = [place for place, count in enumerate(found) if count is None]
    if missing:
        for place, count in zip(
            missing, counter.counts([ruler.text[slice(*spans[place])] for place in missing]), strict=True
        ):
            found[place] = count
    return found
