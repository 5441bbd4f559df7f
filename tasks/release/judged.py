"""The verdict as a table: each measure that was judged, on which set and slice, with its interval and margin.

Pure: reads the facts of the gate's manifest. What a gate did not write is shown as a dash, and where it wrote no table
there is none: nothing is worked out here.
"""

from typing import Any

from tasks.contracts import Manifest

MOST = 25  # the form goes through XCom, which has a limit; the gate's own file has all
_HEAD = ("measure", "on", "candidate", "live", "difference (interval)", "margin", "rows", "judged")


def rows_of(gate: Manifest) -> list[dict[str, Any]]:
    """Return the judged measures that the gate's manifest has, those not passed first."""
    found = gate.facts.get("judged")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    return sorted(rows, key=lambda row: str(row.get("judged")) in {"passed", "better", "equal"})


def table(gate: Manifest) -> list[str]:
    """Return the lines of the table in Markdown; none where the gate judged no measures by name."""
    rows = rows_of(gate)
    if not rows:
        return []
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + " --- |" * len(_HEAD), *map(_line, rows[:MOST])]
    left = len(rows) - MOST
    return [*lines, "", f"{left} further measures are in the verdict's file."] if left > 0 else lines


def _line(row: dict[str, Any]) -> str:
    where = [_text(row[name]) for name in ("set", "slice") if row.get(name)]
    difference = _number(row.get("difference"))
    if row.get("low") is not None and row.get("high") is not None:
        difference += f" [{_number(row['low'])}, {_number(row['high'])}]"
    cells = (
        _text(row.get("measure")), ", ".join(where) or "-", _number(row.get("candidate")), _number(row.get("reference")),
        difference, _number(row.get("margin")), _text(row.get("rows")), _text(row.get("judged")),
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) and not isinstance(value, bool) else _text(value)


def _text(value: Any) -> str:
    return "-" if value is None or value == "" else str(value).replace("|", "/").replace("\n", " ")
