"""Signatures, bands and repeated chunks: what counts as nearly the same."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.knowledge.near_duplicates import PERMUTATIONS, bands, repeated_chunks, rows_a_band, signature, similarity

WORDS = [f"w{number}" for number in range(5000)]


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[at : at + 3]) for at in range(len(words) - 2)}


def jaccard(one: str, other: str) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


def some_words(seed: int, count: int) -> list[str]:
    return random.Random(seed).choices(WORDS, k=count)


def edited(words: list[str], every: int) -> str:
    """Return the words with each one at a multiple of `every` changed: three shingles a change."""
    return " ".join("changed" + word if at % every == every // 2 else word for at, word in enumerate(words))


def test_near_texts_share_a_band_and_far_ones_hardly_ever() -> None:
    near = far = 0
    for seed in range(200):
        words = some_words(seed, 1200)
        text, close, half = " ".join(words), edited(words, 120), edited(words, 9)
        assert jaccard(text, close) == pytest.approx(0.95, abs=0.01)
        assert jaccard(text, half) == pytest.approx(0.5, abs=0.02)
        own = signature(text)
        near += bool({*bands(own, 0.9)} & {*bands(signature(close), 0.9)})
        far += bool({*bands(own, 0.9)} & {*bands(signature(half), 0.9)})
        assert similarity(own, signature(half)) < 0.9
    assert near >= 198
    assert far <= 4


def test_bands_are_as_likely_as_promised() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9, 0.95):
        rows = rows_a_band(threshold)
        assert 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= 0.95
        assert 1 - (1 - threshold ** (rows + 1)) ** (PERMUTATIONS // (rows + 1)) < 0.95


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(60, 3000), every=st.integers(4, 200))
def test_the_estimate_is_close_to_the_truth(seed: int, length: int, every: int) -> None:
    words = some_words(seed, length)
    one, other = " ".join(words), edited(words, every)
    # Five standard errors of a share of 128.
    assert similarity(signature(one), signature(other)) == pytest.approx(jaccard(one, other), abs=5 * 0.5 / 128**0.5)


def test_the_estimate_is_not_biased() -> None:
    errors = []
    for seed in range(300):
        words = some_words(seed, 400)
        one, other = " ".join(words), edited(words, 12)
        errors.append(similarity(signature(one), signature(other)) - jaccard(one, other))
    assert abs(sum(errors) / len(errors)) < 0.01


def test_a_signature_never_changes() -> None:
    # Signatures are kept in the database from one release to the next.
    text = "The quick brown fox jumps over the lazy dog, and then it sleeps."
    assert len(signature(text)) == 4 * PERMUTATIONS
    assert signature(text)[:16].hex() == "75a1b40f71f662016018f9266709411b"
    assert bands(signature(text), 0.9)[:2] == [1315406506236218055, -5703384931269908348]
    assert all(-(2**63) <= band < 2**63 for band in bands(signature(text), 0.9))


def test_order_case_and_punctuation() -> None:
    text = "one two three four five six seven eight nine ten"
    assert similarity(signature(text), signature(text.upper().replace(" ", ", "))) == 1
    assert similarity(signature(text), signature(" ".join(reversed(text.split())))) == 0


def test_short_texts_have_no_signature() -> None:
    assert signature("one two three four five six seven") == b""
    assert signature("") == b""
    assert bands(b"", 0.9) == []
    assert similarity(b"", b"") == 0
    assert bands(signature("one two three four five six seven eight"), 1) == []


def test_a_malformed_signature_is_refused() -> None:
    with pytest.raises(ValueError, match="expected signatures of 512 bytes"):
        similarity(b"1234", signature("one two three four five six seven eight"))


def test_chunks_that_repeat_an_earlier_one() -> None:
    words = some_words(1, 1200)
    text, near, half = " ".join(words), edited(words, 200), edited(words, 9)
    texts = [text, "short", half, "a  short\none", near, "short", text + "\n", "a short one", "another", half]
    assert repeated_chunks(texts, 0.9) == {4: 0, 5: 1, 6: 0, 7: 3, 9: 2}
    assert repeated_chunks(texts, 1) == {5: 1, 6: 0, 7: 3, 9: 2}
    assert repeated_chunks([], 0.9) == {}


def test_what_is_repeated_is_kept_itself() -> None:
    words = some_words(2, 1200)
    steps = [
        " ".join(f"x{step}{word}" if at < 36 * step else word for at, word in enumerate(words)) for step in range(5)
    ]
    found = repeated_chunks([*steps, *steps], 0.9)
    assert found
    assert not set(found.values()) & set(found)
