"""Go back to an earlier release: a new row of the ledger with that release's parts.

Reads the ledger, the kept evidence and every byte of the earlier weights, its prompt, and the chunks of its index
version. Writes one row of kind `rollback`, then mirrors it into MLflow. `release` 0 means the newest
earlier release that answers differently. Repeated in its run it returns the release
that it made, while that is live. Fails with `ReleaseError` when the release is unknown, is live, or another than the run restored,
and with `PartGone`, which names the releases that can be restored, when its index version was retired or bytes are gone.
"""

from pydantic import Field

from tasks.database import Connection
from tasks.errors import ReleaseError
from tasks.release import ledger as releases
from tasks.release.approval import NAME, REASON
from tasks.release.ledger import Release, ledger
from tasks.release.mirror import reconcile_mirrors
from tasks.release.parts import require_whole
from tasks.release.promote import release_result
from tasks.release.signing import seal
from tasks.stage import Stage, StageContext, StageOptions, StageResult


class Options(StageOptions):
    """Which release to restore, who says so, and why."""

    release: int = Field(default=0, ge=0, description="Release to restore; 0: the one before the live one")
    reason: str = Field(min_length=1, max_length=REASON, description="Why; kept in the ledger")
    approved_by: str = Field(min_length=1, max_length=NAME, description="Who; kept in the ledger")


def run(context: StageContext, options: Options) -> StageResult:
    """Restore an earlier release after verifying that all its parts are still there."""
    with ledger(context.settings) as connection:
        releases.lock(connection)
        made = releases.by_run(connection, context.run)
        if made is not None:
            _require_asked_for(made, options, releases.live(connection))
        restored = made or _restore(context, connection, options)
    # The row comes first, and MLflow is asked once: one that is away or hangs must not hold up the way back.
    return release_result(restored, reconcile_mirrors(context.settings, once=True), again=made is not None)


def _restore(context: StageContext, connection: Connection, options: Options) -> Release:
    live = releases.live(connection)
    if live is None:
        raise ReleaseError("expected a live release to go back from, found none. Next: release a candidate first.")
    target = releases.get(connection, options.release) if options.release else releases.before(connection, live)
    if target is None:
        raise ReleaseError(
            f"expected a release before {live.release} that answers differently, found none. Next: name one by --release."
        )
    if target.answers_like(live):
        raise ReleaseError(
            f"expected an earlier release, found that release {live.release}, which is live, answers with the same model, "
            f"prompt and index version as release {target.release}. Next: choose another one."
        )
    require_whole(connection, context.storage, target, live)
    release = releases.append(
        connection,
        target.parts(),
        kind="rollback",
        approved_by=options.approved_by,
        reason=options.reason,
        run=context.run,
        expected_live=live.release,
        restores=target.release,
    )
    return seal(context.settings, context.storage, connection, release, by="roll_back", source=target)


def _require_asked_for(made: Release, options: Options, live: Release | None) -> None:
    """A run that restored one release must not report it as another, nor as live when it is not. Raises ReleaseError."""
    if options.release not in (0, made.restores) or live is None or live.release != made.release:
        raise ReleaseError(
            f"expected this run to restore release {options.release or 'before the live one'}, found that it made release "
            f"{made.release}, which restores {made.restores}; live is release {live.release if live else 'none'}. "
            "Next: trigger a new run (at a shell: python -m tasks rollback --to N)."
        )


# Fleeting: whether an earlier release answers is asked of the ledger, not of a manifest.
STAGE = Stage("roll_back", Options, run, fleeting=True)
