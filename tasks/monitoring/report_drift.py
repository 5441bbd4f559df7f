"""Compare the two windows of collect_requests, and write the reports.

Every figure (`tasks.monitoring.figures`) is tested by Evidently, the questions' vectors by `tasks.monitoring.mmd`; the
p-values are corrected for their number (`compare`). Looks for topics that appeared or grew, and asks the golden questions of
the live index again. Writes `report.html` and `report.json` (Evidently's), `summary.html` (ours: what moved, the topics,
example questions, redacted) and `tests.json`, here and to an MLflow run of the experiment `millrace-drift`, and one row of
`drift_windows`. Windows below `MILLRACE_DRIFT_MIN_REQUESTS` are recorded and not judged.
"""

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy

from tasks import tracking
from tasks.contracts import Artifact
from tasks.database import connect
from tasks.monitoring import examples, golden, mmd
from tasks.monitoring.compare import Compared, compare
from tasks.monitoring.corpus import index_age
from tasks.monitoring.evidently_report import ColumnReport
from tasks.monitoring.evidently_report import report as evidently_report
from tasks.monitoring.figures import EMBEDDING, SHARES, Pairs, Test
from tasks.monitoring.summary_page import page
from tasks.monitoring.topics import Topics, topics
from tasks.monitoring.window import Window
from tasks.stage import Stage, StageContext, StageOptions, StageResult

EXPERIMENT = "millrace-drift"
_WINDOWS = ("reference", "current")
_SHOWN_VECTORS = 5_000


class Options(StageOptions):
    """No options: levels and sizes are settings."""


@dataclass
class Report:
    """What was found in windows that are large enough."""

    compared: Compared
    evidently: ColumnReport
    topics: Topics | None
    shown: list[dict[str, Any]] = field(default_factory=list)
    """The topics as people see them: shares, and example questions, redacted."""


def run(context: StageContext, options: Options) -> StageResult:
    """Compare the windows, write the reports, and record them."""
    reference, current = (
        Window.from_bytes(context.storage.get(context.input("collect_requests", n))) for n in _WINDOWS
    )
    least = context.settings.drift_min_requests
    report = _reported(context, reference, current) if min(len(reference), len(current)) >= least else None
    with connect(context.settings.database_url.get_secret_value()) as connection:
        asked = golden.ask(context.settings, context.storage, connection)
        age = index_age(connection)
    result = _result(context, report, asked, least) | {"index_age_days": age}
    counts = {name: len(side) for name, side in zip(_WINDOWS, (reference, current), strict=True)}
    outputs = _written(context, report, result, counts)
    facts = _track(context, outputs, report.compared.tests if report else {})
    window = _record(context, result, outputs["tests.json"].uri, counts)
    tests = report.compared.tests if report else {}
    return StageResult(
        outputs=outputs,
        counts={**counts, "tests": len(tests), "drifted": len(result["drifted"])},
        metrics={f"golden_{name}": value for name, value in asked.now.items()},
        facts=facts
        | result
        | {
            "window": window,
            "report_uri": outputs["summary.html"].uri if report else None,
            "new_topics": [question for topic in result["topics"] for question in topic["examples"][:1]],
            "p_values": {name: test.to_dict()["p_adjusted"] for name, test in tests.items()},
        },
    )


def _reported(context: StageContext, reference: Window, current: Window) -> Report:
    """Compare, with the p-values of Evidently's report, and find the topics that changed."""
    made: list[ColumnReport] = []
    alpha, least = context.settings.drift_alpha, context.settings.drift_min_requests
    vectors = min(len(reference.vectors), len(current.vectors)) >= least

    def tested(found: Pairs) -> dict[str, float]:
        """Test by Evidently; the first report, of the whole windows, is the one that is kept."""
        shown = dict(found)
        if vectors and not made:
            shown["question_novelty"] = _novelty(reference, current)
        columns = [_padded({name: pair[side].tolist() for name, pair in shown.items()}) for side in (0, 1)]
        shares = [name for name in shown if name in SHARES]
        numbers = [name for name in shown if name not in SHARES]
        made.append(evidently_report(columns[0], columns[1], numbers, shares, alpha))
        return {name: made[-1].p_values[name] for name in found}

    compared = compare(reference, current, alpha=alpha, least=least, tester=tested)
    if not vectors:
        return Report(compared, made[0], None)
    found = topics(reference.vectors, current.vectors)
    return Report(compared, made[0], found, _shown(context, current, found))


def _novelty(reference: Window, current: Window) -> tuple[Any, Any]:
    """Return how far questions of both windows are from the reference's; of at most so many, as all pairs are looked at."""
    step = [max(1, -(-len(side.vectors) // _SHOWN_VECTORS)) for side in (reference, current)]
    before, after = reference.vectors[:: step[0]], current.vectors[:: step[1]]
    return mmd.novelty(before, before, same=True), mmd.novelty(before, after)


def _padded(side: dict[str, list[float]]) -> dict[str, list[float | None]]:
    """Return columns of one length; Evidently leaves the missing values out."""
    rows = max((len(values) for values in side.values()), default=0)
    return {name: [*values, *([None] * (rows - len(values)))] for name, values in side.items()}


def _shown(context: StageContext, current: Window, found: Topics) -> list[dict[str, Any]]:
    """Return the topics with their questions, as they may be shown."""
    ids = current.ids[numpy.argsort(numpy.where(current.vector < 0, len(current.ids), current.vector), kind="stable")]
    with connect(context.settings.database_url.get_secret_value()) as connection:
        return [
            {
                "kind": topic.kind,
                "before": round(topic.before, 4),
                "now": round(topic.now, 4),
                "examples": examples.shown(connection, [str(ids[position]) for position in topic.examples]),
            }
            for topic in found.changed
        ]


def _result(context: StageContext, report: Report | None, asked: golden.Golden, least: int) -> dict[str, Any]:
    """Return what was found as a JSON value: `tests.json`, and what `decide` reads."""
    compared = report.compared if report else Compared({}, {})
    judged = compared.judged
    collected = context.inputs["collect_requests"].facts
    rate = None
    if report:
        spans = [_hours(collected["windows"][name]) for name in _WINDOWS]
        totals = [context.inputs["collect_requests"].counts[f"{name}_total"] for name in _WINDOWS]
        rate = (totals[1] / spans[1]) / (totals[0] / spans[0]) if min(spans) >= 1 else None
    return {
        "enough": report is not None,
        "least_requests": least,
        "drifted": sorted(name for name, test in judged.items() if test.drifted),
        "harm": compared.lasting,
        "tests": {name: test.to_dict() for name, test in judged.items()},
        "not_tested": compared.skipped,
        "surges": {name: round(share, 4) for name, share in compared.surges.items()},
        "set_aside": compared.set_aside if compared.without else 0,
        "explained": sorted({*compared.harm} - {*compared.lasting}),
        "rate": round(rate, 3) if rate is not None else None,
        "topics": report.shown if report else [],
        "topics_moved": round(report.topics.moved, 4) if report and report.topics else None,
        "golden": {"now": asked.now, "then": asked.then, "problem": asked.problem},
        "golden_fell": asked.fell(context.settings.retrieval_margin),
    }


def _hours(span: dict[str, Any]) -> float:
    if span["from"] is None:
        return 0.0
    return (datetime.fromisoformat(span["to"]) - datetime.fromisoformat(span["from"])).total_seconds() / 3600


def _written(
    context: StageContext, report: Report | None, result: dict[str, Any], counts: dict[str, int]
) -> dict[str, Artifact]:
    def put(name: str, body: bytes) -> Artifact:
        return context.storage.put_bytes(f"{context.folder}/{name}", body, content_type="text/html")

    outputs = {"tests.json": context.storage.put_json(f"{context.folder}/tests.json", result)}
    if report:
        body = {"evidently": report.evidently.json, "p_values": report.evidently.p_values}
        if test := report.compared.tests.get(EMBEDDING):
            body[EMBEDDING] = {"p_value": test.p_value, "seed": mmd.SEED, "permutations": mmd.PERMUTATIONS}
        outputs["report.json"] = context.storage.put_json(f"{context.folder}/report.json", body)
        outputs["report.html"] = put("report.html", report.evidently.html)
        outputs["summary.html"] = put("summary.html", page(context.run, result, counts))
    return outputs


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
    url = (
        f"{tracking.public(context.settings.mlflow_tracking_uri).rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"
    )
    return {"mlflow_run_id": run_id, "mlflow_url": url}


def _record(context: StageContext, result: dict[str, Any], report_uri: str, counts: dict[str, int]) -> int:
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
                counts["reference"],
                windows["current"]["from"],
                windows["current"]["to"],
                counts["current"],
                json.dumps(result),
                report_uri,
            ),
        ).fetchone()
    assert row is not None  # INSERT ... RETURNING gives a row or raises
    return int(row["id"])


STAGE = Stage("report_drift", Options, run, needs=("collect_requests",))
