"""The verdict on a candidate: promote, hold or review. A pure function of the evidence.

Reads and writes nothing but its arguments. Whatever is missing, odd or too little is `hold`; only an interval of the
primary measure that lies wholly below zero, and below the recipe's margin, is `promote`, and only while no guard says
otherwise: one that surely got worse than its margin is `hold`, one that perhaps did is `review`. A whole set that nobody could
look at is `hold` too, or `review` where the recipe itself asks for none of its rows (docs/evaluation.md).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from tasks.errors import EvidenceError
from tasks.evaluation.changed import most_changed
from tasks.evaluation.guards import Check, Judged, NotJudged, checks, described, drawn_of, judge_guards, unseen
from tasks.evaluation.measures import PRIMARY, SETS
from tasks.evaluation.pairs import Pair, Row, paired, values
from tasks.release.weights import claimed
from tasks.training.recipes import Evaluation

Word = Literal["promote", "hold", "review"]
NEEDED = ("base_loss", "candidate_loss", "difference", "difference_low", "difference_high")
FEW, SUREST = 40, 0.99  # below so many rows, so wide an interval must say that a candidate is better


class Verdict(NamedTuple):
    """What the gate says, and why."""

    word: Word
    reason: str


class Result(NamedTuple):
    """A verdict with what it rests on: judged measures (the primary one first), what was not judged, what changed most."""

    word: Word
    reason: str
    judged: Sequence[Judged] = ()
    not_judged: Sequence[NotJudged] = ()
    changed: Sequence[dict[str, Any]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON, the card and the approval form."""
        return {
            "verdict": self.word,
            "reason": self.reason,
            "judged": [row._asdict() for row in self.judged],
            "not_judged": [row._asdict() for row in self.not_judged],
            "changed": list(self.changed),
        }


def examine(table: Sequence[Row], metrics: Mapping[str, float], facts: Mapping[str, Any], bounds: Evaluation) -> Result:
    """Return the verdict on a table of scores and what `evaluate` says of it. What is broken is hold."""
    sets = facts.get("sets")
    if not isinstance(sets, Mapping) or not all(isinstance(value, Mapping) for value in sets.values()):
        return Result("hold", f"the evidence names no evaluation sets: {sets!r}")
    left_out, champion = facts.get("left_out") or {}, facts.get("champion_release") is not None
    if unsaid := [name for name in SETS if name not in sets and name not in left_out]:
        return Result("hold", f"the evidence holds neither scores of {', '.join(unsaid)} nor why there are none")
    try:
        pairs = paired(table, sets, champion=champion)
        found, left = checks(pairs, bounds, left_out)
        primary, surest = _primary(pairs[PRIMARY.set], bounds)
    except EvidenceError as error:
        return Result("hold", str(error))
    guards = judge_guards(found, bounds)
    verdict = decide(careful(judge(metrics, facts, bounds), primary.rows, surest, bounds), guards)
    verdict = seen(verdict, unseen(found, left_out, bounds, champion=champion), bounds)
    return Result(verdict.word, verdict.reason, [primary, *guards], left, most_changed(pairs))


def careful(primary: Verdict, rows: int, surest: float, bounds: Evaluation) -> Verdict:
    """Return the verdict, or review where few rows promote: of FEW rows, a few that got far worse may well show none.

    `surest` is the upper end of the interval of SUREST. The benchmark `verdict_power` shows what this is for.
    """
    if primary.word == "promote" and rows < FEW and surest >= -bounds.margin:
        return Verdict(
            "review",
            f"{primary.reason}, but {rows} rows are few: their {100 * SUREST:.0f} % interval ends at {surest:+.3f}",
        )
    return primary


def decide(primary: Verdict, guards: Sequence[Judged]) -> Verdict:
    """Return the verdict on the primary measure as the guards leave it: they take away, and never give."""
    regressed = [guard for guard in guards if guard.word == "regressed"]
    doubtful = [guard for guard in guards if guard.word == "doubtful"]
    if primary.word == "hold":
        return primary
    if regressed:
        return Verdict("hold", f"worse: {_told(regressed)}")
    if doubtful:
        return Verdict("review", f"perhaps worse: {_told(doubtful)}; {primary.reason}")
    return primary


def seen(verdict: Verdict, missing: Sequence[NotJudged], bounds: Evaluation) -> Verdict:
    """Return the verdict as sets that are `missing` leave it: that nothing was found in what nobody read is no promise.

    A set that the recipe asks for must be there: hold. One that it asks for none of is a person's to look at: review.
    """
    if verdict.word == "hold" or not missing:
        return verdict
    if asked := [one for one in missing if bounds.asked[one.what] != 0]:
        hint = "Next: give the set enough rows, or ask for none of it in the recipe, and a person decides"
        return Verdict("hold", f"evidence is missing: {_named(asked)}. {hint}")
    return Verdict("review", f"not judged: {_named(missing)}; {verdict.reason}")


def _named(sets: Sequence[NotJudged]) -> str:
    return ", ".join(f"{one.what} ({one.why})" for one in sets)


def _primary(pairs: Sequence[Pair], bounds: Evaluation) -> tuple[Judged, float]:
    """Return the row of the primary measure, and the upper end of its interval of SUREST.

    Its margin is how much better it must surely be, and `p` how likely figures like these are where it is not.
    """
    found = values(PRIMARY, pairs)
    check = Check(PRIMARY, "", found)
    drawn = drawn_of(check, bounds.resamples, bounds.seed)
    turned = Check(PRIMARY, "", found._replace(candidate=found.reference, reference=found.candidate))
    p = float(drawn_of(turned, bounds.resamples, bounds.seed).p_above(bounds.margin)[0])
    row = described(check, drawn, bounds.margin, p, p, p)
    row = row._replace(word="better" if row.high < -bounds.margin else "regressed" if row.low > 0 else "open")
    return row, float(drawn.ends(SUREST)[1][0])


def _told(guards: Sequence[Judged]) -> str:
    first = min(guards, key=lambda guard: guard.adjusted)
    where = f"{first.measure} of {first.set}" + (f" where {first.slice}" if first.slice else "")
    more = f", and {len(guards) - 1} more" if len(guards) > 1 else ""
    return (
        f"{where} {first.difference:+.3f} on {first.rows} rows (95 % interval {first.low:+.3f} to {first.high:+.3f}, "
        f"margin {first.margin:g}){more}"
    )


def judge(metrics: Mapping[str, float], facts: Mapping[str, Any], bounds: Evaluation) -> Verdict:
    """Return the verdict on what `evaluate` measured."""
    missing = [name for name in NEEDED if not math.isfinite(metrics.get(name, math.nan))]
    rows = facts.get("rows")
    if missing:
        return Verdict("hold", f"the evidence lacks {', '.join(missing)}")
    least = max(2, bounds.min_rows)  # one row has no spread, and so no interval
    if not isinstance(rows, int) or rows < least:
        return Verdict("hold", f"{rows} held-out rows are fewer than {least}")
    if facts.get("output_changed") is not True:
        return Verdict("hold", "the training does not change the model's output")
    champion = claimed(facts, "champion_weights_sha256")
    if champion is not None and champion == claimed(facts):
        return Verdict("hold", "nothing new was learned: the candidate has the champion's weights")
    return _compare(metrics, rows, "the champion" if champion is not None else "the base model", bounds)


def _compare(metrics: Mapping[str, float], rows: int, other: str, bounds: Evaluation) -> Verdict:
    low, value, high = (metrics[name] for name in ("difference_low", "difference", "difference_high"))
    if not low <= value <= high:
        return Verdict("hold", f"the difference {value:.4f} lies outside its interval {low:.4f} to {high:.4f}")
    found = f"loss {value:+.3f} against {other} on {rows} rows (95 % interval {low:+.3f} to {high:+.3f})"
    if high < 0 and metrics["candidate_loss"] >= metrics["base_loss"]:
        return Verdict("review", f"{found}, but the candidate is no better than the base model")
    if high < -bounds.margin:
        return Verdict("promote", f"better: {found}")
    if high < 0:
        return Verdict("review", f"better, but perhaps by less than {bounds.margin:g}: {found}")
    if value < 0 and high <= bounds.review_margin:
        return Verdict("review", f"perhaps better: {found}")
    return Verdict("hold", f"not better: {found}")
