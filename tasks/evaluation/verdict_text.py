"""A verdict as Markdown, for whoever reads the run folder. Pure."""

from collections.abc import Mapping
from typing import Any

from tasks.evaluation.guards import Judged
from tasks.evaluation.verdict import Result

_WORDS = {
    "better": "surely better",
    "kept": "surely not worse",
    "open": "not shown either way",
    "doubtful": "perhaps worse",
    "regressed": "surely worse",
}


def markdown(result: Result, facts: Mapping[str, Any]) -> str:
    """Return the verdict, the judged measures, what was not judged, and the rows that changed most."""
    lines = [f"# Verdict: {result.word}", "", result.reason, "", f"Weights `{facts.get('weights_sha256')}`."]
    sets = facts.get("sets")
    if isinstance(sets, Mapping):
        lines += [f"Set {name}: {said.get('rows')} rows, `{said.get('sha256')}`." for name, said in sets.items()]
    judge = facts.get("judge")
    if isinstance(judge, Mapping) and judge.get("unavailable"):
        lines += ["", f"The judge was unavailable, and decides nothing: {judge['unavailable']}"]
    if result.judged:
        lines += ["", *_table(result)]
    if result.not_judged:
        lines += ["", "## Not judged", "", *(f"- {one.what}: {one.why}" for one in result.not_judged)]
    if result.changed:
        lines += [
            "",
            "## What changed most",
            "",
            "| set | row | measure | before | now |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {row['set']} | {_cell(row['id'])} | {row['measure']}, {row['way']} | {row['reference']:.3f} | {row['candidate']:.3f} |"
            for row in result.changed
        ]
    return "\n".join(lines) + "\n"


def _table(result: Result) -> list[str]:
    head = "| measure | where | rows | candidate | before | difference (95 % interval) | margin | verdict |"
    return [head, "| --- | --- | --- | --- | --- | --- | --- | --- |", *map(_row, result.judged)]


def _row(row: Judged) -> str:
    where = row.set + (f", {_cell(row.slice)}" if row.slice else "")
    return (
        f"| {row.measure} | {where} | {row.rows} | {row.candidate:.3f} | {row.reference:.3f} | {row.difference:+.3f} "
        f"({row.low:+.3f} to {row.high:+.3f}) | {row.margin:g} | {_WORDS[row.word]} |"
    )


def _cell(text: str) -> str:
    """Return a text that cannot end its cell or its line."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
