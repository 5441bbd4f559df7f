"""The table of scores, proven whole and turned into pairs: the candidate and what it is compared with, row by row.

Pure. Raises `EvidenceError` for whatever is missing, broken, short, or about other rows: a set that the evidence names and
the table lacks (or the other way round), a model that did not score a row, a figure that is no number, models whose rows
differ. The gate turns that into hold.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tasks.errors import EvidenceError
from tasks.evaluation.measures import BASE, CANDIDATE, CHAMPION, MEASURES, MODELS, PRIMARY, SETS, Measure

Row = Mapping[str, Any]
SLICES = ("corpus", "topic", "length")
# An answer without content words has no share of them: of this measure alone, one model may have a figure and the other none.
ONE_SIDED = frozenset({"groundedness"})
_NEXT = "Next: clear evaluate; it will be measured again."


class Pair(NamedTuple):
    """One row of a set under both models; `slices` are its corpus, topic and length."""

    id: str
    candidate: Row
    reference: Row
    slices: Mapping[str, str]


class Values(NamedTuple):
    """One measure on the rows that have it: figures of both models, and the weights of the rows."""

    pairs: list[Pair]
    candidate: list[float]
    reference: list[float]
    weights: list[float]
    one_sided: int = 0  # rows left out because only one model has a figure


def expected_models(champion: bool) -> list[str]:
    """Return the models that every row must be scored under."""
    return [name for name in MODELS if champion or name != CHAMPION]


def paired(table: Sequence[Row], sets: Mapping[str, Mapping[str, Any]], *, champion: bool) -> dict[str, list[Pair]]:
    """Return the pairs of each set in `sets` ({name: {"sha256", "rows"}}), in the order of the candidate's rows.

    Compared is with the champion where there is one, else with the base model. Raises EvidenceError.
    """
    if PRIMARY.set not in sets:
        raise EvidenceError(f"expected the set {PRIMARY.set} among those evaluated, found {sorted(sets)}. {_NEXT}")
    found: dict[str, dict[str, dict[str, Row]]] = {name: defaultdict(dict) for name in sets}
    models = expected_models(champion)
    for row in table:
        name, model, id = row.get("set"), row.get("model"), row.get("id")
        if name not in found or name not in SETS:
            raise EvidenceError(f"expected rows of {', '.join(sets)}, found one of {name!r}. {_NEXT}")
        if model not in models:
            raise EvidenceError(f"expected rows of {', '.join(models)}, found one of {model!r} in {name}. {_NEXT}")
        if not id or id in found[name][model]:
            raise EvidenceError(f"expected each row of {name} once under {model}, found {id!r} again. {_NEXT}")
        found[name][model][id] = row
    return {name: _pairs(name, found[name], models, sets[name].get("rows")) for name in sets}


def values(measure: Measure, pairs: Sequence[Pair]) -> Values:
    """Return the figures of a measure; rows to which it does not apply (null under both) are left out.

    Raises EvidenceError when only one model has a figure (but of ONE_SIDED), or one is no number.
    """
    chosen, candidate, reference, weights, one_sided = [], [], [], [], 0
    for pair in pairs:
        ours, theirs = pair.candidate.get(measure.name), pair.reference.get(measure.name)
        if ours is None and theirs is None:
            continue
        if (ours is None or theirs is None) and measure.name in ONE_SIDED:
            one_sided += 1
            continue
        sizes = [row.get(measure.weight) if measure.weight else 1.0 for row in (pair.candidate, pair.reference)]
        numbers = [float(value) for value in (ours, theirs, *sizes) if isinstance(value, int | float)]
        if len(numbers) < 4 or not all(map(math.isfinite, numbers)) or numbers[2] != numbers[3] or numbers[2] <= 0:
            raise EvidenceError(
                f"expected {measure.name} of {pair.id} in {measure.set} as numbers under both models, with one weight, "
                f"found {ours} and {theirs} (weights {sizes[0]} and {sizes[1]}). {_NEXT}"
            )
        if measure.yes_or_no and not {numbers[0], numbers[1]} <= {0.0, 1.0}:
            raise EvidenceError(
                f"expected {measure.name} of {pair.id} in {measure.set} as 0 or 1, found {ours} and {theirs}. {_NEXT}"
            )
        chosen.append(pair)
        candidate.append(numbers[0])
        reference.append(numbers[1])
        weights.append(numbers[2])
    return Values(chosen, candidate, reference, weights, one_sided)


def require_figures(name: str, pairs: Sequence[Pair]) -> None:
    """Prove that every row of a set has a figure, and that the primary measure has them all. Raises EvidenceError."""
    judged = [measure.name for measure in MEASURES if measure.set == name and measure.better != "neither"]
    for pair in pairs:
        needed = [PRIMARY.name] if name == PRIMARY.set else judged
        if all(pair.candidate.get(measure) is None for measure in needed):
            raise EvidenceError(f"expected figures of {pair.id} in {name}, found none. {_NEXT}")


def _pairs(name: str, by_model: Mapping[str, Mapping[str, Row]], models: Sequence[str], rows: Any) -> list[Pair]:
    ids = {model: set(by_model.get(model, ())) for model in models}
    for model in models:
        if ids[model] != ids[CANDIDATE] or not ids[model]:
            odd = sorted(ids[model] ^ ids[CANDIDATE])[:1]
            raise EvidenceError(
                f"expected the same rows of {name} under {', '.join(models)}, found {len(ids[model])} under {model} and "
                f"{len(ids[CANDIDATE])} under {CANDIDATE}{f' (such as {odd[0]!r})' if odd else ''}. {_NEXT}"
            )
    if len(ids[CANDIDATE]) != rows:
        raise EvidenceError(f"expected {rows} rows of {name}, found {len(ids[CANDIDATE])}. {_NEXT}")
    reference = by_model[CHAMPION if CHAMPION in models else BASE]
    pairs = []
    for id, row in by_model[CANDIDATE].items():
        slices = {by: str(row.get(by) or "") for by in SLICES}
        if any(str(by_model[model][id].get(by) or "") != slices[by] for model in models for by in SLICES):
            raise EvidenceError(f"expected {id} of {name} in the same slices under every model, found others. {_NEXT}")
        pairs.append(Pair(id, row, reference[id], slices))
    require_figures(name, pairs)
    return pairs
