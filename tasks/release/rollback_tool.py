"""`python -m tasks rollback --to N --reason TEXT [--by WHO]`: go back to an earlier release, without Airflow.

Runs the stage `roll_back`, as the DAG does, in a run folder of its own (`s3://BUCKET/runs/roll_back/manual__...`): the same
proofs, the same row of the ledger, the same mirror in MLflow, a manifest, and a row of `stage_runs`. Who is recorded is
`--by`, else the user of this machine. Fails as the stage does; the live release stays then.
"""

import getpass
import os
import secrets
from datetime import UTC, datetime

from tasks.contracts import Manifest
from tasks.errors import OptionError
from tasks.observability.stage_runs import Attempt, recorded
from tasks.observability.trace import of_stage
from tasks.options import parse_options, require_words
from tasks.release.plain import plain
from tasks.release.releases_tool import number_of
from tasks.release.roll_back import STAGE
from tasks.settings import Settings
from tasks.stage import run_stage

USAGE = "python -m tasks rollback --to N --reason TEXT [--by WHO]"


def roll_back(settings: Settings, release: int, reason: str, by: str) -> Manifest:
    """Restore a release in a new run folder; return the manifest. Raises what the stage raises."""
    moment = f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}"
    run = f"s3://{settings.s3_bucket}/runs/roll_back/manual__{moment}-{secrets.token_hex(4)}"
    attempt = Attempt(run, STAGE.name, None, None, of_stage(run, os.environ))
    with recorded(settings.database_url.get_secret_value(), attempt):
        manifest = run_stage(STAGE, settings, run, None, {"release": str(release), "reason": reason, "approved_by": by})
        attempt.ended_with(manifest)
    return manifest


def user() -> str:
    """Return the user of this machine; a number where it has no name, as in some pods."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def main(arguments: list[str]) -> int:
    """Restore the release that is named."""
    from tasks.settings import settings

    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    given = parse_options(arguments)
    target = number_of(given.get("to"), "to")
    if target is None or set(given) - {"to", "reason", "by"}:
        raise OptionError(f"expected {USAGE}, found {' '.join(arguments)}. Next: correct the command.")
    require_words("rollback", given, "reason")
    made = roll_back(settings(), target, given["reason"].strip(), given.get("by", "").strip() or user())
    facts = made.facts
    print(
        f"release {facts['release']} is live: it restores release {target} (model {plain(facts['model_name'])} "
        f"{plain(facts['model_version'])}, index version {facts['index_version']}), as {plain(facts['approved_by'])} said"
    )
    if facts["mirror_problem"]:
        print(f"MLflow does not show it yet; the next stage of a release tries again: {plain(facts['mirror_problem'])}")
    print(f"manifest {made.uri}")
    return 0
