"""What the questions of a window are about that those before it were not: topics that appeared, and topics that grew.

Topics are clusters of the reference's vectors (k-means, a fixed seed). A question further from every question of the
reference than 95 % of those are from each other belongs to none of them: such questions are grouped by their nearness, and
a group is a topic that appeared, unless as large a share of the reference is as near to it. A topic grew when its share
did, by GREW and significantly (z-test, Holm). Works on at most SAMPLE vectors of each window. Pure: shares and positions;
whoever shows a question redacts it.
"""

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray
from scipy import stats

from tasks.monitoring import mmd
from tasks.monitoring.compare import share_p_value
from tasks.monitoring.window import Vectors

SAMPLE = 10_000
MOST_TOPICS = 12
ROWS_OF_A_TOPIC = 25
GREW = 0.03
ALIKE = 0.55  # cosine to the first question of a group
LEAST_GROUP = 3
_HARDLY = 0.2  # of its share now: what was asked more often before did not appear, it may have grown
SHOWN = 5
EXAMPLES = 3
ALPHA = 0.01
_USUAL = 0.05  # of the reference, by definition, is as far from the rest as a new topic is
_SEED = 20_261_122


@dataclass(frozen=True)
class Topic:
    """A topic: its share before and now, and the positions (among the current vectors) of questions that stand for it."""

    kind: str
    """`appeared` or `grew`."""
    before: float
    now: float
    examples: list[int]


@dataclass(frozen=True)
class Topics:
    """The topics that appeared or grew, the largest change first, and how far the whole mix moved."""

    changed: list[Topic]
    moved: float
    """Total variation distance of the two mixes, 0 to 1; `new` counts as a topic."""
    p_value: float
    """Of both mixes being one (chi-square)."""
    sampled: int
    """Current vectors that were looked at."""


def topics(reference: Vectors, current: Vectors) -> Topics:
    """Return what changed. Both need vectors of length 1."""
    random = numpy.random.default_rng(_SEED)
    before, _ = _sample(reference, random)
    after, places = _sample(current, random)
    count = max(1, min(MOST_TOPICS, len(before) // ROWS_OF_A_TOPIC))
    centres = _centres(before, count)
    usual = float(numpy.quantile(mmd.novelty(before, before, same=True), 1 - _USUAL))
    labels = [_labels(before, centres, before, None), _labels(after, centres, before, usual)]
    far = numpy.array([_USUAL * len(before), (labels[1] == count).sum()])
    counts = numpy.array([[(side == topic).sum() for topic in range(count)] for side in labels])
    sizes = numpy.array([len(before), len(after)])
    found = [
        Topic("appeared", *shares, [int(places[member]) for member in group[:EXAMPLES]])
        for group in _groups(after, numpy.flatnonzero(labels[1] == count))
        if (shares := _appeared(before, after, after[group[0]])) is not None
    ]
    p_values = {str(topic): share_p_value(counts[:, topic], sizes) for topic in range(count)}
    adjusted = mmd.holm(p_values)
    shares = counts / sizes[:, None]
    for topic in range(count):
        if shares[1, topic] - shares[0, topic] >= GREW and adjusted[str(topic)] < ALPHA:
            examples = _nearest(after, labels[1] == topic, centres[topic])
            found.append(
                Topic("grew", float(shares[0, topic]), float(shares[1, topic]), [int(places[i]) for i in examples])
            )
    found.sort(key=lambda topic: topic.before - topic.now)
    whole = numpy.column_stack([counts, far])
    mixes = whole / whole.sum(axis=1, keepdims=True)
    return Topics(found[:SHOWN], float(abs(mixes[0] - mixes[1]).sum() / 2), _mix_p_value(whole), len(after))


def _sample(vectors: Vectors, random: numpy.random.Generator) -> tuple[Vectors, NDArray[numpy.int64]]:
    places = numpy.arange(len(vectors))
    if len(vectors) > SAMPLE:
        places = numpy.sort(random.permutation(len(vectors))[:SAMPLE])
    return vectors[places], places


def _centres(vectors: Vectors, count: int) -> Vectors:
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]

    found = KMeans(count, n_init=1, random_state=_SEED % 2**31, max_iter=50).fit(vectors).cluster_centers_
    centres: Vectors = (found / numpy.maximum(numpy.linalg.norm(found, axis=1, keepdims=True), 1e-9)).astype(
        numpy.float32
    )
    return centres


def _labels(vectors: Vectors, centres: Vectors, reference: Vectors, usual: float | None) -> NDArray[numpy.int64]:
    """Return the nearest topic of each vector; the number of topics for one that is too far from the reference."""
    found: NDArray[numpy.int64] = (vectors @ centres.T).argmax(axis=1)
    if usual is not None:
        found[mmd.novelty(reference, vectors) > usual] = len(centres)
    return found


def _groups(vectors: Vectors, members: NDArray[numpy.int64]) -> list[list[int]]:
    """Return groups of vectors near each other, the largest first: each takes those near the one with most neighbours."""
    groups: list[list[int]] = []
    left = members[:2_000]
    while len(left) >= LEAST_GROUP:
        near = vectors[left] @ vectors[left].T >= ALIKE
        leader = int(near.sum(axis=1).argmax())
        group = left[near[leader]]
        if len(group) < LEAST_GROUP:
            break
        order = numpy.argsort(-(vectors[group] @ vectors[left[leader]]), kind="stable")
        groups.append([int(item) for item in group[order]])
        left = left[~near[leader]]
    return groups


def _appeared(before: Vectors, after: Vectors, leader: Vectors) -> tuple[float, float] | None:
    """Return the shares of both windows near a question, where it stands for something that was hardly asked before."""
    counts = numpy.array([(side @ leader >= ALIKE).sum() for side in (before, after)])
    sizes = numpy.array([len(before), len(after)])
    was, now = (float(share) for share in counts / sizes)
    new = was <= _HARDLY * now and share_p_value(counts, sizes) < ALPHA
    return (was, now) if new else None


def _nearest(vectors: Vectors, mask: NDArray[numpy.bool_], centre: Vectors) -> list[int]:
    places = numpy.flatnonzero(mask)
    order = numpy.argsort(-(vectors[places] @ centre), kind="stable")[:EXAMPLES]
    return [int(place) for place in places[order]]


def _mix_p_value(counts: NDArray[numpy.float64]) -> float:
    kept = counts[:, counts.sum(axis=0) > 0]
    return 1.0 if kept.shape[1] < 2 else float(stats.chi2_contingency(kept).pvalue)
