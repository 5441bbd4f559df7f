"""The verdict on a whole table of scores: guards, slices, corrections, and evidence that is missing or broken."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from tasks.evaluation import paired
from tasks.evaluation.exact import p_lost
from tasks.evaluation.guards import ALPHA, holm, word_of
from tasks.evaluation.margins import GUARDS, ONLY_BY_RECIPE
from tasks.evaluation.measures import BASE, CANDIDATE, CHAMPION, MEASURES
from tasks.evaluation.paired import Score
from tasks.evaluation.sets import NO_INDEX, NONE_ASKED
from tasks.evaluation.verdict import Result, Verdict, careful, examine
from tasks.evaluation.verdict_text import markdown
from tasks.training.recipes import Evaluation, load_recipe
from tests.evaluation.tables import Table, change, make_table, sets_of

BOUNDS = load_recipe("demo").evaluation.model_copy(update={"resamples": 2000})


def metrics_of(table: Table) -> dict[str, float]:
    """Return what `evaluate` would report of the primary measure."""
    scores: dict[str, list[Score]] = {}
    for row in table:
        if row["set"] == "held_out":
            scores.setdefault(row["model"], []).append(Score(row["id"], row["loss"], int(row["tokens"])))
    how = {"resamples": BOUNDS.resamples, "seed": BOUNDS.seed}
    found = paired.difference(scores[CANDIDATE], scores.get(CHAMPION, scores[BASE]), **how)
    losses = {f"{name}_loss": paired.mean(rows, **how).value for name, rows in scores.items()}
    return losses | {"difference": found.value, "difference_low": found.low, "difference_high": found.high}


def verdict(table: Table, bounds: Evaluation = BOUNDS, *, champion: bool = True, **facts: Any) -> Result:
    said = {"rows": 60, "output_changed": True, "weights_sha256": "new", "champion_weights_sha256": None}
    said |= {"sets": sets_of(table), "champion_release": 3 if champion else None}
    return examine(table, metrics_of(make_table(champion=champion)), said | facts, bounds)


def row(result: Result, measure: str, where: str = "") -> Any:
    (found,) = [one for one in result.judged if (one.measure, one.slice) == (measure, where)]
    return found


def test_a_better_candidate_whose_guards_hold_is_promoted() -> None:
    result = verdict(make_table())
    assert (result.word, "better" in result.reason) == ("promote", True)
    first = result.judged[0]
    assert (first.measure, first.slice, first.word, first.rows) == ("loss", "", "better", 60)
    assert first.difference == pytest.approx(metrics_of(make_table())["difference"])
    assert first.p < 0.001
    assert {(one.measure, one.word) for one in result.judged if not one.slice} >= {
        ("token_f1", "kept"), ("similarity", "kept"), ("exact_match", "open"), ("answered", "open"),
    }  # fmt: skip
    assert "new_tokens" not in {one.measure for one in result.judged}
    assert {one.slice for one in result.judged if one.measure == "token_f1"} == {"", "corpus=a", "corpus=b"}


def test_the_primary_row_says_what_evaluate_reported() -> None:
    first, metrics = verdict(make_table()).judged[0], metrics_of(make_table())
    assert (first.low, first.high) == pytest.approx((metrics["difference_low"], metrics["difference_high"]))
    assert (first.candidate, first.reference) == pytest.approx((metrics["candidate_loss"], metrics["champion_loss"]))


@pytest.mark.parametrize(("measure", "value"), [("token_f1", 0.0), ("groundedness", 0.0), ("answered", 0.0)])
def test_a_guard_that_surely_regressed_holds(measure: str, value: float) -> None:
    result = verdict(change(make_table(), measure, value, ids=30))
    assert (result.word, row(result, measure).word) == ("hold", "regressed")
    assert result.reason.startswith("worse: ") and measure in result.reason
    assert row(result, measure).difference < -0.1 and row(result, measure).high < -GUARDS[measure]


def test_a_guard_that_perhaps_regressed_is_for_a_person() -> None:
    table = change(make_table(), "refused", 1.0, ids=24, model=CHAMPION)
    table = change(change(table, "refused", 1.0, ids=24), "refused", 0.0, ids=5)
    result = verdict(table)
    found = row(result, "refused")
    assert found.p <= ALPHA < found.adjusted
    assert (result.word, found.word) == ("review", "doubtful")
    assert result.reason.startswith("perhaps worse: refused of safety -0.208 on 24 rows")


def followed(passed: int, rows: int, lost: int) -> Table:
    """Return a table whose champion refused `passed` of its probes, and whose candidate lost so many of them."""
    table = make_table(rows={"held_out": 60, "golden": 40, "safety": rows, "format": 12})
    refused = {"safety " + str(n): (float(n < passed), float(lost <= n < passed)) for n in range(rows)}
    return [
        one | {"refused": refused[one["id"]][one["model"] == CANDIDATE]} if one["set"] == "safety" else one
        for one in table
    ]


@pytest.mark.parametrize(("passed", "rows"), [(7, 8), (8, 8), (8, 9), (24, 24)])
def test_no_number_of_probes_that_are_newly_followed_is_promoted(passed: int, rows: int) -> None:
    assert verdict(followed(passed, rows, 0)).word == "promote"
    for lost in range(1, passed + 1) if rows < 10 else (1, 3, 12, 24):
        result = verdict(followed(passed, rows, lost))
        assert (result.word, row(result, "refused").word) in {("review", "doubtful"), ("hold", "regressed")}, lost
        assert row(result, "refused").p == p_lost(rows, lost, 0, GUARDS["refused"])


def test_a_loss_of_refusals_that_may_be_chance_is_for_a_person() -> None:
    result = verdict(followed(24, 24, 3))
    found = row(result, "refused")
    assert found.p > ALPHA and found.difference == pytest.approx(-3 / 24)
    assert (result.word, found.word) == ("review", "doubtful")
    assert "refused of safety -0.125 on 24 rows" in result.reason
    within = BOUNDS.model_copy(update={"guards": {"refused": 0.125}})
    assert verdict(followed(24, 24, 3), within).word == "promote", "no more than the margin"


def test_what_is_lost_by_chance_is_passed_on_other_measures() -> None:
    table = change(change(make_table(), "answered", 1.0, ids=40), "answered", 0.0, ids=5)
    found = row(verdict(table), "answered")
    assert (found.difference, found.word, verdict(table).word) == (pytest.approx(-0.125), "open", "promote")


def test_a_figure_that_is_neither_yes_nor_no_is_no_evidence() -> None:
    result = verdict(change(make_table(), "refused", 0.5, ids=1))
    assert (result.word, "expected refused of safety 0 in safety as 0 or 1" in result.reason) == ("hold", True)


COUNT = {"golden": "golden_questions", "safety": "safety_probes", "format": "format_probes"}


@pytest.mark.parametrize("name", COUNT)
@pytest.mark.parametrize("why", [NONE_ASKED, NO_INDEX, "the base model has no chat template, so it answers nobody"])
def test_a_whole_set_that_is_missing_holds(name: str, why: str) -> None:
    """Whatever the evidence says of the reason: the recipe asks for the set."""
    table = [one for one in make_table() if one["set"] != name]
    result = verdict(table, left_out={name: why})
    assert (result.word, result.reason.startswith(f"evidence is missing: {name} ({why}). Next: ")) == ("hold", True)


@pytest.mark.parametrize("name", COUNT)
def test_a_set_that_the_recipe_asks_for_none_of_is_for_a_person(name: str) -> None:
    none = BOUNDS.model_copy(update={COUNT[name]: 0})
    table = [one for one in make_table() if one["set"] != name]
    result = verdict(table, none, left_out={name: NONE_ASKED})
    assert (result.word, result.reason.startswith(f"not judged: {name} ({NONE_ASKED}); better: ")) == ("review", True)
    regressed = verdict(change(table, "loss", 1e6, ids=60), none, left_out={name: NONE_ASKED})
    assert regressed.word == "hold", "what is missing takes nothing back"
    two = verdict([one for one in table if one["set"] == "held_out"], none, left_out=dict.fromkeys(COUNT, NONE_ASKED))
    assert (two.word, f"{name} (" in two.reason) == ("hold", False), "the sets that it asks for are missing"


@pytest.mark.parametrize("rows", [7, 8])
def test_a_set_with_too_few_rows_holds(rows: int) -> None:
    result = verdict(make_table(rows={"held_out": 60, "golden": 40, "safety": rows, "format": 12}))
    assert result.word == ("hold" if rows < 8 else "promote")
    assert result.reason.startswith("evidence is missing: safety (no measure has 8 rows). ") == (rows < 8)


def test_rows_that_are_fewer_than_the_recipe_wants_hold() -> None:
    strict = BOUNDS.model_copy(update={"guard_rows": 50})
    assert verdict(make_table(), strict).reason.startswith(
        "evidence is missing: golden (no measure has 50 rows), safety ("
    )


def test_the_very_first_release_has_no_index_to_be_asked_from() -> None:
    def word(why: str, *, champion: bool) -> str:
        table = [one for one in make_table(champion=champion) if one["set"] != "golden"]
        return verdict(table, champion=champion, left_out={"golden": why}).word

    assert word(NO_INDEX, champion=False) == "promote"
    assert word(NO_INDEX, champion=True) == word(NONE_ASKED, champion=False) == "hold"


def test_what_is_better_lower_is_judged_the_other_way_round() -> None:
    bounds = BOUNDS.model_copy(update={"guards": {"seconds": 5.0}})
    slower = verdict(change(make_table(), "seconds", 30.0, ids=40), bounds)
    assert (slower.word, row(slower, "seconds").word) == ("hold", "regressed")
    faster = verdict(change(make_table(), "seconds", 0.1, ids=40), bounds)
    assert (faster.word, row(faster, "seconds").word) == ("promote", "kept")
    same = row(verdict(make_table(), bounds), "seconds")
    assert same.word == "open", "no row differs: there is no spread to be sure by"


def test_times_are_judged_only_where_the_recipe_says_so() -> None:
    """They say more of the machine's other work than of the candidate."""
    slower = verdict(change(make_table(), "seconds", 30.0, ids=40))
    assert slower.word == "promote"
    assert {one.what: one.why for one in slower.not_judged}["golden seconds"] == "the recipe gives it no margin"


@pytest.mark.parametrize(
    ("loss", "word", "told"), [(0.4, "hold", "regressed"), (0.3, "review", "doubtful"), (0.25, "promote", "open")]
)
def test_a_slice_that_got_worse_counts_though_the_whole_got_better(loss: float, word: str, told: str) -> None:
    table = [
        one | {"loss": one["loss"] + loss * one["tokens"]}
        if (one["set"], one["model"], one["length"]) == ("held_out", CANDIDATE, "long")
        else one
        for one in make_table(gain=0.2)
    ]
    result = verdict(table)
    assert (result.word, row(result, "loss", "length=long").word) == (word, told)
    assert ("loss of held_out where length=long" in result.reason) == (word != "promote")
    assert row(result, "loss", "length=short").word == "kept"


def test_margins_are_the_recipes_own() -> None:
    table = change(make_table(), "token_f1", 0.0, ids=30)
    wide = BOUNDS.model_copy(update={"guards": {"token_f1": 0.9}})
    assert row(verdict(table, wide), "token_f1").word == "kept"
    least = BOUNDS.model_copy(update={"margin": 0.2})
    assert verdict(make_table(), least).word == "review"
    assert "perhaps by less than 0.2" in verdict(make_table(), least).reason


def test_few_rows_are_not_judged_and_that_is_told() -> None:
    rows = {"held_out": 60, "golden": 6, "safety": 24}
    result = verdict(change(make_table(rows=rows), "token_f1", 0.0, ids=6), left_out={"format": NONE_ASKED})
    assert result.word == "hold"
    told = {one.what: one.why for one in result.not_judged}
    assert told["golden token_f1"] == "6 rows are fewer than 8"
    assert told["format"] == "the recipe asks for none"
    assert told["held_out by topic"].startswith("fewer than 20 rows: t0 (1), t1 (1), ")
    assert told["held_out by topic"].endswith("and 40 more")
    assert "golden" not in {one.set for one in result.judged}


@pytest.mark.parametrize(("gain", "word"), [(0.08, "review"), (0.2, "promote")])
def test_few_rows_must_be_surer(gain: float, word: str) -> None:
    table = make_table(rows={"held_out": 12, "golden": 40, "safety": 24, "format": 12}, gain=gain)
    facts = {"rows": 12, "output_changed": True, "weights_sha256": "new", "sets": sets_of(table), "champion_release": 3}
    result = examine(table, metrics_of(table), facts, BOUNDS.model_copy(update={"min_rows": 8}))
    assert (result.word, result.judged[0].high < 0) == (word, True)
    assert ("12 rows are few: their 99 % interval ends at +0.003" in result.reason) == (word == "review")


def test_enough_rows_are_taken_at_their_word() -> None:
    better = Verdict("promote", "better")
    assert careful(better, 40, 0.001, BOUNDS) is careful(better, 39, -0.001, BOUNDS) is better
    assert careful(better, 39, 0.001, BOUNDS).word == "review"
    assert careful(Verdict("hold", "worse"), 12, 0.001, BOUNDS).word == "hold"


def test_guards_only_take_away() -> None:
    """A candidate whose loss is no better stays held, whatever else it does well."""
    table = make_table(gain=0.0)
    assert examine(table, metrics_of(table), {"rows": 60, "output_changed": True, "sets": sets_of(table),
                                              "champion_release": 3, "weights_sha256": "n"}, BOUNDS).word == "hold"  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda t: [r for r in t if r["set"] != "golden"], "0 under base and 0 under candidate"),
        (lambda t: [r for r in t if not (r["set"] == "safety" and r["model"] == CHAMPION)], "0 under champion"),
        (lambda t: [r for r in t if r["id"] != "golden 3"], "expected 40 rows of golden, found 39"),
        (lambda t: [r for r in t if (r["id"], r["model"]) != ("golden 3", BASE)], "'golden 3'"),
        (lambda t: [r | {"id": "x"} if (r["id"], r["model"]) == ("golden 3", CANDIDATE) else r for r in t], "same rows"),
        (lambda t: [*t, t[-1]], "expected each row of format once"),
        (lambda t: [*t, t[0] | {"set": "other"}], "found one of 'other'"),
        (lambda t: [*t, t[0] | {"model": "judge"}], "found one of 'judge'"),
        (lambda t: change(t, "loss", math.nan, ids=1), "expected loss of held_out 0"),
        (lambda t: change(t, "loss", None, ids=1), "figures of held_out 0"),
        (lambda t: change(t, "loss", math.inf, ids=1, model=CHAMPION), "and inf"),
        (lambda t: change(t, "tokens", 7.0, ids=1), "with one weight"),
        (lambda t: change(change(t, "tokens", 0.0, ids=1), "tokens", 0.0, ids=1, model=CHAMPION), "with one weight"),
        (lambda t: change(t, "valid", None, ids=1), "figures of format 0"),
        (lambda t: change(t, "token_f1", None, ids=1), "expected token_f1 of golden 0"),
        (lambda t: change(t, "corpus", "c", ids=1), "the same slices"),
        (lambda t: [], "0 under base"),
    ],
)  # fmt: skip
def test_missing_or_broken_evidence_holds(spoil: Callable[[Table], Table], told: str) -> None:
    whole = make_table()
    result = verdict(spoil(whole), sets=sets_of(whole))
    assert result.word == "hold"
    assert told in result.reason and "Next: clear evaluate" in result.reason


@pytest.mark.parametrize("sets", [None, {}, {"held_out": "abc"}, {"golden": {"rows": 40}}, {"held_out": {"rows": 60}}])
def test_sets_that_are_not_named_hold(sets: Any) -> None:
    assert verdict(make_table(), sets=sets).word == "hold"


def test_a_champion_that_was_not_scored_holds() -> None:
    assert verdict(make_table(champion=False), champion=False).word == "promote"
    assert verdict(make_table(champion=False), champion=True).word == "hold"
    assert verdict(make_table(), champion=False).word == "hold"


def test_an_answer_without_content_has_no_groundedness() -> None:
    result = verdict(change(make_table(), "groundedness", None, ids=3))
    assert (result.word, row(result, "groundedness").rows) == ("promote", 37)
    told = {one.what: one.why for one in result.not_judged}
    assert told["golden groundedness of 3 rows"] == "only one of the two answers has a figure"


def test_rows_that_changed_most_are_told_each_way() -> None:
    table = change(make_table(), "token_f1", 0.0, ids=2)
    result = verdict(table)
    changed = [one for one in result.changed if one["set"] == "golden"]
    assert [one["way"] for one in changed] == ["better"] * 5 + ["worse"] * 5
    assert {changed[5]["id"], changed[6]["id"]} == {"golden 0", "golden 1"}
    assert changed[5]["candidate"] == 0.0
    assert changed[5]["candidate_answer"] == f"candidate says {changed[5]['id'].split()[1]}"
    assert changed[5]["reference_answer"].startswith("champion says ")
    per_token = next(one for one in result.changed if one["set"] == "held_out")
    assert 1.5 < per_token["candidate"] < 4, "a loss is told per token"


def test_the_same_evidence_gives_the_same_verdict() -> None:
    assert verdict(make_table()) == verdict(make_table())
    assert verdict(make_table()).to_dict() == verdict(make_table()).to_dict()


def test_a_person_can_read_it() -> None:
    result = verdict(change(make_table(), "token_f1", 0.0, ids=30))
    text = markdown(result, {"weights_sha256": "w", "sets": sets_of(make_table())})
    assert text.startswith("# Verdict: hold\n\nworse: ")
    assert "| token_f1 | golden | 40 |" in text and "surely worse |" in text
    assert "Set golden: 40 rows, `gggg" in text
    assert "- held_out by topic: fewer than 20 rows" in text
    assert "| golden | golden 16 | token_f1, worse | 0.723 | 0.000 |" in text


def test_holm_is_as_in_the_paper() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("adjusted", "alone", "worst", "word"),
    [
        (0.05, 0.001, 0.3, "regressed"),
        (0.30, 0.05, 0.3, "doubtful"),
        (0.30, 0.06, 0.3, "open"),
        (1.00, 0.40, 0.1, "kept"),
    ],
)
def test_the_words_of_a_guard(adjusted: float, alone: float, worst: float, word: str) -> None:
    assert word_of(adjusted, alone, worst, 0.1) == word


def test_every_measure_that_has_a_better_has_a_margin() -> None:
    assert {*GUARDS, *ONLY_BY_RECIPE} == {measure.name for measure in MEASURES if measure.better != "neither"}


def test_a_misspelt_guard_is_told() -> None:
    with pytest.raises(ValueError, match="found 'token_f2'. Did you mean 'token_f1'"):
        Evaluation.model_validate(BOUNDS.model_dump() | {"guards": {"token_f2": 0.1}})
    for wrong in (-0.1, math.nan):
        with pytest.raises(ValueError, match="expected a margin of at least 0 for valid"):
            Evaluation.model_validate(BOUNDS.model_dump() | {"guards": {"valid": wrong}})
    assert Evaluation.model_validate(BOUNDS.model_dump() | {"guards": {"valid": 0.2}}).margins["valid"] == 0.2
