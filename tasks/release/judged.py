"""The verdict as a table: each measure that was judged, on which set and slice, with its interval and margin.

Reads the gate's `verdict.json`, where its manifest names one. What the gate did not write is shown as a dash, and where it
judged no measures by name there is no table: nothing is worked out here. Fails with `ManifestError` when those bytes are
gone or are others.
"""

from collections.abc import Mapping
from typing import Any

from tasks.contracts import Manifest
from tasks.storage import Storage

MOST = 25  # the form goes through XCom, which has a limit; the gate's own file has all
_HEAD = ("measure", "on", "candidate", "before", "difference (interval)", "margin", "rows", "judged")
_GOOD = {"better", "kept"}


def report(storage: Storage, gate: Manifest) -> dict[str, Any]:
    """Return what the gate wrote of its verdict; empty where it wrote nothing. Raises ManifestError."""
    written = gate.outputs.get("verdict")
    found = storage.get_json(written) if written else {}
    return found if isinstance(found, dict) else {}


def table(verdict: Mapping[str, Any]) -> list[str]:
    """Return the judged measures in Markdown, those that are not good first, and what was not judged; or nothing."""
    rows = sorted(_rows(verdict, "judged"), key=lambda row: row.get("word") in _GOOD)
    left_out = [
        f"- not judged: {_text(row.get('what'))}: {_text(row.get('why'))}" for row in _rows(verdict, "not_judged")
    ]
    lines = []
    if rows:
        lines = ["| " + " | ".join(_HEAD) + " |", "|" + " --- |" * len(_HEAD), *map(_line, rows[:MOST])]
    if len(rows) > MOST:
        lines += ["", f"{len(rows) - MOST} further measures are in the verdict's file."]
    return [*lines, "", *left_out[:MOST]] if left_out else lines


def _rows(verdict: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = verdict.get(name)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _line(row: dict[str, Any]) -> str:
    where = [_text(row[name]) for name in ("set", "slice") if row.get(name)]
    difference = _number(row.get("difference"))
    if row.get("low") is not None and row.get("high") is not None:
        difference += f" [{_number(row['low'])}, {_number(row['high'])}]"
    cells = (
        _text(row.get("measure")), ", ".join(where) or "-", _number(row.get("candidate")), _number(row.get("reference")),
        difference, _number(row.get("margin")), _text(row.get("rows")), _text(row.get("word")),
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) and not isinstance(value, bool) else _text(value)


def _text(value: Any) -> str:
    return "-" if value is None or value == "" else str(value).replace("|", "/").replace("\n", " ")
