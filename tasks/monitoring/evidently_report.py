"""Evidently, behind one function: a drift report of plain columns as HTML and JSON, with its p-values.

Pure but for a scratch file. Evidently tests numbers by Kolmogorov and Smirnov, shares by a z-test. Its own
tests of vectors are not used: at its defaults they miss a tenth of the traffic moving away, or always
alarm (`tasks.monitoring.mmd` does that work, and its result is a column here).
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Columns = Mapping[str, Sequence[float | bool | None]]


@dataclass(frozen=True)
class ColumnReport:
    """The report, and the p-value of each column that Evidently tested."""

    html: bytes
    json: dict[str, Any]
    p_values: dict[str, float]


def report(
    reference: Columns, current: Columns, numbers: Sequence[str], shares: Sequence[str], alpha: float
) -> ColumnReport:
    """Return Evidently's drift report of the named columns. A column without variety must not be among them."""
    os.environ.setdefault("DO_NOT_TRACK", "1")  # read at import: no telemetry
    import pandas
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    names = [*numbers, *shares]
    definition = DataDefinition(numerical_columns=list(numbers), categorical_columns=list(shares))
    before, after = (
        Dataset.from_pandas(pandas.DataFrame({name: list(side[name]) for name in names}), definition)
        for side in (reference, current)
    )
    preset = DataDriftPreset(num_method="ks", cat_method="z", num_threshold=alpha, cat_threshold=alpha)
    snapshot = Report([preset]).run(after, before)
    found = snapshot.dict()
    with tempfile.TemporaryDirectory(prefix="millrace-evidently-") as folder:
        path = Path(folder) / "report.html"
        snapshot.save_html(str(path))
        html = path.read_bytes()
    values = {
        metric["config"]["column"]: float(metric["value"])
        for metric in found["metrics"]
        if metric["config"]["type"].endswith(":ValueDrift")
    }
    return ColumnReport(html, json.loads(json.dumps(found, default=str)), values)
