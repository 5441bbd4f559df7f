"""What screening changed in a text, and where an offset into the old text lies in the new one.

Reads and writes nothing but its arguments. Each rule looks at what the rules before it left, so the edits of a text
are a sequence of passes; the places of a pass are offsets into the text as that pass found it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple


class Edit(NamedTuple):
    """The characters from `start` to `end` became `length` other characters."""

    start: int
    end: int
    length: int


Edits = Sequence[Sequence[Edit]]


def apply(text: str, places: Sequence[tuple[int, int, str]]) -> tuple[str, tuple[Edit, ...]]:
    """Return the text with every place (start, end, what stands there instead) replaced, and the edits.

    Places are given in order and do not overlap.
    """
    parts, done = [], 0
    for start, end, instead in places:
        parts += [text[done:start], instead]
        done = end
    return "".join([*parts, text[done:]]), tuple(Edit(start, end, len(instead)) for start, end, instead in places)


def carry(offsets: Sequence[int], edits: Edits) -> list[int]:
    """Return where each offset into a text lies after its edits; one inside a redaction moves to its beginning.

    The order of offsets is kept: sections that followed each other still do.
    """
    moved = list(offsets)
    for done in edits:
        starts = [edit.start for edit in done]
        shifts = [0]  # how far what follows each edit moves
        for edit in done:
            shifts.append(shifts[-1] + edit.length - (edit.end - edit.start))
        moved = [_carried(offset, done, starts, shifts) for offset in moved]
    return moved


def _carried(offset: int, done: Sequence[Edit], starts: Sequence[int], shifts: Sequence[int]) -> int:
    before = bisect_right(starts, offset)  # edits that begin at or before it
    if before and offset < done[before - 1].end:
        return done[before - 1].start + shifts[before - 1]
    return offset + shifts[before]
