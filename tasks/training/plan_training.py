"""The token report: what a training will read, how long it will take and what it will cost, before any GPU is used.

Reads the frozen rows of `validate_dataset`, the recipe, and the base model's configuration and tokenizer (no weights);
an adapter to start from, if one is named; and earlier trainings, for the estimate. Writes `plan.json`, and the same as a
table to the log. Ends all that training would stumble over with bad input: a row without room for its answer, a longer
row than the model's context, a tokenizer without a chat template, an adapter of another base model, layers that the model
does not have, a number of GPUs or nodes that the recipe does not fit. Is refused when more rows are truncated than
`data.max_truncated` allows.
"""

import logging
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from tasks import models
from tasks.errors import DataError
from tasks.stage import Stage, StageContext, StageOptions, StageResult, from_setting
from tasks.training import fit, flops, packing
from tasks.training.encoding import encode, encode_pairs
from tasks.training.estimate import Estimate, Work, estimate
from tasks.training.recipes import Recipe, load_recipe, require_packages
from tasks.training.rows import Row

log = logging.getLogger(__name__)

_UNCUT = 1 << 40  # tokens: no row is longer
_BATCH = 1000  # rows between two reports of progress


class Options(StageOptions):
    """Recipe, base model, and where it will run."""

    recipe: str = from_setting("recipe", "Name of a file in tasks/training/recipes, or a .yaml of your own")
    base_model: str = from_setting("base_model", "package:..., hub:ORG/NAME@REVISION or s3://bucket/folder")
    adapter: str = ""
    gpus_per_node: int = 1
    node_count: int = 1


@dataclass(frozen=True)
class Report:
    """What the training reads. `tokens` are those of all epochs, after the cut; of a pair, both answers as the longer one."""

    rows: int
    min_tokens: int
    median_tokens: int
    p95_tokens: int
    max_tokens: int
    truncated: int
    truncated_share: float
    truncated_tokens: int
    packs: int | None
    fill: float
    ranks: int
    nodes: int
    steps: int
    tokens: int


def run(context: StageContext, options: Options) -> StageResult:
    """Measure the rows, check that all fits together, and estimate time and cost."""
    recipe = load_recipe(options.recipe, storage=context.storage)
    require_packages(recipe)
    fit.require_machines(recipe, options.gpus_per_node, options.node_count, context.settings.gpus_per_node)
    world = ranks(recipe, options.gpus_per_node) * recipe.distribution.nodes
    recipe.accumulation(world)
    folder = models.fetch_tokenizer(options.base_model, context.settings.cache_dir, context.storage)
    config = fit.base_config(folder, options.base_model)
    fit.require_context(config, recipe, options.base_model)
    shapes = fit.base_shapes(config, options.base_model)
    fit.require_targets(shapes, recipe, options.base_model)
    if options.adapter:
        fit.require_adapter(context.storage, options.adapter, options.base_model, shapes, recipe)
    tokenizer = fit.load_tokenizer(folder, options.base_model, recipe)
    lengths, sides = _measure(context, tokenizer, recipe)
    report = make_report(lengths, recipe, world)
    work = Work(report.tokens, flops.context([min(length, recipe.data.max_tokens) for length in lengths]), world)
    figures = estimate(context, options.recipe, recipe, options.base_model, flops.shape(config), work)
    for line in table(report, figures, recipe, sides):
        log.info("%s", line)
    plan = asdict(report) | {"sides": sides, "estimate": asdict(figures), "recipe": recipe.model_dump(mode="json")}
    return _result(context, options, recipe, report, figures, plan)


def ranks(recipe: Recipe, gpus_per_node: int) -> int:
    """Return the ranks of one node, as the recipe says or as many as it has GPUs."""
    wanted = recipe.distribution.ranks
    return gpus_per_node if wanted == "all" else wanted


def measured(tokenizer: Any, rows: list[Row], recipe: Recipe) -> list[int]:
    """Return the length in tokens of every row before any cut; a pair is as long as its longer answer. Raises DataError, ModelError."""
    if recipe.method != "dpo":
        return _lengths(tokenizer, rows, recipe)
    pairs = encode_pairs(tokenizer, rows, recipe.data.system_prompt, _UNCUT)
    longest = [max(len(pair.chosen.input_ids), len(pair.rejected.input_ids)) for pair in pairs]
    long = [row for row, length in zip(rows, longest, strict=True) if length > recipe.data.max_tokens]
    encode_pairs(tokenizer, long, recipe.data.system_prompt, recipe.data.max_tokens)
    return longest


def make_report(lengths: list[int], recipe: Recipe, world: int) -> Report:
    """Return what a training reads whose rows have these lengths, uncut. Raises DataError when there is none."""
    if not lengths:
        raise DataError("expected training rows, found none. Next: see the report of validate_dataset.")
    how, limit = recipe.optimisation, recipe.data.max_tokens
    kept = [min(length, limit) for length in lengths]
    truncated = sum(length > limit for length in lengths)
    packs = packing.pack(kept, limit) if how.packing else None
    a_step = len(packs) if packs is not None else len(kept)
    ordered = sorted(lengths)
    return Report(
        rows=len(lengths),
        min_tokens=ordered[0],
        median_tokens=round(statistics.median(ordered)),
        p95_tokens=ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        max_tokens=ordered[-1],
        truncated=truncated,
        truncated_share=truncated / len(lengths),
        truncated_tokens=sum(lengths) - sum(kept),
        packs=None if packs is None else len(packs),
        fill=packing.fill(kept, packs, limit) if packs is not None else padded_fill(kept, how.rows_per_batch),
        ranks=world,
        nodes=recipe.distribution.nodes,
        steps=-(-a_step // how.rows_per_step) * how.epochs,
        tokens=sum(kept) * how.epochs * (2 if recipe.method == "dpo" else 1),
    )


def padded_fill(lengths: list[int], rows_per_batch: int) -> float:
    """Return the share of batches that holds tokens, where rows of similar length stand together."""
    ordered = sorted(lengths)
    batches = [ordered[start : start + rows_per_batch] for start in range(0, len(ordered), rows_per_batch)]
    return sum(ordered) / sum(len(batch) * batch[-1] for batch in batches)


def table(report: Report, figures: Estimate, recipe: Recipe, sides: dict[str, int]) -> list[str]:
    """Return the report as lines for a reader."""
    how = recipe.optimisation
    packs = (
        f"{report.packs:,} of up to {recipe.data.max_tokens:,} tokens, {report.fill:.1%} full"
        if report.packs is not None
        else f"none; batches of {how.rows_per_batch} rows, {report.fill:.1%} full"
    )
    cost = "unknown: set MILLRACE_GPU_HOUR_PRICE" if figures.cost is None else f"{figures.cost:,.2f}"
    lines = {
        "rows": ", ".join(f"{count:,} {side}" for side, count in sides.items()),
        "tokens a row": f"min {report.min_tokens:,}, median {report.median_tokens:,}, 95 % up to {report.p95_tokens:,}, "
        f"max {report.max_tokens:,}",
        "truncated": f"{report.truncated:,} rows ({report.truncated_share:.1%}, at most {recipe.data.max_truncated:.1%}) "
        f"lose {report.truncated_tokens:,} tokens",
        "packs": packs,
        "steps": f"{report.steps:,}: {how.epochs} epochs, {how.rows_per_step} rows a step on {report.ranks} ranks of "
        f"{report.nodes} nodes",
        "tokens": f"{report.tokens:,} in all",
        "time": f"about {_duration(figures.seconds)}, by {figures.basis}",
        "GPU hours": f"{figures.gpu_hours:,.2f}",
        "cost": cost,
    }
    return [f"{name:<13} {value}" for name, value in lines.items()]


def _measure(context: StageContext, tokenizer: Any, recipe: Recipe) -> tuple[list[int], dict[str, int]]:
    """Return the lengths of the training rows, and how many rows each side has; rows of other sides must fit as well."""
    lengths: list[int] = []
    sides: dict[str, int] = {}
    for side in ("train", "validation", "held_out"):
        if side not in context.inputs["validate_dataset"].outputs:
            continue
        rows = list(context.storage.get_rows(context.input("validate_dataset", side)))
        sides[side] = len(rows)
        for start in range(0, len(rows), _BATCH):
            found = measured(tokenizer, rows[start : start + _BATCH], recipe)
            lengths += found if side == "train" else []
            context.progress(min(start + _BATCH, len(rows)), len(rows), f"{side} rows")
    return lengths, sides


def _lengths(tokenizer: Any, rows: list[Row], recipe: Recipe) -> list[int]:
    prompt, limit = recipe.data.system_prompt, recipe.data.max_tokens
    lengths = [len(example.input_ids) for example in encode(tokenizer, rows, prompt, _UNCUT)]
    # Those that are too long are encoded as training does it: a question that leaves no room for its answer is an error.
    encode(tokenizer, [row for row, length in zip(rows, lengths, strict=True) if length > limit], prompt, limit)
    return lengths


def _result(
    context: StageContext, options: Options, recipe: Recipe, report: Report, figures: Estimate, plan: dict[str, Any]
) -> StageResult:
    refused = report.truncated_share > recipe.data.max_truncated
    return StageResult(
        outputs={"plan": context.storage.put_json(f"{context.folder}/plan.json", plan)},
        counts={name: getattr(report, name) for name in ("rows", "truncated", "steps", "tokens", "ranks", "nodes")},
        metrics={
            "truncated_share": report.truncated_share,
            "fill": report.fill,
            "seconds": figures.seconds,
            "gpu_hours": figures.gpu_hours,
            **({"cost": figures.cost} if figures.cost is not None else {}),
        },
        facts={
            "recipe": options.recipe,
            "base_model": options.base_model,
            "adapter": options.adapter,
            "basis": figures.basis,
            "evaluation_gpus": recipe.evaluation.gpus,
        },
        status="refused" if refused else "complete",
        reason=(
            f"expected at most {recipe.data.max_truncated:.1%} of the training rows to be longer than "
            f"{recipe.data.max_tokens} tokens, found {report.truncated} of {report.rows} ({report.truncated_share:.1%}; the "
            f"longest has {report.max_tokens}). Next: raise data.max_tokens in the recipe, or shorten the examples."
            if refused
            else None
        ),
    )


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h"


STAGE = Stage("plan_training", Options, run, needs=("validate_dataset",))
