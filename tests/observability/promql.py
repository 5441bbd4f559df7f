"""What a PromQL expression names: metrics, and the labels it matches or groups by."""

import re

WORDS = {
    "sum", "min", "max", "avg", "count", "topk", "rate", "increase", "irate", "delta", "changes", "absent", "time", "abs",
    "histogram_quantile", "label_replace", "clamp_min", "sort_desc", "and", "or", "unless", "on", "by", "without", "ignoring", "bool",
    "group_left", "group_right", "vector", "scalar", "offset",
}  # fmt: skip
_CLAUSE = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_MATCHERS = re.compile(r"\{([^}]*)\}")


def names(expression: str) -> set[str]:
    """Return the metrics. Whatever is neither a known word nor a number is taken for one."""
    rest = re.sub(r'"[^"]*"', '""', expression)
    rest = _MATCHERS.sub(" ", _CLAUSE.sub(" ", rest))
    rest = re.sub(r"\[[^\]]*\]", " ", rest)
    return set(re.findall(r"(?<![\w.])[a-zA-Z_:][\w:]*", rest)) - WORDS


def labels(expression: str) -> set[str]:
    """Return the labels."""
    rest = re.sub(r'"[^"]*"', '""', expression)
    matched = {
        re.split(r"[=!]", part)[0].strip()
        for inside in _MATCHERS.findall(rest)
        for part in inside.split(",")
        if part.strip()
    }
    grouped = {label.strip() for inside in _CLAUSE.findall(rest) for label in inside.split(",") if label.strip()}
    return matched | grouped
