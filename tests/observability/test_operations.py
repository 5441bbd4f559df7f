"""docs/operations.md lists exactly the metrics and alerts there are."""

import re

import pytest
import yaml

from tasks.observability.catalog import EXPORTED, SERVED, Metric
from tasks.settings import REPOSITORY

PAGE = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")


def rows(word: str) -> list[tuple[str, ...]]:
    """Return the cells of a marked table, without its head."""
    block = PAGE.split(f"<!-- {word} -->")[1].split(f"<!-- end of {word} -->")[0]
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in block.strip().splitlines()[2:]]


@pytest.mark.parametrize(("word", "metrics"), [("exporter", EXPORTED), ("assistant", SERVED)])
def test_every_metric_is_listed_as_it_is(word: str, metrics: dict[str, Metric]) -> None:
    assert rows(word) == [
        (f"`{m.name}`", m.kind, ", ".join(m.labels) or "-", m.meaning) for m in metrics.values()
    ]  # fmt: skip


def test_every_alert_is_listed_with_its_runbook() -> None:
    expected = [
        (
            f"[{rule['alert']}](runbooks/alerts/{rule['alert']}.md)",
            rule["labels"]["severity"],
            rule["annotations"]["summary"],
        )
        for path in sorted((REPOSITORY / "infra" / "monitoring" / "rules").glob("*.yaml"))
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    ]
    assert rows("alerts") == expected


def test_the_metrics_of_airflow_that_are_named_are_sent() -> None:
    from .airflow_names import NAMES

    assert set(re.findall(r"`(airflow_\w+?)(?:\{[^`]*)?`", PAGE)) <= set(NAMES)
