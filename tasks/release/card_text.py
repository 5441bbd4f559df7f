"""Text of a model card: Markdown that says what data says, and does nothing that data asks for.

Pure. Whatever comes from data stands in a code span, where CommonMark and GitHub's Markdown know no HTML, link, image,
emphasis or entity; a pipe is escaped where it stands in a table. What cannot be seen, or turns the direction of reading, becomes U+FFFD.
"""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

NOT_MEASURED, UNKNOWN = "not measured", "unknown"
_LONGEST = 400
_BACKTICKS = re.compile(r"`+")


def code(value: Any) -> str:
    """Return data as a code span; nothing at all is `unknown`, in plain text."""
    text = _seen(str(value)) if value is not None else ""
    if not text:
        return UNKNOWN
    fence = "`" * (max((len(found) for found in _BACKTICKS.findall(text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose cells are Markdown already (`code`, or fixed text), with an empty line after it."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines] + [""]


def number(value: Any, form: str = ".3f") -> str:
    """Return a finite number as text; anything else is not measured."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return NOT_MEASURED
    return format(value, form)


def interval(values: Mapping[str, Any], name: str, form: str = ".3f") -> str:
    """Return the figure `name` with the bounds that stand beside it as `name_low` and `name_high`, where they do."""
    return spread(values.get(name), values.get(f"{name}_low"), values.get(f"{name}_high"), form)


def spread(value: Any, low: Any, high: Any, form: str = ".3f") -> str:
    """Return a figure with its interval; without bounds it says so."""
    figure, ends = number(value, form), (number(low, form), number(high, form))
    if figure == NOT_MEASURED:
        return figure
    return f"{figure} (no interval)" if NOT_MEASURED in ends else f"{figure} ({ends[0]} to {ends[1]})"


def _seen(text: str) -> str:
    """Return text on one line, of characters that can be seen."""
    line = " ".join(text[: 4 * _LONGEST].split())
    line = "".join("\ufffd" if unicodedata.category(one) in {"Cc", "Cf", "Cs", "Co", "Cn"} else one for one in line)
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
