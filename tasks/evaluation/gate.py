"""Say whether the candidate may be released: promote, hold or review.

Reads the manifests of `validate_dataset`, `train` and `evaluate`, the trained bytes and the scores of
every row. Writes `verdict.json`. It believes no figure that it can compute: digests are taken again, and
the difference is computed again from the scores. Refused (exit code 3) unless the verdict is promote;
what is missing, broken, or about other bytes is hold.
"""

from typing import Any

from tasks.errors import ManifestError
from tasks.evaluation.evaluate import compare, read_scores
from tasks.evaluation.verdict import Verdict, judge
from tasks.release.weights import claimed, trained, verify
from tasks.stage import Stage, StageContext, StageOptions, StageResult
from tasks.training.recipes import Recipe

_ROUNDING = 1e-9


class Options(StageOptions):
    """No options: a gate has no switch."""


def run(context: StageContext, options: Options) -> StageResult:
    """Write the verdict on the candidate of this run."""
    train, evaluate = context.inputs["train"], context.inputs["evaluate"]
    recipe = Recipe.model_validate(context.storage.get_json(context.input("train", "recipe")), strict=False)
    try:
        doubt = doubts(context, recipe)
    except ManifestError as error:
        doubt = str(error)
    verdict = Verdict("hold", doubt) if doubt else judge(evaluate.metrics, evaluate.facts, recipe.evaluation)
    facts: dict[str, Any] = {
        "verdict": verdict.word,
        "reason": verdict.reason,
        "weights_sha256": claimed(evaluate.facts),
        "held_out_sha256": evaluate.facts.get("held_out_sha256"),
        "champion_release": evaluate.facts.get("champion_release"),
    }
    report = context.storage.put_json(f"{context.folder}/verdict.json", facts | {"metrics": evaluate.metrics})
    return StageResult(
        outputs={"verdict": report},
        metrics={name: evaluate.metrics[name] for name in evaluate.metrics if name.startswith("difference")},
        facts=facts,
        status="complete" if verdict.word == "promote" else "refused",
        reason=None if verdict.word == "promote" else f"{verdict.word}: {verdict.reason}",
        base_model=train.base_model,
    )


def doubts(context: StageContext, recipe: Recipe) -> str:
    """Return why the evidence is not about this candidate, or an empty text. Raises ManifestError for other bytes."""
    train, evaluate = context.inputs["train"], context.inputs["evaluate"]
    weights = trained(train)
    held_out = context.input("validate_dataset", "held_out")
    for name, expected, found in (
        (weights.kind, weights.sha256, train.facts.get(f"{weights.kind}_sha256")),
        (weights.kind, weights.sha256, claimed(evaluate.facts)),
        ("held-out set", held_out.sha256, evaluate.facts.get("held_out_sha256")),
    ):
        if expected != found:
            return f"the evidence is about another {name}: {found}, not {expected}"
    verify(context.storage, weights)
    scored = list(context.storage.get_rows(context.input("evaluate", "rows")))
    held_out_ids = [row["id"] for row in context.storage.get_rows(held_out)]
    if [row["id"] for row in scored] != held_out_ids or evaluate.facts.get("rows") != len(scored):
        return "the scores are not those of the held-out rows"
    scores = read_scores(scored)
    if ("champion" in scores) != (evaluate.facts.get("champion_release") is not None):
        return "the scores and the report disagree about the champion"
    again = compare(scores, recipe)
    for name, value in again.items():
        if not abs(evaluate.metrics.get(name, float("nan")) - value) <= _ROUNDING:
            return f"{name} is {evaluate.metrics.get(name)} in the report, but the scores of the rows give {value}"
    return ""


STAGE = Stage("gate", Options, run, needs=("validate_dataset", "train", "evaluate"))
