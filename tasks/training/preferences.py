"""Preference pairs: which candidates a method can use, and the worse answer where nobody wrote one.

Reads and writes nothing but its arguments. Curated lines and corrections bring their own rejected answer (a
correction's is the answer that was served). For docstrings and pairs made from the corpus it is what stands under
another heading of the same document: a true text, but the answer to another question. It never comes from the
other side of the split.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

from tasks.training.examples import Candidate, rank
from tasks.training.overlap import same_words
from tasks.training.recipes import Recipe

_SIBLINGS = ("docstrings", "corpus")


def usable(found: Iterable[Candidate], method: str) -> tuple[list[Candidate], dict[str, int]]:
    """Return the candidates that `method` can learn from, and how many of each origin it cannot."""
    kept: list[Candidate] = []
    left_out: Counter[str] = Counter()
    for candidate in found:
        fits = candidate.text is not None if method == "pretrain" else candidate.messages is not None
        if method == "dpo":
            fits = fits and (candidate.rejected is not None or candidate.origin in _SIBLINGS)
        if fits:
            kept.append(candidate)
        else:
            left_out[f"unusable_{candidate.origin}"] += 1
    return kept, dict(left_out)


def fitted(chosen: list[Candidate], recipe: Recipe) -> list[Candidate]:
    """Return the chosen candidates as rows of the recipe's method: with a rejected answer for dpo, without for others."""
    if recipe.method == "dpo":
        return with_rejected(chosen)
    return [candidate.model_copy(update={"rejected": None}) for candidate in chosen]


def with_rejected(chosen: list[Candidate]) -> list[Candidate]:
    """Return the candidates, each with a rejected answer; one for which there is no other answer is left without.

    Such a row cannot be learned from; validation rejects it by name.
    """
    by_source: dict[tuple[str, str], list[Candidate]] = defaultdict(list)
    by_side: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(chosen, key=lambda candidate: rank(candidate.id)):
        if candidate.origin in _SIBLINGS:
            by_source[candidate.split, candidate.source].append(candidate)
            by_side[candidate.split].append(candidate)
    return [
        candidate
        if candidate.rejected is not None
        else _paired(candidate, by_source[candidate.split, candidate.source], by_side[candidate.split])
        for candidate in chosen
    ]


def _paired(candidate: Candidate, siblings: list[Candidate], side: list[Candidate]) -> Candidate:
    """Take the next other answer of the document, else of the next document on the same side."""
    for others in (siblings, side):
        start = next((place for place, other in enumerate(others) if other.id == candidate.id), 0)
        for other in others[start + 1 :] + others[:start]:
            if not same_words(_answer(other), _answer(candidate)):
                provenance = candidate.provenance | {"rejected_is_the_answer_to": other.id}
                return candidate.model_copy(update={"rejected": _answer(other), "provenance": provenance})
    return candidate


def _answer(candidate: Candidate) -> str:
    return candidate.messages[-1].content if candidate.messages else ""
