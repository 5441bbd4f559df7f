"""Validate the candidates and freeze them as a dataset.

Reads the candidates of `build_dataset`, the screening policy, the suite `expectations/training_examples.json` and the
golden questions. Writes rejected rows to table `quarantine` and to `quarantine.jsonl`, and the rest to
`s3://BUCKET/datasets/DIGEST/{train,validation,held_out}.jsonl`, never rewritten. Fails with `DataError` when a source
is on two sides, when nothing is left on one, and when more than `data.max_overlap` of the training rows say what a
held-out row, a validation row or a golden question says: then the split is wrong, and those rows alone are not the fault.
"""

from collections import Counter
from collections.abc import Iterable

from tasks.contracts import Artifact, digest
from tasks.database import connect
from tasks.errors import DataError
from tasks.knowledge import quarantine
from tasks.knowledge.quarantine import Rejection
from tasks.knowledge.retrieval import load_questions
from tasks.screening import Outcome
from tasks.stage import Stage, StageContext, StageOptions, StageResult
from tasks.training.overlap import nearest_earlier
from tasks.training.recipes import load_recipe
from tasks.training.rows import Row, answer, columns, question, said, screened

SUITE = "training_examples"
COPY = "answer_is_new"
OVERLAP = {"train": "train_row_is_not_held_out", "validation": "validation_row_is_not_held_out"}
SIDES = ("held_out", "validation", "train")  # what stands on an earlier side must not stand on a later one


class Options(StageOptions):
    """No options: the rules are in the suite and the policy, the sizes in the recipe."""


def run(context: StageContext, options: Options) -> StageResult:
    """Reject bad rows with a reason, and freeze the rest by digest."""
    rows = list(context.storage.get_rows(context.input("build_dataset", "candidates")))
    recipe = load_recipe(str(context.inputs["build_dataset"].options["recipe"].value))
    data = recipe.data
    require_apart(rows)
    candidates = len(_side(rows, "train"))
    rows, outcome = screened(rows, context.settings)
    rejected = broken_rows(rows, recipe.method)
    golden = [one.question for one in load_questions(context.settings.golden_questions, context.storage)]
    rejected |= overlaps([row for row in rows if row["id"] not in rejected], golden)
    good = [row for row in rows if row["id"] not in rejected]
    kept = {side: sorted(_side(good, side), key=lambda row: str(row["id"])) for side in SIDES}
    told = _quarantine(context, rows, rejected, outcome)
    share = sum(OVERLAP["train"] in broken for broken in rejected.values()) / max(1, candidates)
    _require_rows(context, kept, len(rejected) + len(outcome.blocked), data.validation_rows)
    if share > data.max_overlap:
        raise DataError(
            f"expected at most {data.max_overlap:.0%} of the training rows to say what held-out rows, validation rows or "
            f"golden questions say, found {share:.1%} of {candidates}. Next: see {told['quarantine'].uri} for the rows; take "
            "copies out of the examples, or give copies one `source`."
        )
    frozen, sha256 = _freeze(context, kept)
    by_rule = Counter(rule for broken in (*rejected.values(), *outcome.blocked.values()) for rule in broken)
    return StageResult(
        outputs=told | frozen,
        counts={
            **{side: len(kept[side]) for side in reversed(SIDES)},
            "quarantined": len(rejected) + len(outcome.blocked),
            "redacted": sum(outcome.redacted_by_rule.values()),
            **{f"{origin}_train": n for origin, n in Counter(row["origin"] for row in kept["train"]).items()},
        },
        metrics={"overlap_share": share},
        facts={
            "dataset_sha256": sha256,
            "quarantined_by_rule": dict(sorted(by_rule.items())),
            "redacted_by_rule": outcome.redacted_by_rule,
        },
    )


def require_apart(rows: Iterable[Row]) -> None:
    """Raise DataError when a source is on two sides of the split."""
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row["source"], set()).add(row["split"])
    if both := sorted(source for source, found in sides.items() if len(found) > 1):
        raise DataError(
            f"expected every source on one side of the split, found {both[:5]} on several. Next: clear build_dataset."
        )


def broken_rows(rows: list[Row], method: str = "sft") -> dict[str, dict[str, str]]:
    """Return by id the rules that rows break: those of the suite, then near copies of earlier rows on their side."""
    from tasks.validation import validate

    report = validate(SUITE, [columns(row, method) for row in rows])
    rejected = {row["id"]: broken for row, broken in zip(rows, report.rows, strict=True) if broken}
    for side in SIDES:
        good = _side([row for row in rows if row["id"] not in rejected], side)
        for position, earlier in nearest_earlier([" ".join(said(row)) for row in good]).items():
            reason = f"expected an answer of its own, found that of {good[earlier]['id']}"
            rejected[good[position]["id"]] = {COPY: reason}
    return rejected


def overlaps(rows: list[Row], golden: list[str]) -> dict[str, dict[str, str]]:
    """Return by id the rows that say what an earlier side says (see SIDES), or ask a golden question.

    What a row says is its answer or text, and its rejected answer; two rejected answers may be alike ("I cannot say").
    """
    rejected: dict[str, dict[str, str]] = {}
    for number, side in enumerate(SIDES[1:], start=1):
        earlier = [row for name in SIDES[:number] for row in _side(rows, name)]
        for row_id, found in _alike(earlier, _side(rows, side), golden).items():
            rule = OVERLAP[side]
            rejected[row_id] = {rule: f"expected a {side} row unlike held-out rows and golden questions, found {found}"}
    return rejected


def _alike(earlier: list[Row], later: list[Row], golden: list[str]) -> dict[str, str]:
    """Return by id which later rows are near to an earlier row or a golden question, and to what."""
    found: dict[str, str] = {}
    asked = nearest_earlier(golden + [question(row) for row in later])
    for number, row in enumerate(later):
        place = asked.get(len(golden) + number)
        if place is not None and place < len(golden):
            found[row["id"]] = f"the golden question {golden[place][:80]!r}"
    known = [(row["id"], answer(row)) for row in earlier]
    _mark(found, known, [(row["id"], text) for row in later for text in said(row)])
    worse = [(row["id"], text) for row in earlier for text in said(row)[1:]]
    _mark(found, worse, [(row["id"], answer(row)) for row in later])
    return found


def _mark(found: dict[str, str], known: list[tuple[str, str]], looked: list[tuple[str, str]]) -> None:
    """Add to `found` the ids of `looked` whose text is near to one of `known`."""
    near = nearest_earlier([text for _id, text in known + looked]) if known else {}
    for number, (row_id, _text) in enumerate(looked):
        place = near.get(len(known) + number)
        if place is not None and place < len(known):
            found.setdefault(row_id, f"that of {known[place][0]}")


def _require_rows(context: StageContext, kept: dict[str, list[Row]], rejected: int, validation_rows: int) -> None:
    empty = [side for side in reversed(SIDES) if not kept[side] and (side != "validation" or validation_rows)]
    if empty:
        left = ", ".join(f"{len(kept[side])} {side}" for side in reversed(SIDES))
        raise DataError(
            f"expected rows on both sides of the split after validation, found {left} ({rejected} rejected). "
            f"Next: see {context.folder}/quarantine.jsonl; mend the examples."
        )


def _freeze(context: StageContext, kept: dict[str, list[Row]]) -> tuple[dict[str, Artifact], str]:
    """Write the rows below the digest of their contents, unless they stand there; return artifacts and digest."""
    written = {side: kept[side] for side in reversed(SIDES) if kept[side]}
    sha256 = digest(written)
    return {
        # The same bytes always: rows and keys are sorted. Writing them again heals a write that was cut short.
        side: context.storage.put_rows(f"{context.bucket}/datasets/{sha256}/{side}.jsonl", rows)
        for side, rows in written.items()
    }, sha256


def _quarantine(
    context: StageContext, rows: list[Row], rejected: dict[str, dict[str, str]], outcome: Outcome
) -> dict[str, Artifact]:
    """Write what was rejected, and what was masked in rows that go on."""
    found = [
        rejection
        for row in rows
        if row["id"] in rejected
        for rejection in quarantine.rejections(row["id"], f"{question(row)} {answer(row)}", rejected[row["id"]])
    ]
    for item, broken in outcome.blocked.items():
        found += quarantine.rejections(item, outcome.masked[item], broken)
    with connect(context.settings.database_url.get_secret_value(), vectors=False) as connection:
        quarantine.record(connection, "example", context.run, found)
    redactions = [{"id": item, "redacted": hits} for item, hits in sorted(outcome.redactions.items())]
    return {
        "quarantine": context.storage.put_rows(f"{context.folder}/quarantine.jsonl", map(_rejection_row, found)),
        "redactions": context.storage.put_rows(f"{context.folder}/redactions.jsonl", redactions),
    }


def _rejection_row(rejection: Rejection) -> Row:
    return {"id": rejection.item, "rule": rejection.rule, "reason": rejection.reason, "excerpt": rejection.excerpt}


def _side(rows: Iterable[Row], side: str) -> list[Row]:
    return [row for row in rows if row["split"] == side]


STAGE = Stage("validate_dataset", Options, run, needs=("build_dataset",))
