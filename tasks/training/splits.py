"""Which candidates are trained on, which may stop a training, and which are held out: by source, never by row.

Reads and writes nothing but its arguments. Sources come in the order of their digests: the choice does not
depend on the order of the input, and a new source moves few others. The weights of `data.mix` are shares of
the rows; an origin that has fewer gives what it has, and the others fill up. Feedback is trained on, never
held out, unless there is nothing else. Fails with `DataError` when there are too few sources.
"""

from collections import defaultdict
from collections.abc import Mapping

from tasks.errors import DataError
from tasks.training.examples import Candidate, Split, rank
from tasks.training.recipes import Data

FEEDBACK, CURATED, CORPUS = "feedback", "curated", "corpus"
GROUPS = (FEEDBACK, CURATED, CORPUS)  # the order of the training rows
_Sources = dict[str, dict[str, list[Candidate]]]  # source, group: its candidates


def group(candidate: Candidate) -> str:
    """Return the part of the mix that a candidate belongs to; docstrings are the demo's curated examples."""
    return CURATED if candidate.origin == "docstrings" else candidate.origin


def choose(found: list[Candidate], data: Data) -> list[Candidate]:
    """Return the chosen candidates, each with its split. Raises DataError."""
    weights = {name: float(getattr(data.mix, name)) for name in GROUPS}
    sources = _by_source([c for c in found if weights[group(c)] > 0], data.rows_per_source)
    sides = _sides(sources, weights, data)
    train = [
        candidate
        for name, wanted in shares(data.train_rows, weights, _counted(sides["train"])).items()
        for candidate in _in_turn(sides["train"], name, data.rows_per_source)[:wanted]
    ]
    rest = {side: _trimmed(sides[side], most) for side, most in _wanted(data).items()}
    if not train or any(most and not rest[side] for side, most in _wanted(data).items()):
        raise DataError(
            f"expected sources for {', '.join(['train', *(side for side, most in _wanted(data).items() if most)])}: "
            f"at least two sources, and each wholly on one side, found {len(sources)} of {len(found)} rows. "
            "Next: add examples, give lines different `source` names, or lower data.held_out_rows in the recipe."
        )
    return [
        candidate.model_copy(update={"split": side})
        for side, chosen in (("train", train), *rest.items())
        for candidate in chosen
    ]


def shares(total: int, weights: Mapping[str, float], available: Mapping[str, int]) -> dict[str, int]:
    """Return how many rows each group gives: in proportion to its weight, never more than it has."""
    given = dict.fromkeys(weights, 0)
    left = min(total, sum(count for name, count in available.items() if weights[name] > 0))
    while left > 0:
        open_ = [name for name in weights if weights[name] > 0 and given[name] < available.get(name, 0)]
        whole = sum(weights[name] for name in open_)
        before = left
        for name in open_:
            part = min(int(before * weights[name] / whole), available[name] - given[name])
            given[name] += part
            left -= part
        if left == before:  # fewer rows than groups are left: the heaviest first
            given[max(open_, key=lambda name: weights[name])] += 1
            left -= 1
    return given


def _by_source(found: list[Candidate], rows_per_source: int) -> _Sources:
    """Return at most so many candidates of each source and group, sources and candidates in the order of their ranks."""
    sources: dict[str, dict[str, list[Candidate]]] = defaultdict(lambda: defaultdict(list))
    for candidate in sorted(found, key=lambda candidate: rank(candidate.id)):
        kept = sources[candidate.source][group(candidate)]
        if len(kept) < rows_per_source:
            kept.append(candidate)
    return {source: dict(sources[source]) for source in sorted(sources, key=rank)}


def _sides(sources: _Sources, weights: Mapping[str, float], data: Data) -> dict[Split, _Sources]:
    """Deal out whole sources: first to the held-out side until it has its rows, then to validation, then to training."""
    counts = _counted(sources)
    others = any(counts.get(name) for name in (CURATED, CORPUS))
    apart = {name: 0.0 if name == FEEDBACK and others else weight for name, weight in weights.items()}
    open_ = {side: shares(most, apart, counts) for side, most in _wanted(data).items()}
    sides: dict[Split, _Sources] = {"train": {}, "validation": {}, "held_out": {}}
    for source, groups in sources.items():
        side: Split = next((side for side, left in open_.items() if any(left[name] > 0 for name in groups)), "train")
        sides[side][source] = groups
        for name, candidates in groups.items():
            if side != "train":
                open_[side][name] -= len(candidates)
    return sides


def _wanted(data: Data) -> dict[Split, int]:
    return {"held_out": data.held_out_rows, "validation": data.validation_rows}


def _counted(sources: _Sources) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for groups in sources.values():
        for name, candidates in groups.items():
            counts[name] += len(candidates)
    return counts


def _in_turn(sources: _Sources, name: str, rows_per_source: int) -> list[Candidate]:
    """Return a group's candidates, the first of every source before the second of any."""
    return [
        candidate
        for turn in range(rows_per_source)
        for groups in sources.values()
        for candidate in groups.get(name, [])[turn : turn + 1]
    ]


def _trimmed(sources: _Sources, most: int) -> list[Candidate]:
    return [candidate for groups in sources.values() for found in groups.values() for candidate in found][:most]
