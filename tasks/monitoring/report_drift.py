"""Test two windows of requests for drift, and write the report.

Reads the windows of collect_requests. Tests the questions' vectors (`tasks.monitoring.mmd`) and a few
figures (Evidently's tests), corrects the p-values for their number (Holm), and names as drifted what is
both below `MILLRACE_DRIFT_ALPHA` and large enough to matter. Writes `report.html`, `report.json` and
`tests.json` here and to an MLflow run of the experiment `millrace-drift`, and one row of
`drift_windows`. Windows below `MILLRACE_DRIFT_MIN_REQUESTS` are recorded and not judged.
"""

import io
import json
from typing import Any

import numpy

from tasks import tracking
from tasks.contracts import Artifact
from tasks.database import connect
from tasks.monitoring import mmd
from tasks.monitoring.evidently_report import report as evidently_report
from tasks.monitoring.figures import EMBEDDING, FIGURES, Figure, Test, change, columns, level, matters, same_kind
from tasks.stage import Stage, StageContext, StageOptions, StageResult

EXPERIMENT = "millrace-drift"
EXAMPLES = 3
Row = dict[str, Any]
Values = dict[str, tuple[list[float], list[float]]]
"""The values of each figure in the reference and in the current window."""


class Options(StageOptions):
    """No options: levels and sizes are settings."""


def run(context: StageContext, options: Options) -> StageResult:
    """Test the windows, write the report, and record it."""
    reference, current = (list(context.storage.get_rows(context.input("collect_requests", n))) for n in _WINDOWS)
    vectors = {name: _vectors(context, name) for name in _WINDOWS}
    least = context.settings.drift_min_requests
    enough = min(len(reference), len(current)) >= least
    tests: dict[str, Test] = {}
    skipped: dict[str, str] = {}
    topics: list[str] = []
    outputs: dict[str, Artifact] = {}
    if enough:
        values, skipped = _values(context, reference, current, vectors)
        html, body, p_values = _tested(context, values, reference, current, vectors)
        tests = _judge(values, p_values, context.settings.drift_alpha, vectors)
        topics = _new_topics(vectors, current) if EMBEDDING in tests else []
        outputs["report.html"] = context.storage.put_bytes(
            f"{context.folder}/report.html", html, content_type="text/html"
        )
        outputs["report.json"] = context.storage.put_json(f"{context.folder}/report.json", body)
    drifted = sorted(name for name, test in tests.items() if test.drifted)
    result = {
        "enough": enough,
        "least_requests": least,
        "drifted": drifted,
        "tests": {name: test.to_dict() for name, test in tests.items()},
        "not_tested": skipped,
        "new_topics": topics,
    }
    outputs["tests.json"] = context.storage.put_json(f"{context.folder}/tests.json", result)
    link = _track(context, outputs, tests) if enough else {}
    report_uri = outputs["report.html" if enough else "tests.json"].uri
    window = _record(context, result, report_uri, len(reference), len(current))
    return StageResult(
        outputs=outputs,
        counts={"reference": len(reference), "current": len(current), "tests": len(tests), "drifted": len(drifted)},
        metrics={f"{name}_p": test.p_adjusted for name, test in tests.items()},
        facts=result
        | link
        | {"report_uri": report_uri, "window": window}
        | {"p_values": {name: test.to_dict()["p_adjusted"] for name, test in tests.items()}},
    )


_WINDOWS = ("reference", "current")


def _vectors(context: StageContext, window: str) -> mmd.Vectors:
    body = context.storage.get(context.input("collect_requests", f"{window}_vectors"))
    vectors: mmd.Vectors = numpy.load(io.BytesIO(body), allow_pickle=False)
    return vectors


def _values(
    context: StageContext, reference: list[Row], current: list[Row], vectors: dict[str, mmd.Vectors]
) -> tuple[Values, dict[str, str]]:
    """Return the values of each figure that can be tested, and why the others cannot."""
    least = context.settings.drift_min_requests
    kind = same_kind(reference, current)
    sides = [columns(window) for window in (reference, current)]
    # Answers of two kinds take differently long, so only the commonest kind's latency is compared.
    alike = [columns([row for row in window if row["kind"] == kind]) for window in (reference, current)]
    values, skipped = {}, {}
    for figure in FIGURES:
        before, after = (
            [value for value in side[figure.name] if value is not None]
            for side in (alike if figure.name == "latency_ms" else sides)
        )
        if min(len(before), len(after)) < least:
            skipped[figure.name] = f"{len(before)} and {len(after)} values, {least} needed"
        elif len({*before, *after}) == 1:
            skipped[figure.name] = f"always {before[0]:g}"
        else:
            values[figure.name] = (before, after)
    sizes = [len(vectors[name]) for name in _WINDOWS]
    if min(sizes) < least:
        skipped[EMBEDDING] = f"{sizes[0]} and {sizes[1]} vectors of one embedder, {least} needed"
    return values, skipped


def _tested(
    context: StageContext,
    values: Values,
    reference: list[Row],
    current: list[Row],
    vectors: dict[str, mmd.Vectors],
) -> tuple[bytes, dict[str, Any], dict[str, float]]:
    """Return the report as HTML and JSON, and the uncorrected p-value of every test."""
    shown = {name: ([*before], [*after]) for name, (before, after) in values.items()}
    p_values = {}
    least = context.settings.drift_min_requests
    body: dict[str, Any] = {}
    if min(len(side) for side in vectors.values()) >= least:
        outcome = mmd.two_sample(vectors["reference"], vectors["current"])
        p_values[EMBEDDING] = outcome.p_value
        body["question_embedding"] = {"mmd2": outcome.statistic, "p_value": outcome.p_value, "seed": mmd.SEED}
        body["question_embedding"] |= {"permutations": mmd.PERMUTATIONS, "features": 2 * mmd.FEATURES}
        shown["question_novelty"] = (
            mmd.novelty(vectors["reference"], vectors["reference"], same=True).tolist(),
            mmd.novelty(vectors["reference"], vectors["current"]).tolist(),
        )
    shares = [figure.name for figure in FIGURES if figure.change == "share" and figure.name in shown]
    numbers = [name for name in shown if name not in shares]
    sides = [_padded({name: pair[side] for name, pair in shown.items()}) for side in (0, 1)]
    found = evidently_report(sides[0], sides[1], numbers, shares, context.settings.drift_alpha)
    p_values |= {name: found.p_values[name] for name in values}
    return found.html, body | {"evidently": found.json}, p_values


def _padded(side: dict[str, list[float]]) -> dict[str, list[float | None]]:
    """Return columns of one length; Evidently leaves the missing values out."""
    rows = max(len(values) for values in side.values())
    return {name: [*values, *([None] * (rows - len(values)))] for name, values in side.items()}


def _judge(
    values: Values,
    p_values: dict[str, float],
    alpha: float,
    vectors: dict[str, mmd.Vectors],
) -> dict[str, Test]:
    """Return every test with its corrected p-value and whether the figure drifted."""
    adjusted = mmd.holm(p_values)
    tests = {}
    figures: dict[str, Figure] = {figure.name: figure for figure in FIGURES}
    for name, p_value in sorted(p_values.items()):
        significant = adjusted[name] < alpha
        if name == EMBEDDING:
            before_rows, after_rows = (len(vectors[window]) for window in _WINDOWS)
            tests[name] = Test(
                name, p_value, adjusted[name], before_rows, after_rows, None, None, 0.0, 0.0, significant
            )
            continue
        figure, (before, after) = figures[name], values[name]
        levels = level(figure, before), level(figure, after)
        moved = change(figure, *levels)
        drifted = significant and matters(figure, moved)
        tests[name] = Test(
            name, p_value, adjusted[name], len(before), len(after), *levels, moved, figure.least, drifted
        )
    return tests


def _new_topics(vectors: dict[str, mmd.Vectors], current: list[Row]) -> list[str]:
    """Return the current questions furthest from all earlier ones."""
    questions = {row["vector"]: str(row["question"]) for row in current if row["vector"] is not None}
    return [questions[position][:200] for position in mmd.furthest(vectors["reference"], vectors["current"], EXAMPLES)]


def _track(context: StageContext, outputs: dict[str, Artifact], tests: dict[str, Test]) -> dict[str, str]:
    """Attach the reports to an MLflow run; return its id and address."""
    with tracking.answering(context.settings) as client:
        name = f"{context.run.rsplit('/', 1)[-1]} {context.stage}"
        run_id = tracking.run_for(client, name, {"millrace.run": context.run}, EXPERIMENT)
        for test in tests.values():
            client.log_metric(run_id, f"{test.name}_p_adjusted", test.p_adjusted)
            client.log_metric(run_id, f"{test.name}_drifted", float(test.drifted))
        for output, artifact in outputs.items():
            body = context.storage.get(artifact)
            text = body.decode() if output.endswith(".html") else json.dumps(json.loads(body), indent=1)
            client.log_text(run_id, text, output)
        client.set_terminated(run_id)
        experiment = client.get_run(run_id).info.experiment_id
    url = f"{context.settings.mlflow_tracking_uri.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"
    return {"mlflow_run_id": run_id, "mlflow_url": url}


def _record(context: StageContext, result: dict[str, Any], report_uri: str, reference: int, current: int) -> int:
    """Write the row of `drift_windows` (a repeated run replaces its own) and return its id."""
    windows = context.inputs["collect_requests"].facts["windows"]
    with connect(context.settings.database_url.get_secret_value(), vectors=False) as connection:
        row = connection.execute(
            "INSERT INTO drift_windows (run, reference_from, reference_to, reference_rows, current_from, current_to, "
            "current_rows, metrics, report_uri) VALUES (%s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s) "
            "ON CONFLICT (run) DO UPDATE SET metrics = excluded.metrics, report_uri = excluded.report_uri, "
            "reference_rows = excluded.reference_rows, current_rows = excluded.current_rows RETURNING id",
            (
                context.run,
                windows["reference"]["from"],
                windows["reference"]["to"],
                reference,
                windows["current"]["from"],
                windows["current"]["to"],
                current,
                json.dumps(result),
                report_uri,
            ),
        ).fetchone()
    assert row is not None  # INSERT ... RETURNING gives a row or raises
    return int(row["id"])


STAGE = Stage("report_drift", Options, run, needs=("collect_requests",))
