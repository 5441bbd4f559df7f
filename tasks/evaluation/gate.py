"""Say whether the candidate may be released: promote, hold or review.

Reads the manifests of `validate_dataset`, `train` and `evaluate`, the trained bytes, the evaluation sets and the scores of
every row. Writes `verdict.json` (the verdict, what was judged, what was not, what changed most) and `verdict.md`, the same for a
person. It believes no figure that it can compute: digests are taken again, and differences are computed again from the
scores. The verdict is bound to the weights' digest and to the digest of every set. Complete on promote and on review (the fact
`verdict` says which: a candidate for review is released by a person only), refused (exit code 3) on hold; what is missing,
broken, or about other bytes is hold. Each run judges again: no earlier verdict stands.
"""

from datetime import UTC, datetime
from typing import Any

from tasks.errors import EvidenceError, ManifestError
from tasks.evaluation import verdict_text
from tasks.evaluation.evaluate import compare, read_scores
from tasks.evaluation.measures import PRIMARY
from tasks.evaluation.pairs import Row
from tasks.evaluation.table import read_table
from tasks.evaluation.verdict import Result, examine
from tasks.release.weights import claimed, trained, verify
from tasks.stage import Stage, StageContext, StageOptions, StageResult
from tasks.training.recipes import Recipe, read_recipe

_ROUNDING = 1e-9


class Options(StageOptions):
    """No options: a gate has no switch."""


def run(context: StageContext, options: Options) -> StageResult:
    """Write the verdict on the candidate of this run."""
    train, evaluate = context.inputs["train"], context.inputs["evaluate"]
    recipe = read_recipe(context.storage, context.input("train", "recipe"))
    try:
        doubt = doubts(context, recipe)
        result = Result("hold", doubt) if doubt else _judged(context, recipe)
    except (ManifestError, EvidenceError) as error:
        result = Result("hold", str(error))
    facts: dict[str, Any] = {
        "verdict": result.word,
        "reason": result.reason,
        # A verdict that was given again is another one for what stands on it: `register` names this manifest's digest.
        "judged_at": datetime.now(UTC).isoformat(),
        "weights_sha256": claimed(evaluate.facts),
        "held_out_sha256": evaluate.facts.get("held_out_sha256"),
        "champion_release": evaluate.facts.get("champion_release"),
    }
    if "sets" in evaluate.facts:
        facts["sets"] = evaluate.facts["sets"]
    report = result.to_dict() | facts | {"metrics": evaluate.metrics, "left_out": evaluate.facts.get("left_out", {})}
    body = verdict_text.markdown(result, facts | {"judge": evaluate.facts.get("judge")}).encode()
    return StageResult(
        outputs={
            "verdict": context.storage.put_json(f"{context.folder}/verdict.json", report),
            "text": context.storage.put_bytes(f"{context.folder}/verdict.md", body, content_type="text/markdown"),
        },
        counts={"judged": len(result.judged), "not_judged": len(result.not_judged)},
        metrics={name: evaluate.metrics[name] for name in evaluate.metrics if name.startswith("difference")},
        facts=facts,
        status="refused" if result.word == "hold" else "complete",
        reason=f"hold: {result.reason}" if result.word == "hold" else None,
        base_model=train.base_model,
    )


def _judged(context: StageContext, recipe: Recipe) -> Result:
    """Judge the table of scores. Raises ManifestError, EvidenceError."""
    evaluate = context.inputs["evaluate"]
    if "scores" not in evaluate.outputs:  # measured before there was a table: no guard could be judged
        raise _changed("a table of scores among the outputs of evaluate", "none")
    table = _table(context)
    require_sets(context, table)
    require_losses(table, list(context.storage.get_rows(context.input("evaluate", "rows"))))
    return examine(table, evaluate.metrics, evaluate.facts, recipe.evaluation)


def _table(context: StageContext) -> list[Row]:
    artifact = context.input("evaluate", "scores")
    try:
        return list(read_table(context.storage, artifact))
    except ValueError as error:  # pyarrow's errors of malformed bytes are values' errors
        raise EvidenceError(
            f"expected the table of scores at {artifact.uri}, found {error}. Next: clear evaluate; it will be measured again."
        ) from error


def require_sets(context: StageContext, table: list[Row]) -> None:
    """Prove that the scores are those of the very sets that the evidence names. Raises EvidenceError, ManifestError."""
    evaluate, held_out = context.inputs["evaluate"], context.input("validate_dataset", "held_out")
    sets = evaluate.facts.get("sets")
    if not isinstance(sets, dict) or not all(isinstance(value, dict) for value in sets.values()):
        raise _changed("the sets with their digests among the facts of evaluate", sets)
    for name, said in sets.items():
        artifact = held_out if name == PRIMARY.set else context.input("evaluate", f"sets/{name}")
        if artifact.sha256 != said.get("sha256"):
            raise _changed(f"the set {name} with the digest {said.get('sha256')}", artifact.sha256)
        ids = [row["id"] for row in context.storage.get_rows(artifact)]
        found = {row["id"] for row in table if row["set"] == name}
        if set(ids) != found or len(ids) != said.get("rows"):
            raise _changed(f"scores of the {len(ids)} rows of {name}", f"{len(found)}, or those of other rows")


def require_losses(table: list[Row], scored: list[dict[str, Any]]) -> None:
    """Prove that table and rows say the same of the primary measure: metrics come from the one, guards from the other.

    Raises EvidenceError.
    """
    losses = {(row["id"], row["model"]): (row["loss"], row["tokens"]) for row in table if row["set"] == PRIMARY.set}
    for row in scored:
        for model, loss in row["loss"].items():
            found = losses.get((row["id"], model), (None, None))
            if found[0] is None or not abs(found[0] - loss) <= _ROUNDING or found[1] != row["tokens"]:
                raise _changed(f"loss {loss} and {row['tokens']} tokens of {row['id']} under {model}", found)


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


def _changed(expected: str, found: object) -> EvidenceError:
    return EvidenceError(f"expected {expected}, found {found}. Next: clear evaluate; it will be measured again.")


# Fleeting: to clear the gate is to judge anew, whatever stands there.
STAGE = Stage("gate", Options, run, needs=("validate_dataset", "train", "evaluate"), fleeting=True)
