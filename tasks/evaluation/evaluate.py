"""Measure candidate, base model and champion on the same held-out rows.

Reads the held-out rows of `validate_dataset`, the weights of `train` (from S3, by digest; an adapter is scored
upon the base model, a whole model on its own, with the base model's tokenizer), and the live release's weights as
the ledger names them. Writes `rows.jsonl` (every row under every model) and `report.json`. Refuses
nothing; the gate judges. Fails with `ManifestError`, `ReleaseError` or `ModelError` when bytes are not those that
were named, and with `ModelError` when an adapter does not fit its base model, or the champion reads other tokens.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import models
from tasks.errors import ModelError
from tasks.evaluation import paired
from tasks.evaluation.paired import Interval, Score
from tasks.evaluation.scores import BASE, Scored, preferences, score
from tasks.release.ledger import Release, ledger, live
from tasks.release.signing import verify
from tasks.release.weights import Weights, trained
from tasks.serving.adapters import fetch_adapter, folder_digest
from tasks.stage import Stage, StageContext, StageOptions, StageResult
from tasks.training.recipes import Recipe

CANDIDATE, CHAMPION = "candidate", "champion"
_CHANGED = 1e-3  # the least difference of a logit that counts as another output


class Options(StageOptions):
    """No options: the recipe that was trained with says how."""


def run(context: StageContext, options: Options) -> StageResult:
    """Score the held-out rows under every model and compare them in pairs."""
    train = context.inputs["train"]
    recipe = Recipe.model_validate(context.storage.get_json(context.input("train", "recipe")), strict=False)
    held_out = context.input("validate_dataset", "held_out")
    rows = list(context.storage.get_rows(held_out))
    with ledger(context.settings) as connection:
        champion = live(connection)
        if champion is not None:
            verify(context.settings, context.storage, connection, champion)
    weights = trained(train)
    # Before anything is scored: a champion that cannot be had is told at once.
    live_weights = _champion(context, champion) if champion else None
    with tempfile.TemporaryDirectory(prefix="millrace-evaluate-") as local:
        folder = context.storage.get_folder(dict(weights.files), Path(local) / CANDIDATE)
        scored = _score_all(context, recipe, rows, (weights, folder), live_weights)
    scores = measured(scored, recipe)
    metrics = compare(scores, recipe)
    change = float((scored[CANDIDATE].probe - scored[BASE].probe).abs().max())
    written = context.storage.put_rows(f"{context.folder}/rows.jsonl", _rows(rows, scores))
    facts: dict[str, Any] = {
        "champion_release": champion.release if champion else None,
        "champion_weights_sha256": live_weights.sha256 if live_weights else None,
        "weights": weights.kind,
        "weights_sha256": weights.sha256,
        "held_out_sha256": held_out.sha256,
        "measure": "loss of answer tokens" if recipe.optimisation.beta is None else "preference loss of pairs",
        "output_changed": change > _CHANGED,
        "rows": len(rows),
    }
    report = {"metrics": metrics, "facts": facts, "largest_logit_change": change, "recipe": recipe.model_dump()}
    return StageResult(
        outputs={"rows": written, "report": context.storage.put_json(f"{context.folder}/report.json", report)},
        counts={"rows": len(rows), "tokens": sum(s.tokens for s in scored[BASE].scores), "models": len(scored)},
        metrics=metrics | answer_losses(scored, recipe) | {"largest_logit_change": change},
        facts=facts,
        base_model=train.base_model,
    )


def measured(scored: dict[str, Scored], recipe: Recipe) -> dict[str, list[Score]]:
    """Return the scores that models are compared by: of preferences the loss of each pair, else of each row's answers."""
    if recipe.optimisation.beta is not None:
        return preferences(scored, recipe.optimisation.beta)
    return {name: result.scores for name, result in scored.items()}


def answer_losses(scored: dict[str, Scored], recipe: Recipe) -> dict[str, float]:
    """Return, of preferences, the mean loss of the better answers' tokens too: what a model may lose while it learns to choose."""
    if recipe.optimisation.beta is None:
        return {}
    found = {name: result.scores[: len(result.scores) // 2] for name, result in scored.items()}
    return {
        f"{name}_answer_loss": sum(s.loss for s in rows) / sum(s.tokens for s in rows) for name, rows in found.items()
    }


def compare(scores: dict[str, list[Score]], recipe: Recipe) -> dict[str, float]:
    """Return the mean losses and the difference of the candidate to the champion, else to the base model."""
    how = {"resamples": recipe.evaluation.resamples, "seed": recipe.evaluation.seed}
    metrics: dict[str, float] = {}
    for name, found in scores.items():
        metrics |= _named(f"{name}_loss", paired.mean(found, **how))
    reference = scores.get(CHAMPION, scores[BASE])
    return metrics | _named("difference", paired.difference(scores[CANDIDATE], reference, **how))


def read_scores(rows: list[dict[str, Any]]) -> dict[str, list[Score]]:
    """Return the scores that `rows.jsonl` holds, by model."""
    names = [name for name in (BASE, CANDIDATE, CHAMPION) if rows and name in rows[0]["loss"]]
    return {name: [Score(row["id"], row["loss"][name], row["tokens"]) for row in rows] for name in names}


@dataclass(frozen=True)
class Champion:
    """The weights of the live release on this machine; without `model`, the adapter is one upon the candidate's base."""

    sha256: str
    model: Path | None
    adapter: Path | None


def _champion(context: StageContext, release: Release) -> Champion:
    """Fetch what the live release answers with, proven to be the released bytes. Raises ReleaseError, ModelError."""
    storage, cache = context.storage, context.settings.cache_dir
    adapter = None
    if release.adapter_uri is not None and release.adapter_sha256 is not None:
        adapter = fetch_adapter(storage, release.adapter_uri, release.adapter_sha256, cache)
        if release.base_revision == context.inputs["train"].facts["base_revision"]:
            return Champion(release.adapter_sha256, None, adapter)
    model = _model(context, release.base_model, release.base_revision)
    return Champion(release.adapter_sha256 or folder_digest(model), model, adapter)


def _model(context: StageContext, reference: str, revision: str) -> Path:
    """Return the folder of a model whose weights are those of `revision`. Raises ModelError."""
    folder = models.fetch(reference, context.settings.cache_dir, context.storage)
    if (found := models.revision(reference, folder)) != revision:
        raise ModelError(
            f"expected revision {revision} of {reference}, as it was trained from or released, found {found}. "
            "Next: restore that model, or train from the one that is there."
        )
    return folder


def _score_all(
    context: StageContext,
    recipe: Recipe,
    rows: list[dict[str, Any]],
    candidate: tuple[Weights, Path],
    champion: Champion | None,
) -> dict[str, Scored]:
    """Score base, candidate and champion, with as many adapters as can be on one model in memory."""
    facts = context.inputs["train"].facts
    base = _model(context, str(facts["base_model"]), str(facts["base_revision"]))
    weights, folder = candidate
    on_base: dict[str, Path | None] = {BASE: None}
    passes = [(base, on_base, base)]  # model, the adapters that are scored upon it, tokenizer
    if weights.kind == "adapter":
        on_base[CANDIDATE] = folder
    else:
        passes.append((models.require_weights(folder, weights.uri), {CANDIDATE: None}, base))
    if champion is not None:
        if champion.model is None:
            on_base[CHAMPION] = champion.adapter
        else:
            passes.append((champion.model, {CHAMPION: champion.adapter}, champion.model))
    found: dict[str, Scored] = {}
    total = sum(len(names) for _model, names, _tokenizer in passes)
    for model, names, tokenizer in passes:
        for name, result in score(model, names, rows, recipe, tokenizer):
            found[name] = result
            context.progress(len(found), total, "models")
    _require_same_tokens(found)
    return found


def _require_same_tokens(scored: dict[str, Scored]) -> None:
    """A loss per token compares only models that read the rows as the same tokens. Raises ModelError."""
    expected = [(score.id, score.tokens) for score in scored[BASE].scores]
    for name, result in scored.items():
        if [(score.id, score.tokens) for score in result.scores] != expected:
            raise ModelError(
                f"expected the {name} to read the held-out rows as the same tokens as the base model, found others. "
                "Next: train from a base model with the live model's tokenizer."
            )


def _rows(rows: list[dict[str, Any]], scores: dict[str, list[Score]]) -> list[dict[str, Any]]:
    return [
        {
            "id": row["id"],
            "source": row["source"],
            "tokens": scores[BASE][place].tokens,
            "loss": {name: found[place].loss for name, found in scores.items()},
        }
        for place, row in enumerate(rows)
    ]


def _named(name: str, found: Interval) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


STAGE = Stage("evaluate", Options, run, needs=("validate_dataset", "train"))
