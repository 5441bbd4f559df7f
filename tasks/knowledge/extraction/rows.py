"""CSV and JSON rows: each row a section of `column: value` lines, named by its title, name or id.

Reads and writes nothing but its arguments. Never fails: what does not parse as rows is None, and is read as text.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tasks.knowledge.extraction.model import Extract, Writer, one_line
from tasks.knowledge.extraction.text import decode, name_of, normalised

_KEYS = ("title", "name", "id", "key", "uuid", "slug")
_DELIMITERS = ",;\t|"
_SNIFFED = 50  # lines that tell whether a file without the ending of one is a table
_LONGEST_NAME = 40  # characters of a column's name
_LONGEST_CELL = 10_000_000


def extract_rows(uri: str, body: bytes, ending: str) -> Extract | None:
    """Return what a file of rows says; None when it is none."""
    characters, invalid = decode(body)
    text = normalised(characters)
    form, rows = ("jsonl", json_rows(text, ending)) if _is_json(text, ending) else ("csv", csv_rows(text, ending))
    if rows is None:
        return None
    writer = Writer()
    for row in rows:
        lines = [f"{name}: {value}" for name, value in row.items() if value.strip()]
        key = row_key(row)
        if key:
            writer.enter(1, key)
        else:
            writer.leave()
        writer.block("\n".join(lines), "table", apart=True)
    return Extract(name_of(uri), writer.text, invalid, form, writer.sections)


def row_key(row: Mapping[str, str]) -> str:
    """Return what a row is called: its title, name or id."""
    lower = {name.lower(): value for name, value in row.items()}
    value = next((lower[name] for name in _KEYS if lower.get(name, "").strip()), "")
    return one_line(value) if len(value) <= 200 else ""


def csv_rows(text: str, ending: str) -> list[dict[str, str]] | None:
    """Return the rows of a table with a header; None where the text is none."""
    start = "\n".join(text.split("\n", _SNIFFED)[:_SNIFFED])
    delimiter = "\t" if ending == ".tsv" else _delimiter(start)
    if delimiter is None:
        return None
    if ending not in {".csv", ".tsv"} and not _is_table(_cells(start, delimiter)):
        return None
    rows = _cells(text, delimiter)
    if ending not in {".csv", ".tsv"} and not _is_table(rows):
        return None
    names = [one_line(name) or f"column {number}" for number, name in enumerate(rows[0], start=1)] if rows else []
    return [_named(names, row) for row in rows[1:]] or None


def json_rows(text: str, ending: str) -> list[dict[str, str]] | None:
    """Return the objects of JSON lines, or of a JSON list of objects; None where the text is neither."""
    try:
        found = _loads(text) if ending == ".json" else [_loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or not found or not all(isinstance(row, dict) for row in found):
        return None
    try:
        return [dict(flat(row)) for row in found]
    except RecursionError:
        return None


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of nested objects and lists by a dotted name; a list of plain values is one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else one_line(key))
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for number, inner in enumerate(value):
            yield from flat(inner, f"{name}.{number}" if name else str(number))
    elif isinstance(value, list):
        yield name, ", ".join(map(_plain, value))
    else:
        yield name, _plain(value)


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _loads(text: str) -> Any:
    """Parse JSON; numbers stay as they are written."""
    return json.loads(text, parse_int=str, parse_float=str, parse_constant=str)


def _is_json(text: str, ending: str) -> bool:
    return ending in {".json", ".jsonl", ".ndjson"} or (ending not in {".csv", ".tsv"} and text.startswith("{"))


def _delimiter(start: str) -> str | None:
    """Return the delimiter that the first line has most of; None when it has none."""
    first = start.split("\n", 1)[0]
    best = max(_DELIMITERS, key=first.count)
    return best if first.count(best) else None


def _cells(text: str, delimiter: str) -> list[list[str]]:
    """Return the rows of a table that are not empty; none where it is no table."""
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(row)]
    except csv.Error:
        return []
    finally:
        csv.field_size_limit(before)


def _is_table(rows: list[list[str]]) -> bool:
    """Return whether rows without the ending of a table are one: all alike, below short and different names."""
    names = rows[0] if rows else []
    return (
        len(rows) >= 3
        and len(names) >= 3
        and len(set(names)) == len(names)
        and all(0 < len(name) <= _LONGEST_NAME and name == one_line(name) for name in names)
        and all(len(row) == len(names) for row in rows)
    )


def _named(names: list[str], row: Iterable[str]) -> dict[str, str]:
    """Return a row by the names of its columns; a cell more than there are names is kept too."""
    cells = list(row)
    more = [f"column {number}" for number in range(len(names) + 1, len(cells) + 1)]
    return {name: cell.strip() for name, cell in zip([*names, *more], cells, strict=False)}
