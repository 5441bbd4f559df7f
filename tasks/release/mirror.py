"""Make MLflow's registry say what the ledger says.

The ledger decides what is live; MLflow shows it: alias `champion` on the live model version, alias
`previous` on the one before, and on every version that was ever live the tag `millrace.release` (the
newest release that names it). A version that went live is no `candidate` any more, until it is registered again:
what was rolled back is not proposed once more by itself. Reads `releases`, writes `release_mirrors`. A server that is away, or a
registry that lost a version, costs the mirror only: the row stays open, and the next release stage
tries again (`reconcile_mirrors` is the first thing each of them does).
"""

import logging
from dataclasses import dataclass
from typing import Any

from tasks import tracking
from tasks.database import Connection
from tasks.errors import ServiceUnavailable
from tasks.release.ledger import Release, before, get, ledger, live
from tasks.settings import Settings

log = logging.getLogger(__name__)

_LOCK = 0x4D697272  # spells "Mirr"
_ABSENT = "RESOURCE_DOES_NOT_EXIST"
CHAMPION, PREVIOUS, CANDIDATE = "champion", "previous", "candidate"


@dataclass(frozen=True)
class MirrorState:
    """Which releases were mirrored now, and the problem of those that were not."""

    mirrored: tuple[int, ...] = ()
    problem: str | None = None


def reconcile_mirrors(settings: Settings) -> MirrorState:
    """Mirror every release that MLflow does not show yet. A problem is logged and returned, not raised."""
    with ledger(settings) as connection:
        # One at a time, so that a slow mirror of an older release cannot overwrite a newer one.
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        rows = connection.execute(
            "SELECT release FROM releases WHERE release NOT IN (SELECT release FROM release_mirrors) ORDER BY release"
        ).fetchall()
        waiting = [get(connection, row["release"]) for row in rows]
        if not waiting:
            return MirrorState()
        problem = _mirror(settings, connection, waiting)
        if problem is not None:
            numbers = ", ".join(str(release.release) for release in waiting)
            log.warning("release=%s stands in the ledger, and not yet in MLflow: %s", numbers, problem)
            return MirrorState(problem=problem)
        for release in waiting:
            connection.execute(
                "INSERT INTO release_mirrors (release) VALUES (%s) ON CONFLICT DO NOTHING", (release.release,)
            )
    return MirrorState(mirrored=tuple(release.release for release in waiting))


def _mirror(settings: Settings, connection: Connection, waiting: list[Release]) -> str | None:
    from mlflow.exceptions import MlflowException

    now = live(connection)
    assert now is not None  # there are rows that wait
    try:
        with tracking.answering(settings) as client:
            for release in waiting:
                _tag(client, release)
            client.set_registered_model_alias(now.model_name, CHAMPION, now.model_version)
            _set_previous(client, now, _previous_model(connection, now))
            _end_candidacies(client, waiting)
            _clear_other_models(client, connection, now)
    except ServiceUnavailable as error:
        return str(error)
    except MlflowException as error:
        return f"expected MLflow to hold the released model versions, found {error.message}. Next: register them again."
    return None


def _tag(client: Any, release: Release) -> None:
    tags = {
        "millrace.release": str(release.release),
        "millrace.release_kind": release.kind,
        "millrace.index_version": str(release.index_version),
        "millrace.prompt_sha256": release.prompt_sha256,
        "millrace.approved_by": release.approved_by,
    }
    if release.prompt_version is not None:
        tags["millrace.prompt_version"] = release.prompt_version
    for name, value in tags.items():
        client.set_model_version_tag(release.model_name, release.model_version, name, value)


def _previous_model(connection: Connection, now: Release) -> Release | None:
    """Return the earlier release whose model differs, skipping those that changed only index or prompt."""
    found = before(connection, now)
    while found is not None and found.model_version == now.model_version:
        found = before(connection, found)
    return found


def _set_previous(client: Any, now: Release, previous: Release | None) -> None:
    if previous is not None and previous.model_name == now.model_name:
        client.set_registered_model_alias(now.model_name, PREVIOUS, previous.model_version)
    else:
        _remove(client, now.model_name, PREVIOUS)


def _end_candidacies(client: Any, released: list[Release]) -> None:
    for name in sorted({release.model_name for release in released}):
        found = _aliases(client, name).get(CANDIDATE)
        if found in {release.model_version for release in released if release.model_name == name}:
            client.delete_registered_model_alias(name, CANDIDATE)


def _clear_other_models(client: Any, connection: Connection, now: Release) -> None:
    """Where MILLRACE_MODEL_NAME was changed, the model of the earlier name is live no more."""
    from mlflow.exceptions import MlflowException

    rows = connection.execute("SELECT DISTINCT model_name FROM releases WHERE model_name <> %s", (now.model_name,))
    for name in sorted(row["model_name"] for row in rows):
        try:
            for alias in (CHAMPION, PREVIOUS):
                _remove(client, name, alias)
        except MlflowException as error:
            if error.error_code != _ABSENT:
                raise  # one that was deleted shows nothing wrong


def _remove(client: Any, name: str, alias: str) -> None:
    if alias in _aliases(client, name):
        client.delete_registered_model_alias(name, alias)


def _aliases(client: Any, name: str) -> dict[str, str]:
    found = client.get_registered_model(name).aliases
    return {alias: str(version) for alias, version in found.items()}
