"""Measure candidate, base model and champion on the same rows: held-out, and the frozen sets that are answered.

Reads the held-out rows of `validate_dataset`, the weights of `train` (from S3, by digest; an adapter is scored
upon the base model, a whole model on its own, with the base model's tokenizer), the live release's weights as
the ledger names them, golden questions, probes, the assistant's prompt and the index version that serves. Writes `rows.jsonl`
(the loss of every held-out row under every model), `scores.parquet` (every row, every model, every measure), the sets that
were asked, what was found for them, `report.json`, and the table in MLflow. Refuses nothing; the gate judges. Fails with
`ManifestError`, `ReleaseError` or `ModelError` when bytes are not those that were named, with `ModelError` when an adapter does
not fit its base model, or the champion reads other tokens, and with `ServiceUnavailable` when MLflow is away.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.contracts import Artifact
from tasks.evaluation.answers import Answer, answer, hit_rows, with_hits
from tasks.evaluation.champion import Champion, Pass, fetch_champion, passes
from tasks.evaluation.fill import answer_rows, held_out_rows, means
from tasks.evaluation.identity import identity
from tasks.evaluation.judge import Comparison, Judged, endpoint, judged
from tasks.evaluation.losses import answer_losses, compare, loss_rows, measured, read_scores, require_same_tokens
from tasks.evaluation.measures import BASE, CANDIDATE, CHAMPION
from tasks.evaluation.publish import publish
from tasks.evaluation.scores import Scored, encoded, let_go, patient_threads, score_rows, switched
from tasks.evaluation.sets import Frozen, Question, freeze
from tasks.evaluation.table import put_table
from tasks.knowledge import index_tables
from tasks.knowledge.cache import EmbeddingCache
from tasks.knowledge.corpora import DEFAULT, settings_of
from tasks.knowledge.index_tables import Version
from tasks.release.ledger import Release, ledger, live
from tasks.release.propose import read_prompt
from tasks.release.signing import verify
from tasks.release.weights import trained
from tasks.serving.prompt import Prompt, parse_prompt
from tasks.stage import Stage, StageContext, StageOptions, StageResult
from tasks.training.encoding import pad_id
from tasks.training.endpoint import ChatEndpoint
from tasks.training.recipes import Recipe, read_recipe

__all__ = ["STAGE", "compare", "read_scores"]
NO_TEMPLATE = "the base model has no chat template, so it answers nobody"
_CHANGED = 1e-3  # the least difference of a logit that counts as another output


class Options(StageOptions):
    """No options: the recipe that was trained with says how."""


@dataclass
class Found:
    """What was measured, by model."""

    scored: dict[str, Scored] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """What every model is asked, with which prompt, and the embedder of the index it was found in."""

    frozen: Frozen
    prompt: Prompt
    version: Version | None
    cache: EmbeddingCache | None
    questions: Sequence[Question]
    judge: ChatEndpoint | None


def run(context: StageContext, options: Options) -> StageResult:
    """Measure all models and compare them in pairs."""
    train = context.inputs["train"]
    recipe = read_recipe(context.storage, context.input("train", "recipe"))
    held_out = context.input("validate_dataset", "held_out")
    rows = list(context.storage.get_rows(held_out))
    with ledger(context.settings) as connection:
        release, version = live(connection), index_tables.current(connection)
        signed = verify(context.settings, context.storage, connection, release) if release is not None else None
    weights = trained(train)
    # Before anything is scored: a champion that cannot be had, or a set that cannot be read, is told at once.
    champion = fetch_champion(context, release, signed) if release else None
    asked = ask(context, recipe, version)
    with tempfile.TemporaryDirectory(prefix="millrace-evaluate-") as local:
        folder = context.storage.get_folder(dict(weights.files), Path(local) / CANDIDATE)
        found = _measure(context, recipe, rows, passes(context, (weights, folder), champion), asked)
    scores = measured(found.scored, recipe)
    table = held_out_rows(rows, scores) + answered_rows(found, asked)
    change = float((found.scored[CANDIDATE].probe - found.scored[BASE].probe).abs().max())
    metrics = compare(scores, recipe) | means(table)
    metrics |= answer_losses(found.scored, recipe) | {"largest_logit_change": change}
    outputs = {
        **asked.frozen.outputs,
        "rows": context.storage.put_rows(f"{context.folder}/rows.jsonl", loss_rows(rows, scores)),
        "scores": put_table(context.storage, f"{context.folder}/scores.parquet", table),
    }
    facts: dict[str, Any] = {
        **_about_champion(release, champion),
        **_about_sets(asked, held_out),
        "weights": weights.kind,
        "weights_sha256": weights.sha256,
        "held_out_sha256": held_out.sha256,
        "measure": "loss of answer tokens" if recipe.optimisation.beta is None else "preference loss of pairs",
        "output_changed": change > _CHANGED,
        "rows": len(rows),
    }
    if opinion := opinions(found, asked, recipe.evaluation.seed):
        outputs["judge"] = context.storage.put_rows(f"{context.folder}/judge.jsonl", opinion.rows)
        metrics |= opinion.metrics
        facts["judge"] = opinion.facts
    run_id = str(train.facts["mlflow_run_id"])
    facts["mlflow_table"] = publish(context.settings, run_id, table, outputs["scores"], metrics)
    report = {"metrics": metrics, "facts": facts, "recipe": recipe.model_dump()}
    outputs["report"] = context.storage.put_json(f"{context.folder}/report.json", report)
    return StageResult(
        outputs=outputs,
        counts=_counts(rows, found),
        metrics=metrics,
        facts=facts,
        base_model=train.base_model,
        gpus=recipe.evaluation.gpus if recipe.distribution.accelerator == "cuda" else 0,
    )


def ask(context: StageContext, recipe: Recipe, version: Version | None) -> Asked:
    """Freeze the sets, look up the golden questions, and write what was found. Raises DataError, ReleaseError.

    The index that serves is named only where it was searched.
    """
    prompt = parse_prompt(read_prompt(context.settings), context.settings.prompt)
    frozen = freeze(context.settings, context.storage, context.folder, recipe.evaluation, indexed=version is not None)
    judge = endpoint(context.settings)
    if version is None or "golden" in frozen.left_out:
        return Asked(frozen, prompt, None, None, frozen.questions, judge)
    cache = EmbeddingCache(settings_of(context.settings, DEFAULT), version.embedder)
    questions = with_hits(cache, version, frozen.questions, prompt.front.documents)
    frozen.outputs["hits"] = context.storage.put_rows(f"{context.folder}/sets/hits.jsonl", hit_rows(questions))
    return Asked(frozen, prompt, version, cache, questions, judge)


def _measure(
    context: StageContext, recipe: Recipe, rows: list[dict[str, Any]], wanted: Sequence[Pass], asked: Asked
) -> Found:
    """Load one model after the other; under each of its names, score the held-out rows and answer the questions."""
    patient_threads()
    found = Found()
    total = sum(len(one.names) for one in wanted)
    for one in wanted:
        _measure_one(recipe, rows, one, asked, found, lambda: context.progress(len(found.scored), total, "models"))
        let_go()
    require_same_tokens(found.scored)
    if set(found.answers) != set(found.scored):
        found.answers.clear()
        asked.frozen.leave_out(NO_TEMPLATE)
    return found


def _measure_one(
    recipe: Recipe, rows: list[dict[str, Any]], one: Pass, asked: Asked, found: Found, told: Callable[[], None]
) -> None:
    """Add to `found` what one model gives. When this has returned, nothing here holds the model any more."""
    from transformers import AutoTokenizer

    how, tokenizer = recipe.evaluation, AutoTokenizer.from_pretrained(one.tokenizer)
    examples = encoded(tokenizer, rows, recipe)
    for name, model in switched(one.model, one.names, recipe):
        found.scored[name] = score_rows(model, examples, how.rows_per_batch, pad_id(tokenizer))
        if tokenizer.chat_template is not None:
            found.answers[name] = answer(
                model, tokenizer, asked.prompt, asked.questions, how.answer_tokens, how.rows_per_batch
            )
        told()


def answered_rows(found: Found, asked: Asked) -> list[dict[str, Any]]:
    """Return the rows of the table for all answers; what they are near to is told by the embedder of the index."""

    def embed(texts: list[str]) -> Any:
        assert asked.cache is not None  # golden questions are asked only where there is an index
        return asked.cache.model.encode(texts)

    return [row for name, answers in found.answers.items() for row in answer_rows(name, answers, asked.prompt, embed)]


def opinions(found: Found, asked: Asked, seed: int) -> Judged | None:
    """Return what the judge says of the candidate's golden answers beside the champion's, else the base model's; None without one."""
    against = CHAMPION if CHAMPION in found.answers else BASE
    pairs = [
        Comparison(one.question.id, one.question.question, "\n\n".join(one.shown), one.text, other.text)
        for one, other in zip(found.answers.get(CANDIDATE, []), found.answers.get(against, []), strict=True)
        if one.question.set == "golden"
    ]
    return judged(asked.judge, pairs, against, seed) if asked.judge and pairs else None


def _about_champion(release: Release | None, champion: Champion | None) -> dict[str, Any]:
    return {
        "champion_release": release.release if release else None,
        "champion_weights_sha256": champion.sha256 if champion else None,
    }


def _about_sets(asked: Asked, held_out: Artifact) -> dict[str, Any]:
    """Return what was asked: digests, why sets were left out, and with which prompt and index."""
    version = asked.version
    return {
        "sets": {"held_out": {"sha256": held_out.sha256, "rows": held_out.rows}} | asked.frozen.digests(),
        "left_out": asked.frozen.left_out,
        "prompt_sha256": asked.prompt.sha256,
        "index_version": version.version if version else None,
        "embedder": version.embedder if version else None,
    }


def _counts(rows: Sequence[dict[str, Any]], found: Found) -> dict[str, int]:
    answers = [one for answers in found.answers.values() for one in answers]
    return {
        "rows": len(rows),
        "tokens": sum(score.tokens for score in found.scored[BASE].scores),
        "models": len(found.scored),
        "answers": len(answers),
        "answer_tokens": sum(one.new_tokens for one in answers),
        "context_tokens_cut": sum(one.context_tokens_cut for one in answers),
    }


STAGE = Stage("evaluate", Options, run, needs=("validate_dataset", "train"), reads=identity)
