"""What a candidate's shadow answers say, beside the live model's answers to the same questions.

Reads `shadow_answers`, `requests`, `feedback` and `releases`; writes nothing. Only answers that were compared with the model
that is live now count: index and prompt may have changed since, the model has not. Differences are candidate less live, of
the same question, with a 95 % bootstrap interval of their mean over questions. `python -m tasks shadow-report
--model-version N` prints it, last as one line of JSON. Fails as the database does; without answers it says so.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tasks.database import Connection
from tasks.errors import OptionError
from tasks.options import parse_options
from tasks.release.ledger import Release, ledger, live

RESAMPLES = 2_000
FEWEST = 2  # pairs of which an interval can be told
# Name of a figure, column of the live answer, column of the shadow's, digits that are told.
_FIGURES = (
    ("length", "live_length", "length", 0),
    ("tokens", "live_tokens", "completion_tokens", 0),
    ("groundedness", "live_grounded", "grounded", 2),
    ("milliseconds", "live_ms", "latency_ms", 0),
)
_PAIRS = """
SELECT s.error, s.finish_reason, s.live_finish_reason, s.completion_tokens, s.latency_ms, s.live_ms, s.grounded,
    length(s.answer) AS length, r.answer IS NOT NULL AS kept, length(r.answer) AS live_length, r.answer = s.answer AS same,
    r.completion_tokens AS live_tokens, r.grounded AS live_grounded,
    (SELECT f.rating FROM feedback f WHERE f.request_id = s.request_id AND f.status <> 'rejected' ORDER BY f.id DESC LIMIT 1) AS rating
FROM shadow_answers s JOIN releases l ON l.release = s.release LEFT JOIN requests r ON r.id = s.request_id
WHERE s.model_name = %(name)s AND s.model_version = %(version)s
    AND l.adapter_sha256 IS NOT DISTINCT FROM %(adapter)s AND l.base_revision = %(base)s
ORDER BY s.request_id
"""


@dataclass(frozen=True)
class Figure:
    """Means of both, and of their difference with its interval (None of fewer than two pairs)."""

    pairs: int
    live: float
    shadow: float
    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Report:
    """What is known of a candidate from its shadow answers."""

    model_version: str
    release: int | None
    pairs: int
    unanswered: dict[str, int]
    same: float | None
    figures: dict[str, Figure]
    finish_reasons: dict[str, dict[str, int]]
    live_feedback: dict[str, int]

    def summary(self) -> str:
        """Return the one line that an approver reads."""
        if not self.pairs:
            failed = sum(self.unanswered.values())
            return f"Shadow: no shadow answers{f' ({failed} without an answer)' if failed else ''}."
        told = [f"Shadow: {self.pairs} questions answered"]
        digits = {name: places for name, _live, _shadow, places in _FIGURES}
        for name in ("groundedness", "length", "milliseconds"):
            if (found := self.figures.get(name)) is not None:
                told.append(f"{name} {_interval(found, digits[name])}")
        if self.same is not None:
            told.append(f"{self.same:.0%} equal to the live answer")
        if self.unanswered:
            told.append("without an answer: " + ", ".join(f"{n} {name}" for name, n in self.unanswered.items()))
        return "; ".join(told) + "."


def report(connection: Connection, name: str, version: str, now: Release | None) -> Report:
    """Return what the shadow answers of a version say against the model of the release `now`."""
    rows: list[dict[str, Any]] = []
    if now is not None:
        about = {"name": name, "version": version, "adapter": now.adapter_sha256, "base": now.base_revision}
        rows = connection.execute(_PAIRS.encode(), about).fetchall()
    pairs = [row for row in rows if row["error"] is None and row["kept"]]
    # An answer whose request is gone (too old, or its document was erased) has nothing to be compared with.
    unanswered = Counter(
        row["error"] or "NothingToCompare" for row in rows if row["error"] is not None or not row["kept"]
    )
    return Report(
        model_version=version,
        release=now.release if now else None,
        pairs=len(pairs),
        unanswered=dict(sorted(unanswered.items())),
        same=sum(row["same"] for row in pairs) / len(pairs) if pairs else None,
        figures={
            figure: made
            for figure, live_column, column, _ in _FIGURES
            if (made := compared([(row[live_column], row[column]) for row in pairs])) is not None
        },
        finish_reasons={
            who: dict(sorted(Counter(row[column] for row in pairs).items()))
            for who, column in (("live", "live_finish_reason"), ("shadow", "finish_reason"))
        },
        live_feedback=dict(sorted(Counter(row["rating"] for row in pairs if row["rating"]).items())),
    )


def compared(values: Sequence[tuple[float | None, float | None]]) -> Figure | None:
    """Return the figure of pairs (live, shadow), those aside that lack one; None of no pair."""
    found = np.array([pair for pair in values if None not in pair], dtype=float)
    if not len(found):
        return None
    differences = found[:, 1] - found[:, 0]
    low = high = None
    if len(found) >= FEWEST:
        # The same pairs give the same interval: whoever reads it twice must not wonder.
        random = np.random.default_rng(0)
        means = [differences[random.integers(0, len(found), len(found))].mean() for _ in range(RESAMPLES)]
        low, high = (float(bound) for bound in np.quantile(means, (0.025, 0.975)))
    live, shadow = found.mean(axis=0)
    return Figure(len(found), float(live), float(shadow), float(differences.mean()), low, high)


def _interval(figure: Figure, digits: int) -> str:
    text = f"{figure.difference:+.{digits}f}"
    if figure.low is None or figure.high is None:
        return text
    return f"{text} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def lines(found: Report) -> list[str]:
    """Return what a person reads."""
    told = [found.summary()]
    for name, figure in found.figures.items():
        told.append(
            f"  {name}: live {figure.live:.3g}, shadow {figure.shadow:.3g}, difference {_interval(figure, 3)}, {figure.pairs} pairs"
        )
    for who, reasons in found.finish_reasons.items():
        told.append(f"  {who} ended by: {_counts(reasons)}")
    told.append(f"  feedback on the live answers: {_counts(found.live_feedback)}")
    return told


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"


def main(arguments: list[str]) -> int:
    """`python -m tasks shadow-report --model-version N`: print what the candidate's shadow answers say."""
    from tasks.settings import settings

    given = parse_options(arguments)
    if not given.get("model_version") or set(given) != {"model_version"}:
        raise OptionError(f"expected --model-version N, found {sorted(given)}. Next: correct the command.")
    own = settings()
    with ledger(own) as connection:
        found = report(connection, own.model_name, given["model_version"], live(connection))
    for line in lines(found):
        print(line)
    print(json.dumps(asdict(found), sort_keys=True))
    return 0
