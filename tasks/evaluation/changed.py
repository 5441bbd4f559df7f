"""The rows that changed most, each way: what a person looks at before saying yes.

Pure. In each set by its first measure that differs on any row; a weighted measure by what the row adds to the difference.
Raises `EvidenceError` as `pairs` does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.evaluation.measures import MEASURES, Measure
from tasks.evaluation.pairs import Pair, Values, values

EACH_WAY = 5
_LONGEST = 600  # characters of an answer


def most_changed(pairs: Mapping[str, Sequence[Pair]], each_way: int = EACH_WAY) -> list[dict[str, Any]]:
    """Return of each set the rows that got better by most, then those that got worse by most."""
    found = []
    for name, rows in pairs.items():
        for measure in MEASURES:
            if measure.set != name or measure.better == "neither":
                continue
            if changed := _changed(measure, values(measure, rows), each_way):
                found.extend(changed)
                break
    return found


def _changed(measure: Measure, rows: Values, each_way: int) -> list[dict[str, Any]]:
    sign = 1.0 if measure.better == "higher" else -1.0
    gains = [sign * (ours - theirs) for ours, theirs in zip(rows.candidate, rows.reference, strict=True)]
    order = sorted(range(len(gains)), key=lambda place: (-gains[place], rows.pairs[place].id))
    better = [place for place in order if gains[place] > 0][:each_way]
    worse = [place for place in reversed(order) if gains[place] < 0][:each_way]
    return [_described(measure, rows, place, "better" if gains[place] > 0 else "worse") for place in better + worse]


def _described(measure: Measure, rows: Values, place: int, way: str) -> dict[str, Any]:
    pair, weight = rows.pairs[place], rows.weights[place]
    return {
        "set": measure.set,
        "measure": measure.name,
        "id": pair.id,
        "way": way,
        "candidate": rows.candidate[place] / weight,
        "reference": rows.reference[place] / weight,
        "candidate_answer": (pair.candidate.get("answer") or "")[:_LONGEST],
        "reference_answer": (pair.reference.get("answer") or "")[:_LONGEST],
    }
