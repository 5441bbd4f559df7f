"""Near copies are found exactly: compared with the plain quadratic way on random texts."""

import random

import pytest

from tasks.training.overlap import NEAR, nearest_earlier, shingles


def plainly(texts: list[str]) -> dict[int, int]:
    sets, found, kept = [shingles(text) for text in texts], {}, []
    for position, items in enumerate(sets):
        near = [other for other in kept if len(items & sets[other]) >= NEAR * len(items | sets[other])]
        if near:
            found[position] = near[0]
        else:
            kept.append(position)
    return found


@pytest.mark.parametrize("seed", range(8))
def test_the_same_as_comparing_all_pairs(seed: int) -> None:
    chance = random.Random(seed)
    words = [f"w{n}" for n in range(12)]
    texts = [" ".join(chance.choices(words, k=chance.randint(1, 12))) for _ in range(60)]
    for _ in range(40):
        copy = chance.choice(texts).split()
        copy[chance.randrange(len(copy))] = chance.choice(words)
        texts.append(" ".join(copy))
    texts += ["a b c d e f g h i j k l m n o p", "a b c d e f g h i j k l m n o q", "x y z a b c d e f g"]
    assert nearest_earlier(texts) == plainly(texts)
    assert nearest_earlier(texts), "the test has near copies"


def test_case_and_punctuation_do_not_matter() -> None:
    assert nearest_earlier(["Close the file!", "Open it.", "close, the FILE"]) == {2: 0}
