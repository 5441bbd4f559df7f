"""Gather training examples and split them by source.

Reads the examples source, accepted corrections of served answers, and the recipe (how many of each).
Writes `candidates.jsonl`. Corrections always become training rows, and come first. Fails with `DataError`
for a source that cannot be read or split, and with `RecipeError`.
"""

from collections import Counter

from tasks.database import connect
from tasks.stage import Stage, StageContext, StageOptions, StageResult, from_setting
from tasks.training import examples
from tasks.training.recipes import load_recipe


class Options(StageOptions):
    """Where examples come from, and for what."""

    examples: str = from_setting("examples", "docstrings:stdlib, a .jsonl file, or s3://bucket/file.jsonl")
    recipe: str = from_setting("recipe", "Name of a file in tasks/training/recipes")
    decision: str = ""


def run(context: StageContext, options: Options) -> StageResult:
    """Write the candidates of a dataset, each with its split."""
    data = load_recipe(options.recipe).data
    found = examples.read(options.examples, context.storage)
    with connect(context.settings.database_url.get_secret_value(), vectors=False) as connection:
        corrected = examples.corrections(connection)[: data.train_rows]
    chosen = corrected + examples.split(
        found, max(1, data.train_rows - len(corrected)), data.held_out_rows, data.rows_per_source
    )
    counts = Counter(f"{candidate.origin}_{candidate.split}" for candidate in chosen)
    sources = {side: len({c.source for c in chosen if c.split == side}) for side in ("train", "held_out")}
    rows = [candidate.model_dump(mode="json") for candidate in chosen]
    return StageResult(
        outputs={"candidates": context.storage.put_rows(f"{context.folder}/candidates.jsonl", rows)},
        counts={
            "available": len(found),
            "rows": len(rows),
            "sources_train": sources["train"],
            "sources_held_out": sources["held_out"],
            "feedback_train": 0,
            **counts,
        },
        facts={"examples": options.examples, "recipe": options.recipe, "decision": options.decision},
    )


STAGE = Stage("build_dataset", Options, run)
