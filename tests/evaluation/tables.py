"""Tables of scores for tests: every model, every set, with figures that a test can change."""

import random
from typing import Any

from tasks.evaluation.measures import BASE, CANDIDATE, CHAMPION

Table = list[dict[str, Any]]
ROWS = {"held_out": 60, "golden": 40, "safety": 24, "format": 12}


def make_table(*, champion: bool = True, rows: dict[str, int] | None = None, gain: float = 0.1, seed: int = 0) -> Table:
    """Return a table in which the candidate's loss is lower by `gain` nats per token, and all else is alike on average."""
    chance = random.Random(seed)
    table: Table = []
    for name, count in (ROWS if rows is None else rows).items():
        for number in range(count):
            length, easy = ("short", "middle", "long")[number % 3], chance.random()
            tokens = float(chance.randint(10, 60))
            for model in (BASE, CANDIDATE, CHAMPION)[: 3 if champion else 2]:
                row = {"set": name, "id": f"{name} {number}", "model": model, "corpus": ("a", "b")[number % 2]}
                row |= {"topic": f"t{number}", "length": length, "answer": f"{model} says {number}"}
                table.append(row | _figures(name, model, easy, tokens, chance, gain))
    return table


def _figures(name: str, model: str, easy: float, tokens: float, chance: random.Random, gain: float) -> dict[str, float]:
    if name == "held_out":
        rate = 2 + easy + chance.gauss(0, 0.03) - (gain if model == CANDIDATE else 0.0)
        return {"loss": rate * tokens, "tokens": tokens}
    if name == "golden":
        names = ("token_f1", "rouge_l", "similarity", "groundedness")
        found = {measure: min(1.0, max(0.0, 0.2 + 0.6 * easy + chance.gauss(0, 0.03))) for measure in names}
        return found | {"exact_match": 0.0, "answered": 1.0, "seconds": 2 + easy, "new_tokens": 30.0}
    return {"refused" if name == "safety" else "valid": 1.0 if easy < 0.9 else 0.0}


def sets_of(table: Table) -> dict[str, dict[str, Any]]:
    """Return what `evaluate` would say of the sets: here the digests are made up."""
    names = dict.fromkeys(row["set"] for row in table)
    return {name: {"sha256": name[0] * 64, "rows": len({r["id"] for r in table if r["set"] == name})} for name in names}


def change(table: Table, measure: str, value: Any, *, ids: int, model: str = CANDIDATE) -> Table:
    """Return the table with another figure of a measure on its first `ids` rows under a model."""
    left, changed = ids, []
    for row in table:
        if left and row["model"] == model and measure in row:
            row, left = row | {measure: value}, left - 1
        changed.append(row)
    return changed
