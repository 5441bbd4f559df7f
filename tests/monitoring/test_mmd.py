"""The drift test of vectors: it finds a shift, keeps its false alarms, and gives the same answer twice."""

import numpy
import pytest

from tasks.monitoring import mmd
from tasks.monitoring.figures import FIGURES

TOPICS = numpy.random.default_rng(0).standard_normal((24, 64)).astype(numpy.float32)


def questions(rows: int, seed: int, moved: float = 0.0) -> mmd.Vectors:
    """Vectors about 20 topics; a share `moved` is about two others."""
    random = numpy.random.default_rng(seed)
    topics = numpy.where(random.random(rows) < moved, random.integers(22, 24, rows), random.integers(0, 20, rows))
    vectors = TOPICS[topics] + 0.8 * random.standard_normal((rows, TOPICS.shape[1]))
    return (vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)).astype(numpy.float32)


def p_value(seed: int, moved: float) -> float:
    return mmd.two_sample(questions(150, 2 * seed, 0), questions(150, 2 * seed + 1, moved), permutations=199).p_value


def test_a_shift_of_a_third_is_found() -> None:
    found = [p_value(seed, 0.33) < 0.05 for seed in range(20)]
    assert sum(found) >= 18


def test_false_alarms_stay_at_their_level() -> None:
    alarms = sum(p_value(seed, 0.0) < 0.05 for seed in range(100, 200))
    assert alarms <= 11  # 5 expected; more than 11 has a chance of 0.4 % at the right level


def test_the_same_vectors_give_the_same_answer() -> None:
    reference, current = questions(150, 1), questions(120, 2, 0.2)
    assert mmd.two_sample(reference, current) == mmd.two_sample(reference.copy(), current.copy())


def test_equal_vectors_do_not_drift() -> None:
    same = numpy.ones((50, 8), dtype=numpy.float32)
    assert mmd.two_sample(same, same.copy()).p_value == 1.0


def test_the_least_p_value_passes_the_correction() -> None:
    """With every figure tested too and alpha 0.01 a clear shift of the vectors alone must still count."""
    others = {figure.name: 0.5 for figure in FIGURES}
    assert mmd.holm({"vectors": 1 / (1 + mmd.PERMUTATIONS)} | others)["vectors"] < 0.01


def test_rows_beyond_the_last_whole_bin_change_nothing_but_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, current = questions(700, 5), questions(333, 6, 0.3)
    binned = mmd.two_sample(reference, current)
    monkeypatch.setattr(mmd, "BINS", 10_000)  # a bin a row: the plain permutation test
    plain = mmd.two_sample(reference, current)
    assert plain.statistic == pytest.approx(binned.statistic, rel=0.05)
    assert max(plain.p_value, binned.p_value) < 0.01


def test_holm_corrects_step_by_step() -> None:
    assert mmd.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert mmd.holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert mmd.holm({}) == {}


def test_novelty_is_the_distance_to_the_nearest() -> None:
    reference = numpy.eye(4, dtype=numpy.float32)[:1]
    vectors = numpy.eye(4, dtype=numpy.float32)[[0, 1, 1, 2, 3, 1]]
    assert mmd.novelty(reference, vectors[:2]).tolist() == [0.0, 1.0]
    assert mmd.novelty(vectors, vectors, same=True).tolist() == [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]


def test_novelty_over_many_blocks_is_the_same() -> None:
    vectors = questions(2_500, 3)
    whole = mmd.novelty(vectors, vectors, same=True)
    cosine = vectors @ vectors.T
    numpy.fill_diagonal(cosine, -1)
    assert numpy.allclose(whole, 1 - cosine.max(axis=1), atol=1e-5)
