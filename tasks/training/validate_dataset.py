"""Validate the candidates and freeze them as a dataset.

Reads the candidates of `build_dataset`, the suite `expectations/training_examples.json` and the golden
questions. Writes rejected rows to table `quarantine` and to `quarantine.jsonl`, and the rest to
`s3://BUCKET/datasets/DIGEST/{train,held_out}.jsonl`, never rewritten. A training row that says what a
held-out row or a golden question says is rejected; above `data.max_overlap` of the recipe the dataset is
refused, for then the split is wrong. Fails with `DataError` when one source is on both sides, or when
nothing is left.
"""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tasks.contracts import Artifact, digest
from tasks.database import connect
from tasks.errors import DataError
from tasks.knowledge import quarantine
from tasks.knowledge.quarantine import Rejection
from tasks.settings import repository_path
from tasks.stage import Stage, StageContext, StageOptions, StageResult
from tasks.training.overlap import nearest_earlier
from tasks.training.recipes import load_recipe

SUITE = "training_examples"
OVERLAP = "train_row_is_not_held_out"
Row = dict[str, Any]


class Options(StageOptions):
    """No options: the rules are in the suite, the sizes in the recipe."""


def run(context: StageContext, options: Options) -> StageResult:
    """Reject bad rows with a reason, and freeze the rest by digest."""
    rows = list(context.storage.get_rows(context.input("build_dataset", "candidates")))
    data = load_recipe(str(context.inputs["build_dataset"].options["recipe"].value)).data
    require_apart(rows)
    rejected = broken_rows(rows) | {}
    rejected |= overlaps([row for row in rows if row["id"] not in rejected], golden_questions(context))
    good = [row for row in rows if row["id"] not in rejected]
    train, held_out = (sorted(_side(good, side), key=lambda row: row["id"]) for side in ("train", "held_out"))
    if not train or not held_out:
        raise DataError(
            f"expected rows on both sides of the split after validation, found {len(train)} to train and {len(held_out)} "
            f"held out ({len(rejected)} rejected). Next: see {context.folder}/quarantine.jsonl; mend the examples."
        )
    share = sum(OVERLAP in broken for broken in rejected.values()) / len(_side(rows, "train"))
    by_rule = dict(sorted(Counter(rule for broken in rejected.values() for rule in broken).items()))
    outputs = {"quarantine": _quarantine(context, rows, rejected)}
    frozen, sha256 = _freeze(context, train, held_out)
    too_much = share > data.max_overlap
    return StageResult(
        status="refused" if too_much else "complete",
        reason=f"{share:.0%} of the training rows are held out too, more than {data.max_overlap:.0%}"
        if too_much
        else None,
        outputs=outputs | frozen,
        counts={
            "train": len(train),
            "held_out": len(held_out),
            "quarantined": len(rejected),
            **{f"{origin}_train": n for origin, n in Counter(row["origin"] for row in train).items()},
        },
        metrics={"overlap_share": share},
        facts={"dataset_sha256": sha256, "quarantined_by_rule": by_rule},
    )


def require_apart(rows: Iterable[Row]) -> None:
    """Raise DataError when a source is on both sides of the split."""
    sides: dict[str, set[str]] = {"train": set(), "held_out": set()}
    for row in rows:
        sides[row["split"]].add(row["source"])
    if both := sorted(sides["train"] & sides["held_out"]):
        raise DataError(
            f"expected every source on one side of the split, found {both[:5]} on both. Next: clear build_dataset."
        )


def broken_rows(rows: list[Row]) -> dict[str, dict[str, str]]:
    """Return by id the rules that rows break: those of the suite, then near copies of earlier rows on their side."""
    from tasks.validation import validate

    report = validate(SUITE, [_columns(row) for row in rows])
    rejected = {row["id"]: broken for row, broken in zip(rows, report.rows, strict=True) if broken}
    for side in ("train", "held_out"):
        good = _side([row for row in rows if row["id"] not in rejected], side)
        for position, earlier in nearest_earlier([_answer(row) for row in good]).items():
            reason = f"expected an answer of its own, found that of {good[earlier]['id']}"
            rejected[good[position]["id"]] = {"answer_is_new": reason}
    return rejected


def overlaps(rows: list[Row], golden: list[str]) -> dict[str, dict[str, str]]:
    """Return by id the training rows whose answer is held out, or whose question is a golden question."""
    held_out, train = _side(rows, "held_out"), _side(rows, "train")
    answers = nearest_earlier([_answer(row) for row in held_out + train])
    questions = nearest_earlier(golden + [_question(row) for row in train])
    rejected: dict[str, dict[str, str]] = {}
    for position, row in enumerate(train):
        answer, question = answers.get(len(held_out) + position), questions.get(len(golden) + position)
        if answer is not None and answer < len(held_out):
            found = f"that of {held_out[answer]['id']}"
        elif question is not None and question < len(golden):
            found = f"the golden question {golden[question][:80]!r}"
        else:
            continue
        rejected[row["id"]] = {
            OVERLAP: f"expected a training row unlike held-out rows and golden questions, found {found}"
        }
    return rejected


def golden_questions(context: StageContext) -> list[str]:
    """Return the golden questions. Raises DataError when the file cannot be read."""
    name = context.settings.golden_questions
    try:
        lines = repository_path(name).read_text(encoding="utf-8").splitlines()
        return [str(json.loads(line)["question"]) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"expected golden questions at {name}, found {error}. Next: correct MILLRACE_GOLDEN_QUESTIONS."
        ) from error


def _freeze(context: StageContext, train: list[Row], held_out: list[Row]) -> tuple[dict[str, Artifact], str]:
    """Write the rows below the digest of their contents, unless they stand there; return artifacts and digest."""
    sha256 = digest({"train": train, "held_out": held_out})
    outputs = {}
    for name, rows in (("train", train), ("held_out", held_out)):
        # The same bytes always: rows and keys are sorted. Writing them again heals a write that was cut short.
        outputs[name] = context.storage.put_rows(f"{context.bucket}/datasets/{sha256}/{name}.jsonl", rows)
    return outputs, sha256


def _quarantine(context: StageContext, rows: list[Row], rejected: dict[str, dict[str, str]]) -> Artifact:
    found = [
        rejection
        for row in rows
        if row["id"] in rejected
        for rejection in quarantine.rejections(row["id"], f"{_question(row)} {_answer(row)}", rejected[row["id"]])
    ]
    with connect(context.settings.database_url.get_secret_value(), vectors=False) as connection:
        quarantine.record(connection, "example", context.run, found)
    return context.storage.put_rows(f"{context.folder}/quarantine.jsonl", map(_rejection_row, found))


def _rejection_row(rejection: Rejection) -> Row:
    return {"id": rejection.item, "rule": rejection.rule, "reason": rejection.reason, "excerpt": rejection.excerpt}


def _columns(row: Row) -> Row:
    """Return what the rules of the suite look at."""
    answer = _answer(row)
    return {
        "id": row["id"],
        "origin": row["origin"],
        "roles": ",".join(message["role"] for message in row["messages"]),
        "question": _question(row),
        "answer": answer,
        "answer_words": len(answer.split()),
    }


def _question(row: Row) -> str:
    return next((str(m["content"]) for m in reversed(row["messages"]) if m["role"] == "user"), "")


def _answer(row: Row) -> str:
    return str(row["messages"][-1]["content"])


def _side(rows: Iterable[Row], side: str) -> list[Row]:
    return [row for row in rows if row["split"] == side]


STAGE = Stage("validate_dataset", Options, run, needs=("build_dataset",))
