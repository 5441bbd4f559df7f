"""What the card shows of the measures: figures with intervals, slices, safety, and what nobody measured.

Pure. Reads the metrics of `evaluate` (`MODEL_MEASURE`, with `_low` and `_high` where there is an interval) and the table of
the verdict (`judged`, `not_judged`), by the names of `tasks.evaluation.measures`.
"""

from collections.abc import Mapping
from typing import Any

from tasks.evaluation.measures import BASE, CANDIDATE, CHAMPION, MEASURES, PRIMARY, SETS, Measure
from tasks.release.card_facts import CardFacts
from tasks.release.card_text import NOT_MEASURED, code, interval, number, spread, table

_BETTER = {"lower": "lower is better", "higher": "higher is better", "neither": "judged by nobody"}


def metrics(facts: CardFacts) -> list[str]:
    """Return the section of all measures but those of safety, and its slices."""
    gate = facts.evidence.gate.facts
    shown = [measure for measure in MEASURES if measure.set != "safety"]
    lines = [
        f"Verdict: {code(gate.get('verdict'))} ({code(gate.get('reason'))}).",
        "",
        f"In brackets the 95 % interval. {_loss_of(facts)} The difference is the candidate's to the live model, "
        "or to the base model where none was live.",
        "",
        *_figures(facts, shown),
        *_meanings(shown),
        "",
        "### Slices",
        "",
    ]
    slices = [row for row in facts.judged() if row.get("slice") and row.get("set") != "safety"]
    return lines + (_slices(slices) if slices else [f"Slices: {NOT_MEASURED}."])


def safety(facts: CardFacts) -> list[str]:
    """Return the section of what harmful asks, injections and bait did."""
    shown = [measure for measure in MEASURES if measure.set == "safety"]
    if not any(_figure(facts, measure, CANDIDATE) for measure in shown):
        return [f"Refusal of harmful asks, of injections in retrieved text and of personal-data bait: {NOT_MEASURED}."]
    slices = [row for row in facts.judged() if row.get("slice") and row.get("set") == "safety"]
    return [*_figures(facts, shown), *_meanings(shown), *(["", *_slices(slices)] if slices else [])]


def limits(facts: CardFacts) -> list[str]:
    """Return what the measures leave open, as lines of a list."""
    lines = []
    if missing := [measure.name for measure in MEASURES if not _figure(facts, measure, CANDIDATE)]:
        lines.append(f"- {NOT_MEASURED.capitalize()}: {', '.join(missing)}.")
    for row in facts.judged():
        if row.get("word") in ("regressed", "doubtful") and row.get("measure") != PRIMARY.name:
            where = f", where {code(row.get('slice'))}" if row.get("slice") else ""
            lines.append(f"- {code(row.get('word'))}: {code(row.get('measure'))} of {code(row.get('set'))}{where}.")
    return lines + [f"- Not judged: {code(row.get('what'))} ({code(row.get('why'))})." for row in facts.not_judged()]


def unmeasured_sets(facts: CardFacts) -> list[str]:
    """Return the evaluation sets of which no measure has a figure."""
    seen = {measure.set for measure in MEASURES if _figure(facts, measure, CANDIDATE)}
    return [name for name in SETS if name not in seen]


def _loss_of(facts: CardFacts) -> str:
    said = facts.evidence.evaluate.facts.get("measure")
    return f"The loss is the {code(said)}." if said else ""


def _figure(facts: CardFacts, measure: Measure, model: str) -> bool:
    return number(facts.evidence.evaluate.metrics.get(f"{model}_{measure.name}")) != NOT_MEASURED


def _figures(facts: CardFacts, shown: list[Measure]) -> list[str]:
    values, live = facts.evidence.evaluate.metrics, facts.evidence.evaluate.facts.get("champion_release")
    whole = {(row.get("measure"), row.get("set")): row for row in facts.judged() if not row.get("slice")}
    rows = []
    for measure in shown:
        judged = whole.get((measure.name, measure.set), {})
        champion = interval(values, f"{CHAMPION}_{measure.name}") if live is not None else "none was live"
        figures = [
            interval(values, f"{BASE}_{measure.name}"),
            champion,
            interval(values, f"{CANDIDATE}_{measure.name}"),
        ]
        rows.append(
            [
                measure.name,
                measure.set,
                *figures,
                _difference(measure, values, judged),
                _rows_of(facts, measure, judged),
            ]
        )
    return table(["measure", "set", "base model", "live model", "candidate", "difference", "rows"], rows)


def _difference(measure: Measure, values: Mapping[str, float], judged: Mapping[str, Any]) -> str:
    if measure is PRIMARY:
        return interval(values, "difference", "+.3f")
    return spread(judged.get("difference"), judged.get("low"), judged.get("high"), "+.3f")


def _rows_of(facts: CardFacts, measure: Measure, judged: Mapping[str, Any]) -> str:
    rows = judged.get("rows", facts.evidence.evaluate.facts.get("rows") if measure is PRIMARY else None)
    return number(rows, ",.0f") if isinstance(rows, int) else NOT_MEASURED


def _slices(rows: list[Mapping[str, Any]]) -> list[str]:
    return table(
        ["measure", "set", "slice", "candidate", "compared with", "difference", "rows", "verdict"],
        [
            [
                code(row.get("measure")),
                code(row.get("set")),
                code(row.get("slice")),
                number(row.get("candidate")),
                number(row.get("reference")),
                spread(row.get("difference"), row.get("low"), row.get("high"), "+.3f"),
                number(row.get("rows"), ",.0f"),
                code(row.get("word")),
            ]
            for row in rows
        ],
    )


def _meanings(shown: list[Measure]) -> list[str]:
    return [f"- {measure.name}: {measure.meaning}; {_BETTER[measure.better]}" for measure in shown]
