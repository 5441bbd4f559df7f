"""Texts that say nearly the same: MinHash signatures, their bands, and the copies within one document.

`signature` keeps of a text's word triples (shingles) 128 least hashes, whose share of equal ones estimates the Jaccard
similarity of two texts (standard error at most 0.045); `bands` cuts it into pieces so that two texts as similar as the
threshold share a piece with probability 0.95 or more: what shares none is never compared. A text of fewer than eight
words has no signature and is only the same as an equal one.

Reads and writes nothing but its arguments. Fails with `ValueError` for a malformed signature. The copies among many
documents are found in copies.py.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy
import xxhash

PERMUTATIONS = 128
FEWEST_WORDS = 8
SHARES_A_BAND = 0.95  # least probability that two texts at the threshold share a band
_WORDS_A_SHINGLE = 3
_BLOCK = 4096  # shingles hashed at a time: 2 MB of numbers
_WORD = re.compile(r"\w+")

Array = numpy.ndarray[Any, Any]


@cache
def _permutations() -> tuple[Array, Array]:
    """Return the factors (odd, so that each permutes all 32-bit numbers) and summands: always the same."""
    random = numpy.random.Generator(numpy.random.PCG64(20_240_229))
    factors = random.integers(0, 2**32, PERMUTATIONS, dtype=numpy.uint32) | numpy.uint32(1)
    return factors[:, None], random.integers(0, 2**32, PERMUTATIONS, dtype=numpy.uint32)[:, None]


def shingle_hashes(words: Sequence[str]) -> Array:
    """Return a 32-bit hash of every different run of three words."""
    known = {word: xxhash.xxh3_64_intdigest(word.encode(errors="surrogatepass")) for word in set(words)}
    codes = numpy.fromiter(map(known.__getitem__, words), numpy.uint64, len(words))
    # Multiplying by different odd constants keeps the order of the three words; the shifts mix the high bits in.
    mixed = codes[:-2] * numpy.uint64(0x9E3779B97F4A7C15)
    mixed ^= (codes[1:-1] ^ (mixed >> numpy.uint64(29))) * numpy.uint64(0xBF58476D1CE4E5B9)
    mixed ^= (codes[2:] ^ (mixed >> numpy.uint64(32))) * numpy.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> numpy.uint64(31)
    return numpy.unique((mixed >> numpy.uint64(32)).astype(numpy.uint32))


def signature(text: str) -> bytes:
    """Return the signature of a text (512 bytes); nothing for one of fewer than eight words."""
    words = _WORD.findall(text.lower())
    if len(words) < FEWEST_WORDS:
        return b""
    hashes = shingle_hashes(words)
    factors, summands = _permutations()
    least = numpy.full(PERMUTATIONS, 2**32 - 1, dtype=numpy.uint32)
    for start in range(0, len(hashes), _BLOCK):
        permuted = hashes[start : start + _BLOCK] * factors
        permuted += summands
        numpy.minimum(least, permuted.min(axis=1), out=least)
    return least.astype("<u4").tobytes()


def similarity(one: bytes, other: bytes) -> float:
    """Return the estimated Jaccard similarity of two signatures; 0 where one is missing. Raises ValueError."""
    if not one or not other:
        return 0.0
    if len(one) != 4 * PERMUTATIONS or len(other) != 4 * PERMUTATIONS:
        raise ValueError(f"expected signatures of {4 * PERMUTATIONS} bytes, found {len(one)} and {len(other)}")
    return float((numpy.frombuffer(one, "<u4") == numpy.frombuffer(other, "<u4")).mean())


@cache
def rows_a_band(threshold: float) -> int:
    """Return how many hashes a band may have, so that two texts at the threshold share one often enough.

    The more the better: longer bands are shared by fewer texts that are no copies.
    """
    fitting = [
        rows
        for rows in range(1, PERMUTATIONS + 1)
        if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= SHARES_A_BAND
    ]
    return max(fitting)


def bands(signature: bytes, threshold: float) -> list[int]:
    """Return the bands of a signature as signed 64-bit numbers, for a column bigint[]; none of an empty signature.

    For a threshold of 1 there are none either: then only equal texts are copies.
    """
    if not signature or threshold >= 1:
        return []
    size = 4 * rows_a_band(threshold)
    pieces = range(len(signature) // size)
    found = [xxhash.xxh3_64_intdigest(signature[size * n : size * (n + 1)], seed=n) for n in pieces]
    return [number - 2**64 if number >= 2**63 else number for number in found]


def repeated_chunks(texts: Sequence[str], threshold: float) -> dict[int, int]:
    """Return for every text of a document that repeats an earlier one the position of that one, which is kept."""
    exact: dict[str, int] = {}
    by_band: dict[int, list[int]] = {}
    signatures: dict[int, bytes] = {}
    found: dict[int, int] = {}
    for position, text in enumerate(texts):
        key = " ".join(text.split())
        if (first := exact.setdefault(key, position)) != position:
            found[position] = found.get(first, first)
            continue
        signed = signature(text) if threshold < 1 else b""
        own = bands(signed, threshold)
        near = sorted({other for band in own for other in by_band.get(band, ())})
        before = next((other for other in near if similarity(signed, signatures[other]) >= threshold), None)
        if before is not None:
            found[position] = before
            continue
        signatures[position] = signed
        for band in own:
            by_band.setdefault(band, []).append(position)
    return found
