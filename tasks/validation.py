"""Great Expectations, behind one function: which rows break which rules, and why.

Reads a suite file of `expectations/` (Great Expectations' own JSON, as `ExpectationSuite.to_json_dict`
writes it) and rows. Each expectation carries in `meta` its `rule` (the name that quarantine, tests and
reports use) and `expected` (the words of the reason). Writes nothing. Fails with `DataError` when a
suite is malformed or names a column that the rows lack.

Every broken row is found: Great Expectations keeps at most 200 unexpected *values*, but all unexpected
*indices* (checked by a test), so rows are matched by position, never by value.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import DataError
from tasks.lazy_imports import lazily
from tasks.settings import repository_path

if TYPE_CHECKING:
    import pandas

_POSITION = "__position__"


@dataclass(frozen=True)
class Report:
    """What a suite found. `rows[i]` maps each rule that row i breaks to the reason; `whole` is about the set."""

    suite: str
    rows: list[dict[str, str]]
    whole: dict[str, str]

    @property
    def good(self) -> list[int]:
        """Positions of the rows that break no rule."""
        return [position for position, broken in enumerate(self.rows) if not broken]

    @property
    def bad(self) -> list[int]:
        """Positions of the rows that break a rule."""
        return [position for position, broken in enumerate(self.rows) if broken]

    @property
    def by_rule(self) -> dict[str, int]:
        """Number of rows that break each rule; only rules that were broken."""
        return dict(sorted(Counter(rule for broken in self.rows for rule in broken).items()))


def validate(suite: str, rows: "Sequence[Mapping[str, Any]] | pandas.DataFrame") -> Report:
    """Run `expectations/SUITE.json` (or the suite at a path) over rows; say for every row what it breaks.

    A missing value (None) breaks only `..._to_not_be_null` rules. No rows break no rules, and then Great
    Expectations is not imported (it takes seconds).
    """
    definition = load_suite(suite)
    if len(rows) == 0:
        return Report(definition["name"], [], {})
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # read at import
    import pandas

    # Columns of objects: an absent number must stay None, not turn a column of integers into floats.
    frame = pandas.DataFrame(rows, dtype=object).reset_index(drop=True)
    _require_columns(definition, frame.columns)
    frame = frame.assign(**{_POSITION: range(len(frame))})
    broken: list[dict[str, str]] = [{} for _ in range(len(frame))]
    whole: dict[str, str] = {}
    for result in _run(definition, frame):
        if result["success"] and not result["result"].get("unexpected_index_list"):
            continue
        rule, expected = _rule(result["expectation_config"])
        indices = result["result"].get("unexpected_index_list")
        if indices is None:
            whole[rule] = f"expected {expected}, found {_short(result['result'].get('observed_value'))}"
            continue
        for entry in indices:
            position = entry[_POSITION]
            found = {name: value for name, value in entry.items() if name != _POSITION}
            value = next(iter(found.values())) if len(found) == 1 else found
            broken[position][rule] = f"expected {expected}, found {_short(value)}"
    return Report(definition["name"], broken, whole)


@cache
def load_suite(suite: str) -> dict[str, Any]:
    """Return the suite as a dictionary: a name below `expectations/`, or a path that ends in .json. Raises DataError."""
    path = Path(suite) if suite.endswith(".json") else repository_path(f"expectations/{suite}.json")
    try:
        definition: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"expected a suite of expectations at {path.name}, found {error}. Next: restore it.") from error
    rules = [_rule(expectation)[0] for expectation in definition.get("expectations", [])]
    if not rules or len(rules) != len(set(rules)):
        raise DataError(f"expected different rule names in {path.name}, found {sorted(rules)}. Next: see README there.")
    return definition


def rules(suite: str) -> list[str]:
    """Return the rule names of a suite, in its order."""
    return [_rule(expectation)[0] for expectation in load_suite(suite)["expectations"]]


def _rule(expectation: Mapping[str, Any]) -> tuple[str, str]:
    """Return name and wording of an expectation. Raises DataError when its `meta` lacks them."""
    meta = expectation.get("meta") or {}
    if not meta.get("rule") or not meta.get("expected"):
        raise DataError(
            f"expected meta.rule and meta.expected in {expectation.get('type')}, found {sorted(meta)}. "
            "Next: name the rule in the suite file (expectations/README.md)."
        )
    return str(meta["rule"]), str(meta["expected"])


def _require_columns(definition: Mapping[str, Any], columns: "pandas.Index[Any]") -> None:
    wanted: set[str] = set()
    for expectation in definition["expectations"]:
        kwargs = expectation["kwargs"]
        wanted.update(kwargs.get("column_list", []))
        wanted.update(kwargs[name] for name in ("column", "column_A", "column_B") if name in kwargs)
    missing = sorted(wanted - set(columns))
    if missing:
        raise DataError(
            f"expected columns {sorted(wanted)} for the suite {definition['name']}, found no {missing}. "
            "Next: give every row these keys (None where there is no value)."
        )


def _run(definition: Mapping[str, Any], frame: "pandas.DataFrame") -> list[dict[str, Any]]:
    """Return Great Expectations' results as dictionaries, in the suite's order. Raises DataError when a rule cannot run."""
    # Its import writes a hundred INFO lines into a stage's log.
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    with lazily("scipy.stats", "altair"):
        import great_expectations
        from great_expectations.core import ExpectationSuite
        from great_expectations.data_context.types.base import ProgressBarsConfig

    # This one sets its own level, and would name a folder a call.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = great_expectations.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    batches = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
    batch = batches.add_batch_definition_whole_dataframe("all").get_batch(batch_parameters={"dataframe": frame})
    outcome = batch.validate(
        ExpectationSuite(**definition),
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [_POSITION]},
    )
    results = [result.to_json_dict() for result in outcome.results]
    for result in results:
        if problem := _exception(result.get("exception_info") or {}):
            rule, _expected = _rule(result["expectation_config"])
            raise DataError(
                f"expected the rule {rule} of {definition['name']} to run, found {problem}. Next: correct its arguments, "
                "or the type of its column."
            )
    return results


def _exception(info: Mapping[str, Any]) -> str | None:
    """Return the message of a rule that raised: Great Expectations nests it by metric, or not."""
    entries = [info] if "raised_exception" in info else list(info.values())
    return next((str(entry["exception_message"])[:300] for entry in entries if entry.get("raised_exception")), None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
