"""Measure candidate, base model and champion on the same held-out rows.

Reads the held-out rows of `validate_dataset`, the adapter of `train` (from S3, by digest), and the live
release's adapter from the ledger. Writes `rows.jsonl` (every row under every model) and `report.json`.
Refuses nothing; the gate judges. Fails with `ManifestError` or `ReleaseError` when an adapter's bytes are
not those that were named, and with `ModelError` when one does not fit its base model.
"""

import tempfile
from pathlib import Path
from typing import Any

from tasks import models
from tasks.contracts import Artifact, digest_of
from tasks.evaluation import paired
from tasks.evaluation.paired import Interval, Score
from tasks.evaluation.scores import BASE, Scored, score
from tasks.release.ledger import Release, ledger, live
from tasks.serving.language_model import fetch_adapter
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
    files = adapter_files(train.outputs)
    with tempfile.TemporaryDirectory(prefix="millrace-evaluate-") as local:
        candidate = context.storage.get_folder(files, Path(local) / CANDIDATE)
        scored = _score_all(context, recipe, rows, candidate, champion)
    metrics = compare({name: result.scores for name, result in scored.items()}, recipe)
    change = float((scored[CANDIDATE].probe - scored[BASE].probe).abs().max())
    written = context.storage.put_rows(f"{context.folder}/rows.jsonl", _rows(rows, scored))
    facts: dict[str, Any] = {
        "champion_release": champion.release if champion and CHAMPION in scored else None,
        "champion_adapter_sha256": champion.adapter_sha256 if champion and CHAMPION in scored else None,
        "adapter_sha256": digest_of(files),
        "held_out_sha256": held_out.sha256,
        "output_changed": change > _CHANGED,
        "rows": len(rows),
    }
    report = {"metrics": metrics, "facts": facts, "largest_logit_change": change, "recipe": recipe.model_dump()}
    return StageResult(
        outputs={"rows": written, "report": context.storage.put_json(f"{context.folder}/report.json", report)},
        counts={"rows": len(rows), "tokens": sum(s.tokens for s in scored[BASE].scores), "models": len(scored)},
        metrics=metrics | {"largest_logit_change": change},
        facts=facts,
        base_model=train.base_model,
    )


def adapter_files(outputs: dict[str, Artifact]) -> dict[str, Artifact]:
    """Return the adapter's files among the outputs of `train`, by their name in the adapter's folder."""
    return {name.removeprefix("adapter/"): item for name, item in outputs.items() if name.startswith("adapter/")}


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


def _score_all(
    context: StageContext, recipe: Recipe, rows: list[dict[str, Any]], candidate: Path, champion: Release | None
) -> dict[str, Scored]:
    """Score base, candidate and champion; a champion of another base model is scored on its own base."""
    base_model = str(context.inputs["train"].facts["base_model"])
    base_revision = str(context.inputs["train"].facts["base_revision"])
    adapters, other = {CANDIDATE: candidate}, None
    if champion is not None and champion.adapter_uri is not None and champion.adapter_sha256 is not None:
        cache = context.settings.cache_dir
        folder = fetch_adapter(context.storage, champion.adapter_uri, champion.adapter_sha256, cache)
        if champion.base_revision == base_revision:
            adapters[CHAMPION] = folder
        else:
            other = (champion.base_model, folder)
    found = dict(_score_on(context, recipe, rows, base_model, adapters))
    if other is not None:
        found[CHAMPION] = dict(_score_on(context, recipe, rows, other[0], {CHAMPION: other[1]}))[CHAMPION]
    return found


def _score_on(
    context: StageContext, recipe: Recipe, rows: list[dict[str, Any]], base_model: str, adapters: dict[str, Path]
) -> dict[str, Scored]:
    base = models.fetch(base_model, context.settings.cache_dir, context.storage)
    found: dict[str, Scored] = {}
    total = len(adapters) + 1
    for name, result in score(
        base,
        adapters,
        rows,
        recipe.data.system_prompt,
        recipe.data.max_tokens,
        recipe.evaluation.rows_per_batch,
        recipe.distribution.accelerator,
    ):
        found[name] = result
        context.progress(len(found), total, "models")
    return found


def _rows(rows: list[dict[str, Any]], scored: dict[str, Scored]) -> list[dict[str, Any]]:
    return [
        {
            "id": row["id"],
            "source": row["source"],
            "tokens": scored[BASE].scores[place].tokens,
            "loss": {name: result.scores[place].loss for name, result in scored.items()},
        }
        for place, row in enumerate(rows)
    ]


def _named(name: str, found: Interval) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


STAGE = Stage("evaluate", Options, run, needs=("validate_dataset", "train"))
