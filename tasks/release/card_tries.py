"""The tries of a run's stages that ended without a manifest, for the cost on its model card.

Reads `stage_runs`, where every try of a stage has a row: a try that was killed has one without an end, and nobody knows its
seconds. Writes nothing. A database that is away costs the card this line only, and the card says so.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tasks.database import connect
from tasks.errors import GateRefused, ServiceUnavailable
from tasks.stage import StageContext

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tries:
    """Tries of one stage that failed or were preempted, their seconds of the clock, and tries that never told an end."""

    failed: int
    seconds: float
    killed: int


def failed_tries(context: StageContext, stages: Collection[str]) -> Mapping[str, Tries] | None:
    """Return the lost tries of these stages of the run, without stages that had none; None where the database is away."""
    try:
        with connect(context.settings.database_url.get_secret_value(), vectors=False) as connection:
            rows = connection.execute(
                "SELECT stage, count(exit_code) AS failed, count(*) - count(exit_code) AS killed, "
                "coalesce(sum(extract(epoch FROM ended_at - started_at)), 0) AS seconds FROM stage_runs "
                "WHERE run = %s AND stage = ANY(%s) AND (exit_code IS NULL OR exit_code <> ALL(%s)) GROUP BY stage",
                (context.run, list(stages), [0, GateRefused.exit_code]),
            ).fetchall()
    except ServiceUnavailable as error:
        log.warning("the failed tries of this run are not on the card: %s", error)
        return None
    return {row["stage"]: Tries(row["failed"], float(row["seconds"]), row["killed"]) for row in rows}
