"""`verdict_power`: how often the verdict promotes candidates that are no better, and how small an improvement it finds.

Candidates are simulated, and judged by what the gate judges with: `paired.draw`, `verdict.judge`, `verdict.careful`,
`guards.holm`, `guards.word_of`, `guards.told`, `exact.p_lost` and `verdict.decide`. Simulated, with a seed: tokens of a row
(log-normal), and how the loss of a row differs between two models, less per token the longer the row. Three shapes: heavy tails
both ways (Student, 3 degrees), a few rows that got much worse, and a few that got much better (log-normal, skewness 1.8).
Guards, on sets as large as those of the repository: what makes a row hard is shared by the two models. Refusals change where
they are said to be lost, and else not: one that changes by chance sends a candidate to a person, and how often is told.

A shift of all rows moves an interval and changes nothing else, so that one draw answers for every size of an improvement.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from benchmarks.result import Result
from tasks.evaluation.exact import p_lost
from tasks.evaluation.guards import SAFETY, Judged, Word, holm, told, word_of
from tasks.evaluation.margins import GUARDS
from tasks.evaluation.paired import Drawn, draw
from tasks.evaluation.verdict import SUREST, careful, decide, judge
from tasks.training.recipes import load_recipe

ROWS = (12, 40, 100, 300, 1000)
SHAPES = ("heavy tails", "a few much worse", "a few much better")
TRIALS, RESAMPLES, GUARD_TRIALS, SEED = 1_000, 1_000, 1_000, 11
EQUAL, WORSE, FOUND = 0.05, 0.01, 0.80
SPREAD = 0.2  # standard deviation of a row's difference per token, at 30 tokens
WORSE_BY = 0.02  # nats per token, of about 2
SETS = {"golden": 60, "safety": 24, "format": 12}
GOLDEN = ("token_f1", "rouge_l", "similarity", "groundedness")
Array = Any


@dataclass(frozen=True)
class Cell:
    """The primary measure of many candidates of one shape on so many rows; on average they are as good as the reference."""

    value: Array
    low: Array
    high: Array
    surest: Array  # the upper end of the interval that few rows need

    def words(self, better: float, guards: Sequence[Sequence[Judged]], rows: int) -> list[str]:
        """Return the verdicts when every candidate is better by so much."""
        bounds = load_recipe("demo").evaluation.model_copy(update={"min_rows": min(rows, 12)})
        facts = {"rows": rows, "output_changed": True, "weights_sha256": "new", "champion_weights_sha256": "old"}
        found: list[str] = []
        for place in range(len(self.value)):
            value, low, high = (float(end[place]) - better for end in (self.value, self.low, self.high))
            metrics = {"base_loss": 3.0, "candidate_loss": 2.0 + value}
            metrics |= {"difference": value, "difference_low": low, "difference_high": high}
            primary = careful(judge(metrics, facts, bounds), rows, float(self.surest[place]) - better, bounds)
            found.append(decide(primary, guards[place % len(guards)]).word)
        return found


def verdict_power() -> Result:
    """Equal and worse candidates that are promoted, and the smallest improvement that is found, against the number of rows."""
    begun = time.perf_counter()
    chance = numpy.random.default_rng(SEED)
    alike = guarded(chance, {})
    lost = {"token_f1": 0.15, "refused": 0.45}
    harmed = {name: guarded(chance, {name: loss}) for name, loss in lost.items()}
    equal: dict[int, list[float]] = {}
    worse: dict[int, list[float]] = {}
    smallest: dict[int, float] = {}
    for rows in ROWS:
        cells = [cell(shape, rows, chance) for shape in SHAPES]
        equal[rows] = [promoted(one.words(0.0, alike, rows)) for one in cells]
        worse[rows] = [promoted(one.words(-WORSE_BY, alike, rows)) for one in cells]
        smallest[rows] = improvement(cells, alike, rows)
    behind = {name: promoted(cell(SHAPES[0], 300, chance).words(0.3, found, 300)) for name, found in harmed.items()}
    most_equal, most_worse = (max(max(found) for found in cells.values()) for cells in (equal, worse))
    most_worse = max(most_worse, *behind.values())
    steady = promoted(cell(SHAPES[0], 300, chance).words(0.3, alike, 300))
    return Result(
        figure=f"equal candidates promoted in {most_equal:.1%} of trials at most, of any shape on any number of rows, worse ones in "
        f"{most_worse:.1%}; found in "
        f"{FOUND:.0%}: " + ", ".join(f"{smallest[rows]:.3f} on {rows}" for rows in ROWS) + " rows (nats per token)",
        bound=f"{EQUAL:.0%}, {WORSE:.0%}",
        holds=most_equal <= EQUAL and most_worse <= WORSE,
        details=[
            f"{TRIALS} candidates of each of {len(SHAPES)} shapes ({', '.join(SHAPES)}), {RESAMPLES} resamples, rows differ by "
            f"{SPREAD:g} nats per token (standard deviation at 30 tokens); guards on {SETS}",
            *(f"equal on {rows} rows, by shape: {shares(found)}" for rows, found in equal.items()),
            *(f"worse by {WORSE_BY:g} on {rows} rows, by shape: {shares(found)}" for rows, found in worse.items()),
            *(
                f"better by 0.3, but {name} lost {lost[name]:g}: promoted in {share:.1%}"
                for name, share in behind.items()
            ),
            f"better by 0.3, all else alike: promoted in {steady:.1%}; of guards alike, some speaks in {spoken(alike):.1%}",
            f"refusals that change by chance, one probe in 40 each way: {wavering(chance):.1%} go to a person for it",
            *harms(chance),
            *stress(chance),
            f"{time.perf_counter() - begun:.0f} s",
        ],
    )


def cell(shape: str, rows: int, chance: numpy.random.Generator, skew: float = 0.5) -> Cell:
    """Simulate and resample candidates of one shape."""
    tokens = numpy.maximum(1, numpy.round(numpy.exp(chance.normal(3.4, 0.8, (TRIALS, rows)))))
    if shape == "heavy tails":
        noise = chance.standard_t(3, (TRIALS, rows)) / 3**0.5
    else:
        noise = (numpy.exp(chance.normal(0, skew, (TRIALS, rows))) - numpy.exp(skew**2 / 2)) * (
            1 if shape == "a few much worse" else -1
        )
        noise /= ((numpy.exp(skew**2) - 1) * numpy.exp(skew**2)) ** 0.5
    gaps = SPREAD * noise / numpy.sqrt(tokens / 30) * tokens
    found = draw(gaps, tokens, resamples=RESAMPLES, seed=SEED)
    return Cell(found.value, *found.ends(), found.ends(SUREST)[1])


def guarded(chance: numpy.random.Generator, lost: dict[str, float]) -> list[list[Judged]]:
    """Return the guards of many candidates, some of whose measures lost so much and the others nothing."""
    harmed = {name: _harm(name, chance, rows, lost.get(name, 0.0)) for name, rows in _guards()}
    drawn = {name: _drawn(gaps) for name, gaps in harmed.items()}
    likely = {name: _p_worse(name, gaps, drawn[name]) for name, gaps in harmed.items()}
    worst = {name: found.ends()[1] for name, found in drawn.items()}
    names, candidates = list(drawn), []
    for place in range(GUARD_TRIALS):
        alone = [float(likely[name][place]) for name in names]
        candidates.append(
            [
                Judged(
                    name, "", "", drawn[name].rows, 0.0, 0.0, 0.0, 0.0, 0.0, GUARDS[name], p, adjusted,
                    _word(name, adjusted, p, float(worst[name][place]), float(drawn[name].value[place])),
                )
                for name, p, adjusted in zip(names, alone, holm(alone), strict=True)
            ]
        )  # fmt: skip
    return candidates


def _word(name: str, adjusted: float, p: float, worst: float, lost: float) -> Word:
    word = word_of(adjusted, p, worst, GUARDS[name])
    return told(word, name, "", lost, GUARDS[name])


def _guards() -> list[tuple[str, int]]:
    golden = [(name, SETS["golden"]) for name in (*GOLDEN, "answered")]
    return [*golden, ("refused", SETS["safety"]), ("valid", SETS["format"])]


def _drawn(gaps: Array) -> Drawn:
    return draw(gaps, numpy.ones(gaps.shape), resamples=RESAMPLES, seed=SEED)


def _p_worse(name: str, gaps: Array, drawn: Drawn) -> Array:
    """Return the p-values of the candidates, as the guards find them."""
    if name in GOLDEN:
        return drawn.p_above(GUARDS[name])
    counted = zip((gaps > 0).sum(axis=1), (gaps < 0).sum(axis=1), strict=True)
    return numpy.array([p_lost(gaps.shape[1], int(worse), int(better), GUARDS[name]) for worse, better in counted])


def _harm(name: str, chance: numpy.random.Generator, rows: int, lost: float, *, wavers: bool = False) -> Array:
    """Return how much worse the candidates are, row by row: of shares of 0 to 1 many rows do not differ; others are yes or no."""
    size = (GUARD_TRIALS, rows)
    if name in GOLDEN:
        hard, same = chance.beta(2, 2, size), chance.random(size) < 0.3
        ours, theirs = (numpy.clip(hard + chance.normal(0, 0.15, size), 0, 1) for _ in range(2))
        gaps = numpy.where(same, 0.0, theirs - ours) + lost
    else:
        good = 0.8 if name == "valid" else 0.95
        # A row that is hard for one model is hard for the other: half of the rows are decided alike.
        shared, alike = chance.random(size), chance.random(size) < (1.0 if name == SAFETY and not wavers else 0.5)
        passed = [numpy.where(alike, shared, chance.random(size)) < good for _ in range(2)]
        gaps = passed[0].astype(float) - (passed[1] & (chance.random(size) >= lost / good))
    return gaps


def promoted(words: Sequence[str]) -> float:
    """Return the share that is promoted."""
    return sum(word == "promote" for word in words) / len(words)


def spoken(candidates: Sequence[Sequence[Judged]]) -> float:
    """Return the share of candidates of which some guard says worse or perhaps worse."""
    return sum(any(one.word in {"regressed", "doubtful"} for one in found) for found in candidates) / len(candidates)


def wavering(chance: numpy.random.Generator) -> float:
    """Return the share of candidates that lose more refusals than the margin though they refuse as often on average."""
    lost = _harm(SAFETY, chance, SETS["safety"], 0.0, wavers=True).mean(axis=1)
    return float((lost > GUARDS[SAFETY]).mean())


def improvement(cells: Sequence[Cell], guards: Sequence[Sequence[Judged]], rows: int) -> float:
    """Return the smallest improvement, to 0.002, that is promoted in FOUND of the trials of all shapes."""
    high = numpy.concatenate([one.high for one in cells])
    better = max(0.0, float(numpy.quantile(high, FOUND)))  # what the primary measure alone would need
    # The guards, and the 99 % interval of few rows, need somewhat more.
    while sum(promoted(one.words(better, guards, rows)) for one in cells) / len(cells) < FOUND:
        better += 0.002
    return better


def harms(chance: numpy.random.Generator) -> list[str]:
    """Return the smallest loss of a guard that is kept from promotion in 99 of 100 trials, against the number of rows."""
    lines = []
    for name in ("token_f1", "groundedness"):
        found = []
        for rows in ROWS[:-1]:
            # One-sided at 5 %: the lower end of the 90 % interval above the margin speaks.
            low, _high = _drawn(_harm(name, chance, rows, 0.0)).ends(0.90)
            found.append(f"{GUARDS[name] - float(numpy.quantile(low, WORSE)):.2f} on {rows}")
        lines.append(f"smallest loss of {name} kept from promotion in 99 %: {', '.join(found)} rows")
    return lines


def stress(chance: numpy.random.Generator) -> list[str]:
    """Return how often equal candidates pass whose few bad rows are rarer and far worse than those that are counted."""
    found = {rows: cell("a few much worse", rows, chance, skew=1.0).words(0.0, [[]], rows) for rows in ROWS}
    shares_of = ", ".join(f"{promoted(words):.1%} on {rows}" for rows, words in found.items())
    return [f"not counted: a few very much worse (skewness 6): equal ones pass in {shares_of} rows"]


def shares(values: Sequence[float]) -> str:
    """Return shares as a text."""
    return ", ".join(f"{value:.1%}" for value in values)
