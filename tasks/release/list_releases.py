"""List the earlier releases that could be restored, for the form of the DAG roll_back.

Reads the ledger, the newest MILLRACE_KEEP_RELEASES rows (older ones may have lost their index version to housekeeping) and
at most 30, and which of their index versions are retired. Writes no object; the list is in the facts: a table in Markdown, and one choice
for each release that answers differently from the live one. With the option `release` nothing is asked: `choose` is false.
Refuses (a result) when there is nothing to go back to. Whether every byte is there still is proven by `roll_back` itself.
"""

from dataclasses import dataclass

from pydantic import Field

from tasks.database import Connection
from tasks.release import ledger as releases
from tasks.release.ledger import Release, ledger
from tasks.settings import Settings
from tasks.stage import Stage, StageContext, StageOptions, StageResult

_REASON = 60
_MOST = 30  # the list goes through XCom, which has a limit
_HEAD = ("release", "when (UTC)", "kind", "model", "index", "who", "why", "")


class Options(StageOptions):
    """Which release is wanted already; 0: a person chooses one."""

    release: int = Field(default=0, ge=0, description="Release to restore; 0: one is chosen in the form")


@dataclass(frozen=True)
class Choice:
    """An earlier release, and why it cannot be chosen (empty: it can)."""

    release: Release
    obstacle: str

    @property
    def label(self) -> str:
        """One line for the list of the form."""
        r = self.release
        return (
            f"{r.release}: {r.created_at:%Y-%m-%d %H:%M}, {r.kind}, {r.model_name} {r.model_version}, "
            f"index {r.index_version}, by {r.approved_by}: {_short(r.reason)}"
        )


def run(context: StageContext, options: Options) -> StageResult:
    """List what could be restored."""
    with ledger(context.settings) as connection:
        live = releases.live(connection)
        choices = earlier(connection, live, context.settings) if live else []
    possible = [choice for choice in choices if not choice.obstacle]
    if not possible and not options.release:
        reason = "there is no earlier release that answers differently and whose index version is kept"
        return StageResult(status="refused", reason=reason, facts={"choose": False})
    return StageResult(
        counts={"releases": len(choices), "possible": len(possible)},
        facts={
            "choose": not options.release,
            "live": live.release if live else None,
            "body": markdown(live, choices) if live else "",
            "choices": {str(choice.release.release): choice.label for choice in possible},
        },
    )


def earlier(connection: Connection, live: Release, settings: Settings) -> list[Choice]:
    """Return the releases before the live one, newest first, each with what stands against it."""
    found = [
        release for release in releases.history(connection, min(settings.keep_releases, _MOST) + 1) if release != live
    ]
    rows = connection.execute(
        "SELECT version FROM index_versions WHERE status = 'retired' AND version = ANY(%s)",
        ([release.index_version for release in found],),
    )
    retired = {row["version"] for row in rows}
    return [Choice(release, _obstacle(release, live, retired)) for release in found]


def markdown(live: Release, choices: list[Choice]) -> str:
    """Return the table that the form shows: the live release, then the earlier ones."""
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + " --- |" * len(_HEAD), _line(live, "live")]
    lines += [_line(choice.release, choice.obstacle) for choice in choices]
    return "\n".join([*lines, "", "Every byte of the chosen release is verified before it answers again.", ""])


def _obstacle(release: Release, live: Release, retired: set[int]) -> str:
    if release.answers_like(live):
        return "answers like the live one"
    return "its index version was retired" if release.index_version in retired else ""


def _line(release: Release, remark: str) -> str:
    kind = f"rollback to {release.restores}" if release.restores else release.kind
    cells = (
        str(release.release), f"{release.created_at:%Y-%m-%d %H:%M}", kind, f"{release.model_name} {release.model_version}",
        str(release.index_version), release.approved_by, _short(release.reason), remark,
    )  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _REASON else line[: _REASON - 3] + "..."


STAGE = Stage("list_releases", Options, run, fleeting=True)
