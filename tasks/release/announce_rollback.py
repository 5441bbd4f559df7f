"""Tell people that an earlier release answers again: `announcement.md`, and a note to each channel that is set.

Reads the manifest of roll_back. Channels, retries and errors are those of `tasks.release.announce`.
"""

from tasks.contracts import Manifest
from tasks.release.announce import is_live, not_mirrored, note, tell
from tasks.release.channels import News
from tasks.stage import Stage, StageContext, StageOptions, StageResult


class Options(StageOptions):
    """No options."""


def run(context: StageContext, options: Options) -> StageResult:
    """Write the announcement of a rollback, and send it."""
    made = context.inputs["roll_back"]
    title = f"Rolled back to release {made.facts['restores']} (release {made.facts['release']})"
    return tell(context, News(title, announcement(made), note(made), made.run))


def announcement(made: Manifest) -> str:
    """Return the announcement: what answers again, and who went back to it and why."""
    facts = made.facts
    lines = [
        f"# Release {facts['release']}: back to release {facts['restores']}",
        "",
        *is_live(facts),
        f"Rolled back by {facts['approved_by']}: {facts['reason']}",
        *not_mirrored(facts),
    ]
    return "\n".join([*lines, ""])


STAGE = Stage("announce_rollback", Options, run, needs=("roll_back",))
