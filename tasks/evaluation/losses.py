"""The losses that models are compared by, and their comparison: what `evaluate` writes, and the gate computes again.

Pure: reads and writes nothing but its arguments. Fails with `ModelError` when models read the rows as other tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.errors import ModelError
from tasks.evaluation import paired
from tasks.evaluation.measures import BASE, CANDIDATE, CHAMPION, MODELS
from tasks.evaluation.paired import Interval, Score
from tasks.evaluation.scores import Scored, preferences
from tasks.training.recipes import Recipe


def measured(scored: Mapping[str, Scored], recipe: Recipe) -> dict[str, list[Score]]:
    """Return the scores that models are compared by: of preferences the loss of each pair, else of each row's answers."""
    if recipe.optimisation.beta is not None:
        return preferences(scored, recipe.optimisation.beta)
    return {name: result.scores for name, result in scored.items()}


def answer_losses(scored: Mapping[str, Scored], recipe: Recipe) -> dict[str, float]:
    """Return, of preferences, the mean loss of the better answers' tokens too: what a model may lose while it learns to choose."""
    if recipe.optimisation.beta is None:
        return {}
    found = {name: result.scores[: len(result.scores) // 2] for name, result in scored.items()}
    return {
        f"{name}_answer_loss": sum(s.loss for s in rows) / sum(s.tokens for s in rows) for name, rows in found.items()
    }


def compare(scores: Mapping[str, list[Score]], recipe: Recipe) -> dict[str, float]:
    """Return the mean losses and the difference of the candidate to the champion, else to the base model."""
    how = {"resamples": recipe.evaluation.resamples, "seed": recipe.evaluation.seed}
    metrics: dict[str, float] = {}
    for name, found in scores.items():
        metrics |= _named(f"{name}_loss", paired.mean(found, **how))
    reference = scores.get(CHAMPION, scores[BASE])
    return metrics | _named("difference", paired.difference(scores[CANDIDATE], reference, **how))


def read_scores(rows: Sequence[dict[str, Any]]) -> dict[str, list[Score]]:
    """Return the scores that `rows.jsonl` holds, by model."""
    names = [name for name in MODELS if rows and name in rows[0]["loss"]]
    return {name: [Score(row["id"], row["loss"][name], row["tokens"]) for row in rows] for name in names}


def loss_rows(rows: Sequence[dict[str, Any]], scores: Mapping[str, list[Score]]) -> list[dict[str, Any]]:
    """Return the rows of `rows.jsonl`: every held-out row with its loss under every model."""
    return [
        {
            "id": row["id"],
            "source": row["source"],
            "tokens": scores[BASE][place].tokens,
            "loss": {name: found[place].loss for name, found in scores.items()},
        }
        for place, row in enumerate(rows)
    ]


def require_same_tokens(scored: Mapping[str, Scored]) -> None:
    """A loss per token compares only models that read the rows as the same tokens. Raises ModelError."""
    expected = [(score.id, score.tokens) for score in scored[BASE].scores]
    for name, result in scored.items():
        if [(score.id, score.tokens) for score in result.scores] != expected:
            raise ModelError(
                f"expected the {name} to read the held-out rows as the same tokens as the base model, found others. "
                "Next: train from a base model with the live model's tokenizer."
            )


def _named(name: str, found: Interval) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
