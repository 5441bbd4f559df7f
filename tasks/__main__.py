"""`python -m tasks STAGE --run RUN_URI [--part PART] [--option value ...]`: how every launcher starts a stage.

`python -m tasks TOOL ...` starts a tool (`migrate`, `serve`, `search`, ...). `python -m tasks` lists all.
Exit codes: 0 complete, 2 bad input or settings, 3 a gate said no, 75 try again, else a bug.
The last line on stdout is the reference of the manifest, as JSON; the log goes to stderr (`tasks.observability.logs`).
Every try of a stage is a row of `stage_runs`, and so is every run of the tools in RECORDED.
"""

import json
import logging
import os
import sys
from typing import Any

from tasks.errors import MillraceError, OptionError
from tasks.observability import logs, trace
from tasks.observability.redaction import hidden
from tasks.observability.stage_runs import Attempt, recorded
from tasks.options import parse_options
from tasks.registry import STAGES, TOOLS, load_stage, load_tool
from tasks.settings import Settings, settings
from tasks.stage import Stage, run_stage

log = logging.getLogger(__name__)

GATE_REFUSED = 3
# Tools whose last success is watched like that of a stage.
RECORDED = ("backup",)


def main(arguments: list[str]) -> int:
    """Run a stage or tool; return the exit code."""
    logs.configure()
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(f"{__doc__}\nStages: {', '.join(STAGES)}\nTools: {', '.join(TOOLS)}")
        return 0
    name, rest = arguments[0].replace("-", "_"), arguments[1:]
    try:
        if name in RECORDED and name in TOOLS:
            return _run_recorded(name, rest)
        if name in TOOLS:
            return load_tool(name)(rest)
        return _run(name, rest)
    except MillraceError as error:
        _say(f"{type(error).__name__}: {error}", logging.ERROR)
        return error.exit_code


def _say(text: str, level: int) -> None:
    """Tell how a command ended: as a line of the log where that is JSON, else as it is."""
    if logs.is_json():
        log.log(level, "%s", text)
    else:
        print(hidden(text), file=sys.stderr)


def _run_recorded(name: str, rest: list[str]) -> int:
    """Run a tool whose runs are recorded. Its run is its own name: it belongs to no DAG run."""
    attempt = _attempt(name, f"tool/{name}", None)
    with recorded(_database(settings()), attempt):
        attempt.exit_code = load_tool(name)(rest)
    return attempt.exit_code


def _attempt(name: str, run: str, part: str | None) -> Attempt:
    """Return the try that begins, after putting its ids into every line of the log."""
    place, given = trace.of_stage(run, os.environ), trace.baggage(os.environ)
    dag_id, run_id = trace.names_of(run)
    number = int(given["try_number"]) if given.get("try_number", "").isdecimal() else None
    logs.about(
        dag_id=dag_id or None, run_id=run_id, task_id=given.get("task_id"), stage=name, part=part,
        trace_id=place.trace_id, span_id=place.span_id, **{"try": number},
    )  # fmt: skip
    return Attempt(run, name, part, number, place)


def _database(configured: Settings) -> str:
    return configured.database_url.get_secret_value()


def _run(name: str, rest: list[str]) -> int:
    stage = load_stage(name)
    if rest in (["-h"], ["--help"]):
        print(_help(stage))
        return 0
    given = parse_options(rest)
    run, part = given.pop("run", ""), given.pop("part", None)
    if not run.startswith("s3://"):
        raise OptionError(
            f"expected --run s3://BUCKET/runs/DAG_ID/RUN_ID, found {run!r}. Next: python -m tasks {name} --help"
        )
    run = run.rstrip("/")
    attempt, configured = _attempt(name, run, part), settings()
    with recorded(_database(configured), attempt):
        manifest = run_stage(stage, configured, run, part, given)
        attempt.ended_with(manifest)
    print(json.dumps(manifest.reference(), sort_keys=True))
    if manifest.status == "refused":
        _say(f"GateRefused: {manifest.reason}", logging.WARNING)
        return GATE_REFUSED
    return 0


def _help(stage: Stage[Any]) -> str:
    lines = [f"python -m tasks {stage.name} --run RUN_URI [--part PART]", stage.run.__doc__ or "", "Options:"]
    for name, definition in stage.options.model_fields.items():
        extra = definition.json_schema_extra
        origin = (
            f"setting MILLRACE_{str(extra['setting']).upper()}"
            if isinstance(extra, dict)
            else f"default {definition.default!r}"
        )
        lines.append(f"  --{name.replace('_', '-')}  {definition.description or ''} ({origin})")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
