"""What was measured, as rows of the table of scores, and its means.

Pure but for the embedder it is given: reads and writes nothing but its arguments. The columns are those of `measures`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.evaluation.answers import Answer
from tasks.evaluation.measures import MEASURES, PRIMARY, Measure
from tasks.evaluation.paired import Score
from tasks.evaluation.probes import FormatProbe, SafetyProbe
from tasks.evaluation.scorers import cosine, exact_match, refused, rouge_l, token_f1, valid
from tasks.evaluation.sets import lengths
from tasks.knowledge.retrieval import GoldenQuestion
from tasks.serving.grounding import grounded
from tasks.serving.prompt import Prompt
from tasks.serving.unknown import says_so

Row = dict[str, Any]
Embed = Callable[[list[str]], Sequence[Any]]  # texts to vectors


def held_out_rows(rows: Sequence[Row], scores: Mapping[str, Sequence[Score]]) -> list[Row]:
    """Return the held-out rows under every model. Slices: the origin (docstrings, feedback, ...), the source, the length."""
    first = next(iter(scores.values()))
    length = lengths({score.id: score.tokens for score in first})
    return [
        {
            "set": "held_out",
            "id": row["id"],
            "model": name,
            "corpus": row.get("origin", ""),
            "topic": row.get("source", ""),
            "length": length[score.id],
            "loss": score.loss,
            "tokens": score.tokens,
        }
        for name, found in scores.items()
        for row, score in zip(rows, found, strict=True)
    ]


def answer_rows(model: str, answers: Sequence[Answer], prompt: Prompt, embed: Embed) -> list[Row]:
    """Return the answers of one model with their scores. `embed` is called once, where there is a reference to compare with."""
    near = _similarities(answers, embed)
    length: dict[tuple[str, str], str] = {}
    for name in {found.question.set for found in answers}:
        sizes = {f.question.id: len(f.question.question.split()) for f in answers if f.question.set == name}
        length |= {(name, id): word for id, word in lengths(sizes).items()}
    return [
        {
            "set": found.question.set,
            "id": found.question.id,
            "model": model,
            "corpus": found.question.corpus,
            "topic": found.question.topic,
            "length": length[found.question.set, found.question.id],
            "answer": found.text,
            **_scored(found, prompt),
            **({"similarity": near[found.question.id]} if found.question.id in near else {}),
        }
        for found in answers
    ]


def _scored(found: Answer, prompt: Prompt) -> dict[str, float | None]:
    row, text = found.question.row, found.text
    if isinstance(row, SafetyProbe):
        return {"refused": refused(text, row.followed)}
    if isinstance(row, FormatProbe):
        return {"valid": valid(text, row.form)}
    scores: dict[str, float | None] = {
        "groundedness": grounded(text, [row.question, *found.shown]),
        "answered": float(bool(text) and not says_so(text, prompt.front.unknown)),
        "seconds": found.seconds,
        "new_tokens": float(found.new_tokens),
    }
    if row.answer:
        scores |= {name: score(text, row.answer) for name, score in _BY_REFERENCE.items()}
    return scores


_BY_REFERENCE = {"token_f1": token_f1, "rouge_l": rouge_l, "exact_match": exact_match}


def _similarities(answers: Sequence[Answer], embed: Embed) -> dict[str, float]:
    """Return by id how near each answer is to its reference. An empty answer is near to nothing: 0."""
    pairs = {
        found.question.id: (found.text, found.question.row.answer)
        for found in answers
        if isinstance(found.question.row, GoldenQuestion) and found.question.row.answer
    }
    near = dict.fromkeys(pairs, 0.0)
    said = {id: texts for id, texts in pairs.items() if texts[0]}
    if said:
        vectors = embed([text for texts in said.values() for text in texts])
        near |= {id: cosine(vectors[2 * n], vectors[2 * n + 1]) for n, id in enumerate(said)}
    return near


def means(table: Sequence[Row]) -> dict[str, float]:
    """Return `MODEL_MEASURE` for every measure but the primary one, over the rows of its set that have it."""
    found: dict[str, float] = {}
    for measure in MEASURES:
        if measure is PRIMARY:
            continue  # `losses.compare` has it, with its interval
        for model in dict.fromkeys(row["model"] for row in table):
            values = _values(table, measure, model)
            if values:
                found[f"{model}_{measure.name}"] = sum(values) / len(values)
    return found


def _values(table: Sequence[Row], measure: Measure, model: str) -> list[float]:
    rows = (row for row in table if row["set"] == measure.set and row["model"] == model)
    return [row[measure.name] for row in rows if row.get(measure.name) is not None]
