"""What a check found, as a line for people, as JSON, and as the exit code of the command.

Reads the environment only to know which values must not be shown. Writes nothing. An error's text is the
one of `tasks.errors` ("expected ..., found ... Next: ..."); no finding ever shows a password or a key.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tasks.errors import BadInput, MillraceError, TryAgain
from tasks.observability.redaction import hidden

Status = Literal["ok", "mend", "skip"]
BUG, MEND, AWAY = MillraceError.exit_code, BadInput.exit_code, TryAgain.exit_code


@dataclass(frozen=True)
class Finding:
    """One line: `skip` was not checked, and `found` says why. `code` is 0, 2 (mend), 75 (no answer) or 1 (a bug)."""

    check: str
    status: Status
    found: str
    next: str = ""
    code: int = 0
    seconds: float = 0.0


def ok(check: str, found: str) -> Finding:
    """Return the finding of a check that passed."""
    return Finding(check, "ok", found)


def skip(check: str, reason: str) -> Finding:
    """Return the finding of a check that could not be made here."""
    return Finding(check, "skip", f"not checked: {reason}")


def mend(check: str, error: MillraceError) -> Finding:
    """Return the finding of a check that failed; the next step is what the text says after `Next:`."""
    found, _, step = " ".join(str(error).split()).partition(" Next: ")
    return Finding(check, "mend", found, step, error.exit_code)


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 0, 2 where something is to be mended, 1 for a bug, 75 where only a service did not answer."""
    codes = {finding.code for finding in findings}
    return next((code for code in (MEND, BUG, AWAY) if code in codes), 0)


def without_secrets(finding: Finding, environment: Mapping[str, str] | None = None) -> Finding:
    """Return the finding with every password and key of the environment blotted out."""
    return replace(finding, found=hidden(finding.found, environment), next=hidden(finding.next, environment))


def as_text(findings: Sequence[Finding]) -> str:
    """Return one line a finding, and a last one that counts them."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        step = f" Next: {finding.next}" if finding.next else ""
        lines.append(f"{finding.status:<4}  {finding.check:<{width}}  {finding.found}{step}")
    return "\n".join([*lines, counted(findings)])


def counted(findings: Sequence[Finding]) -> str:
    """Return `9 ok, 1 to mend, 2 not checked`; what did not answer is counted apart."""
    counts = {
        "ok": sum(finding.status == "ok" for finding in findings),
        "to mend": sum(finding.status == "mend" and finding.code != AWAY for finding in findings),
        "without an answer": sum(finding.code == AWAY for finding in findings),
        "not checked": sum(finding.status == "skip" for finding in findings),
    }
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count or word == "ok")


def as_json(findings: Sequence[Finding], **facts: Any) -> str:
    """Return one line of JSON: `exit_code`, the facts, and `findings`."""
    return json.dumps({"exit_code": exit_code(findings), **facts, "findings": [asdict(each) for each in findings]})


def from_json(text: str) -> tuple[dict[str, Any], list[Finding]] | None:
    """Return facts and findings of the last line that `as_json` wrote, or None where there is none."""
    for line in reversed(text.splitlines()):
        if line.startswith('{"exit_code"'):
            facts = json.loads(line)
            return facts, [Finding(**each) for each in facts.pop("findings")]
    return None
