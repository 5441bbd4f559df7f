"""Texts that say nearly the same: shared word triples, exactly, in time that grows with the pairs found.

Reads and writes nothing but its arguments.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

NEAR = 0.8  # share of word triples in common (Jaccard) from which two texts count as the same
_WORD = re.compile(r"\w+")


def shingles(text: str) -> frozenset[str]:
    """Return the word triples of a text; of a shorter one, all its words as one."""
    words = _WORD.findall(text.lower())
    if len(words) < 3:
        return frozenset([" ".join(words)])
    return frozenset(" ".join(words[start : start + 3]) for start in range(len(words) - 2))


def same_words(one: str, other: str) -> bool:
    """Return whether two texts differ in case and punctuation only."""
    return _WORD.findall(one.lower()) == _WORD.findall(other.lower())


def nearest_earlier(texts: Sequence[str], near: float = NEAR) -> dict[int, int]:
    """Return for every text that is near to an earlier one the first such, by position.

    Two sets with a Jaccard share of `near` have in common one of the rarest triples of each (prefix filter),
    so only those are looked up. Near texts are matched with kept ones only: a chain of small changes keeps its first.
    """
    numbers: dict[str, int] = {}  # each triple once: many texts share theirs, and numbers are small
    sets = [frozenset(numbers.setdefault(item, len(numbers)) for item in shingles(text)) for text in texts]
    frequency = Counter(item for items in sets for item in items)
    index: dict[int, list[int]] = defaultdict(list)
    found: dict[int, int] = {}
    for position, items in enumerate(sets):
        rare = sorted(items, key=lambda item: (frequency[item], item))
        prefix = rare[: len(items) - math.ceil(near * len(items)) + 1]
        for other in sorted({other for item in prefix for other in index[item]}):
            if len(items & sets[other]) >= near * len(items | sets[other]):
                found[position] = other
                break
        else:
            for item in prefix:
                index[item].append(position)
    return found
