"""`python -m tasks STAGE --run RUN_URI [--part PART] [--option value ...]`: how every launcher starts a stage.

`python -m tasks TOOL ...` starts a tool (`migrate`, `serve`, `search`, ...). `python -m tasks` lists all.
Exit codes: 0 complete, 2 bad input or settings, 3 a gate said no, 75 try again, else a bug.
The last line on stdout is the reference of the manifest, as JSON; the log goes to stderr.
"""

import json
import logging
import sys
from typing import Any

from tasks.errors import MillraceError, OptionError
from tasks.registry import STAGES, TOOLS, load_stage, load_tool
from tasks.stage import Stage, run_stage

GATE_REFUSED = 3


def main(arguments: list[str]) -> int:
    """Run a stage or tool; return the exit code."""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        force=True,
    )
    for noisy in ("botocore", "boto3", "urllib3", "httpx", "s3transfer"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(f"{__doc__}\nStages: {', '.join(STAGES)}\nTools: {', '.join(TOOLS)}")
        return 0
    name, rest = arguments[0], arguments[1:]
    try:
        if name in TOOLS:
            return load_tool(name)(rest)
        return _run(name, rest)
    except MillraceError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code


def _run(name: str, rest: list[str]) -> int:
    from tasks.settings import settings

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
    manifest = run_stage(stage, settings(), run.rstrip("/"), part, given)
    print(json.dumps(manifest.reference(), sort_keys=True))
    if manifest.status == "refused":
        print(f"GateRefused: {manifest.reason}", file=sys.stderr)
        return GATE_REFUSED
    return 0


def parse_options(arguments: list[str]) -> dict[str, str]:
    """Return `--a-b value --c=value` as {"a_b": "value", "c": "value"}. Raises OptionError."""
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or len(flag) == 2:
            raise OptionError(f"expected --option value, found {flag!r}. Next: python -m tasks STAGE --help")
        name, equals, value = flag[2:].partition("=")
        if not equals:
            if not rest:
                raise OptionError(f"expected a value after {flag}, found the end of the command. Next: add it.")
            value = rest.pop(0)
        name = name.replace("-", "_")
        if name in options:
            raise OptionError(f"expected --{name} once, found it twice. Next: keep one.")
        options[name] = value
    return options


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
