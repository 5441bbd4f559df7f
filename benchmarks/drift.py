"""`drift_power`, `embedding_drift`, `nightly_check`: what the nightly check finds, what it does not, and what it costs.

The first two judge simulated traffic (`benchmarks.traffic`) as the nightly check does, by `compare` and `route`, and count
agreement over windows as `brakes` does; no stack is needed. The third runs the stages on a Postgres, S3 and MLflow of its own.
"""

import statistics
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.result import Result
from benchmarks.traffic import Shift, Traffic, joined
from tasks.monitoring import mmd
from tasks.monitoring.compare import compare
from tasks.monitoring.routes import Findings, Route, route
from tasks.monitoring.window import Window

NIGHT, REFERENCE_NIGHTS, LEAST, ALPHA = 1_000, 5, 100, 0.01
AGREE, OF = 2, 3
QUIET_LINEAGES, QUIET_NIGHTS = 30, 12
TRIALS = 40
LARGE, SMALL = (0.30, 2), (0.10, 7)
FALSE_ACTIONS, FOUND, TOLD = 0.01, 0.95, 0.90
SHIFTS: tuple[Shift, ...] = ("knowledge", "behaviour", "traffic")


def drift_power() -> Result:
    """Nights without drift that act, shifts of 30 % and 10 % of the traffic that are found in time, causes told apart."""
    quiet = Counter[str]()
    for lineage in range(QUIET_LINEAGES):
        traffic, judged = _lineage(lineage)
        for _ in range(QUIET_NIGHTS):
            acted = judged.night(traffic.night(NIGHT))
            quiet[f"{acted.action} {acted.cause} {acted.detail}"] += 1
    nights = QUIET_LINEAGES * QUIET_NIGHTS
    false = sum(count for name, count in quiet.items() if not name.startswith("none"))
    found: dict[tuple[Shift, float], list[Route | None]] = {}
    for number, shift in enumerate(SHIFTS):
        for share, within in (LARGE, SMALL):
            found[shift, share] = [
                _trial(10_000 * (number + 1) + int(100 * share) * 100 + trial, shift, share, within)
                for trial in range(TRIALS)
            ]
    power = {
        share: [
            sum(item is not None and item.cause == shift for item in found[shift, share]) / TRIALS for shift in SHIFTS
        ]
        for share, _ in (LARGE, SMALL)
    }
    acted_on = [(shift, item) for (shift, _), items in found.items() for item in items if item is not None]
    told = sum(item.cause == shift for shift, item in acted_on) / max(1, len(acted_on))
    shares = {share: statistics.fmean(values) for share, values in power.items()}
    confused = Counter(
        f"{shift} taken for {item.cause} ({item.detail})" for shift, item in acted_on if item.cause != shift
    )
    return Result(
        figure=f"{false} of {nights} quiet nights act, {shares[0.3]:.1%} of 30 % shifts found within 2 nights, "
        f"{shares[0.1]:.1%} of 10 % within 7, causes right in {told:.1%}",
        bound=f"{FALSE_ACTIONS:.0%} of nights, {FOUND:.0%}, {FOUND:.0%}, {TOLD:.0%}",
        holds=false <= FALSE_ACTIONS * nights
        and min(min(values) for values in power.values()) >= FOUND
        and told >= TOLD,
        details=[
            f"{NIGHT} requests a night, {REFERENCE_NIGHTS} nights of reference, {AGREE} of {OF} windows agree, "
            f"{TRIALS} trials of each cause and share",
            f"quiet nights: {dict(quiet.most_common())}",
            *(
                f"{share:.0%}: " + ", ".join(f"{s} {v:.1%}" for s, v in zip(SHIFTS, power[share], strict=True))
                for share in power
            ),
            f"confused: {dict(confused.most_common())}",
        ],
    )


class Judged:
    """The nights of one lineage, judged one after the other."""

    def __init__(self, reference: Window) -> None:
        self._reference = reference
        self._wanted: list[Route] = []

    def night(self, current: Window) -> Route:
        """Return what the night leads to: an alert at once, a DAG when enough windows agree, or nothing."""
        found = compare(self._reference, current, alpha=ALPHA, least=LEAST)
        rate = (len(current)) / (len(self._reference) / REFERENCE_NIGHTS)
        wanted = route(
            Findings(
                enough=True, reference_rows=len(self._reference), current_rows=len(current), least_requests=LEAST,
                tests={name: test.to_dict() for name, test in found.judged.items()}, surges=found.surges,
                explained=sorted({*found.harm} - {*found.lasting}), rate=rate, corrections=20,
            )
        )  # fmt: skip
        self._wanted.append(wanted)
        if wanted.action in {"none", "alert"}:
            return wanted
        votes = sum(item.cause == wanted.cause and item.action != "none" for item in self._wanted[-OF:])
        return wanted if votes >= AGREE else Route("none", wanted.cause, wanted.detail, "", "agreement")


def _lineage(seed: int) -> tuple[Traffic, Judged]:
    traffic = Traffic(seed)
    return traffic, Judged(joined([traffic.night(NIGHT) for _ in range(REFERENCE_NIGHTS)]))


def _trial(seed: int, shift: Shift, share: float, within: int) -> Route | None:
    """Return the first action after a shift, or None when there is none in time."""
    traffic, judged = _lineage(seed)
    judged.night(traffic.night(NIGHT))
    for _ in range(within):
        acted = judged.night(traffic.night(NIGHT, shift, share))
        if acted.action != "none":
            return acted
    return None


VECTORS, POWER_TRIALS, NULLS = 2_000, 40, 200
LEVEL, POWER, ALARMS, FASTER = 0.05, 0.85, 0.07, 20.0
SPEED_ROWS, ROUNDS = 10_000, 3


def embedding_drift() -> Result:
    """Power and false alarms of our test of vectors beside Evidently's, and its time beside Evidently's MMD."""
    warnings.simplefilter("ignore")
    alarms = sum(_p_value(1_000 + seed, 0.0) < LEVEL for seed in range(NULLS)) / NULLS
    power = sum(_p_value(5_000 + seed, 0.1) < LEVEL for seed in range(POWER_TRIALS)) / POWER_TRIALS
    theirs = {
        name: sum(_theirs(method, 5_000 + seed) for seed in range(8)) / 8 for name, method in _evidently().items()
    }
    ours, evidently = _speed()
    ratio = evidently / ours
    small, large = (_peak(rows) for rows in (SPEED_ROWS, 4 * SPEED_ROWS))
    linear = large / small <= 4.4
    return Result(
        figure=f"power {power:.2f}, false alarms {alarms:.3f}, {ratio:.1f} x as fast as Evidently's MMD, "
        f"{large / small:.1f} x the memory for 4 x the rows",
        bound=f"{POWER:.2f}, {ALARMS:.2f}, {FASTER:g} x, 4 x",
        holds=power >= POWER and alarms <= ALARMS and ratio >= FASTER and linear,
        details=[
            f"{VECTORS} vectors a side, a tenth of the current ones about other topics, level {LEVEL:g}; {POWER_TRIALS} trials, {NULLS} nulls",
            "Evidently finds, of 8 trials, at its defaults: "
            + ", ".join(f"{name} {value:.2f}" for name, value in theirs.items()),
            f"{SPEED_ROWS} rows a side: ours {ours:.3f} s with {mmd.PERMUTATIONS} permutations, Evidently's MMD {evidently:.2f} s (best of {ROUNDS})",
            f"peak memory: {small / 1e6:.0f} MB at {SPEED_ROWS} rows, {large / 1e6:.0f} MB at {4 * SPEED_ROWS}",
        ],
    )


def _sides(seed: int, share: float, rows: int = VECTORS) -> tuple[mmd.Vectors, mmd.Vectors]:
    """Return the vectors of two nights of the same topics, a share of the second about what the corpus does not hold."""
    traffic = Traffic(seed)
    both = traffic.alike(2 * rows)
    before, after = both[:rows], both[rows:].copy()
    moved = int(share * rows)
    after[:moved] = traffic.elsewhere(moved)
    return before, after


def _p_value(seed: int, share: float) -> float:
    return mmd.two_sample(*_sides(seed, share)).p_value


def _evidently() -> dict[str, Callable[..., Any]]:
    from evidently.legacy.metrics.data_drift.embedding_drift_methods import distance, model, ratio
    from evidently.legacy.metrics.data_drift.embedding_drift_methods import mmd as their_mmd

    return {"model": model(), "distance": distance(), "ratio": ratio(), "mmd": their_mmd()}


def _theirs(method: Callable[..., Any], seed: int) -> bool:
    import pandas

    before, after = (pandas.DataFrame(side) for side in _sides(seed, 0.1))
    return bool(method(after, before)[1])


def _speed() -> tuple[float, float]:
    """Return the seconds of ours and of Evidently's MMD over the same vectors, the best of some rounds each, taking turns."""
    import pandas

    before, after = _sides(1, 0.0, SPEED_ROWS)
    frames = pandas.DataFrame(after), pandas.DataFrame(before)
    theirs = _evidently()["mmd"]
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for place, work in enumerate((lambda: mmd.two_sample(before, after), lambda: theirs(*frames))):
            begun = time.perf_counter()
            work()
            seconds[place].append(time.perf_counter() - begun)
    return min(seconds[0]), min(seconds[1])


def _peak(rows: int) -> int:
    """Return the most memory our test takes, the vectors themselves included."""
    tracemalloc.start()
    sides = _sides(2, 0.0, rows)
    tracemalloc.reset_peak()
    mmd.two_sample(*sides)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak
