"""The stage `preflight`: the short form of the doctor, first in a DAG whose work is expensive.

Reads the services and models that later stages need, from where they run; writes `report.json`. Fails with
SettingsError (do not retry) where something is to be mended, and ServiceUnavailable (try again) where a service
does not answer; the text has every line. It is true for the moment only, so an earlier manifest never stands.
"""

from dataclasses import asdict

from tasks.doctor.command import SHORT
from tasks.doctor.examine import Wanted, examine
from tasks.doctor.report import AWAY, MEND, as_text, counted, exit_code
from tasks.errors import MillraceError, ServiceUnavailable, SettingsError
from tasks.stage import Stage, StageContext, StageOptions, StageResult, log


class Options(StageOptions):
    """What is asked for."""

    free_gb: float = Wanted.free_gb


def run(context: StageContext, options: Options) -> StageResult:
    """Check what later stages need: `python -m tasks doctor --short` as a stage."""
    findings = examine(SHORT, context.settings, Wanted(free_gb=options.free_gb))
    for line in as_text(findings).splitlines():
        log.info("preflight %s", line)
    if code := exit_code(findings):
        bad = [finding for finding in findings if finding.code]
        text = f"expected everything a run needs, found {counted(findings)}:\n{as_text(bad)}"
        kind = {MEND: SettingsError, AWAY: ServiceUnavailable}.get(code, MillraceError)
        raise kind(f"{text}\nNext: see each line.")
    report = context.storage.put_json(f"{context.folder}/report.json", [asdict(finding) for finding in findings])
    skipped = sum(finding.status == "skip" for finding in findings)
    return StageResult(outputs={"report": report}, counts={"ok": len(findings) - skipped, "not_checked": skipped})


STAGE = Stage("preflight", Options, run, fleeting=True)
