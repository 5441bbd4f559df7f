"""Make MLflow's registry say what the ledger says.

The ledger decides what is live; MLflow shows it: alias `champion` on the live model version, alias
`previous` on the one before, and on every version that was ever live the tag `millrace.release` (the
newest release that names it). A version that went live is no `candidate` any more, until it is registered again:
what was rolled back is not proposed once more by itself. Reads `releases`, writes `release_mirrors`. The aliases come
first and are compared at every start, so that one that was moved by hand is put back. A release whose version MLflow holds
no more is recorded as such, and holds up no other. A server that is away costs the mirror only: the row stays open, and
the next release stage tries again (`reconcile_mirrors`: `propose`, `register` and
`promote` begin with it, `roll_back` ends with it).
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from tasks import tracking
from tasks.database import Connection
from tasks.errors import ServiceUnavailable, SettingsError
from tasks.release.ledger import Release, before, get, ledger, live
from tasks.settings import Settings

log = logging.getLogger(__name__)

_LOCK = 0x4D697272  # spells "Mirr"
_ABSENT = "RESOURCE_DOES_NOT_EXIST"
_HOPELESS = {_ABSENT, "INVALID_PARAMETER_VALUE"}  # what MLflow says of one version, and would say again
CHAMPION, PREVIOUS, CANDIDATE = "champion", "previous", "candidate"


@dataclass(frozen=True)
class MirrorState:
    """Which releases were mirrored now, which cannot be shown, and why the live one is not shown (None: it is)."""

    mirrored: tuple[int, ...] = ()
    problem: str | None = None
    lost: tuple[int, ...] = ()


def reconcile_mirrors(settings: Settings, *, once: bool = False) -> MirrorState:
    """Make MLflow show the live release, and every one that it does not show yet. A problem is logged and returned, not raised.

    `once`: every request is tried once, and not for long. So it always is where nothing waits and this is only a look.
    """
    from mlflow.exceptions import MlflowException

    with ledger(settings) as connection:
        # One at a time, so that a slow mirror of an older release cannot overwrite a newer one.
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        now, waiting = live(connection), _waiting(connection)
        if now is None:
            return MirrorState()
        try:
            with (
                tracking.tried_once() if once or not waiting else nullcontext(),
                tracking.answering(settings) as client,
            ):
                return _Mirror(client, connection, now).show(waiting)
        except (ServiceUnavailable, SettingsError) as error:
            problem = str(error)
        except MlflowException as error:
            problem = f"expected MLflow to take aliases and tags, found {error.message}. Next: see its log."
        numbers = ", ".join(str(release.release) for release in waiting or [now])
        log.warning("release=%s stands in the ledger, and perhaps not in MLflow: %s", numbers, problem)
        return MirrorState(problem=problem)


def _waiting(connection: Connection) -> list[Release]:
    rows = connection.execute(
        "SELECT release FROM releases WHERE release NOT IN (SELECT release FROM release_mirrors) ORDER BY release"
    ).fetchall()
    return [get(connection, row["release"]) for row in rows]


@dataclass
class _Mirror:
    """One reconciliation. `problems` are those of releases that MLflow cannot show, by number."""

    client: Any
    connection: Connection
    now: Release
    problems: dict[int, str] = field(default_factory=dict)

    def show(self, waiting: list[Release]) -> MirrorState:
        if not waiting and self._right():
            return MirrorState()
        self._show_live()
        tried = waiting + self._lost_before()  # a registry that was restored holds them again
        for release in tried:
            self._try(release, lambda one: _tag(self.client, one))
        _end_candidacies(self.client, waiting)
        _clear_other_models(self.client, self.connection, self.now)
        done = tuple(one.release for one in tried if one.release not in self.problems)
        self._record(done)
        return MirrorState(done, self.problems.get(self.now.release), tuple(sorted(self.problems)))

    def _right(self) -> bool:
        """Say whether both aliases are as the ledger has them: one request."""
        found, previous = _aliases(self.client, self.now.model_name), self._previous()
        return (found.get(CHAMPION), found.get(PREVIOUS)) == (
            self.now.model_version,
            previous.model_version if previous else None,
        )

    def _show_live(self) -> None:
        name = self.now.model_name
        if not self._alias(self.now, CHAMPION):
            _remove(self.client, name, CHAMPION)  # better none than one that is not live
        while (previous := self._previous()) is not None:
            if self._alias(previous, PREVIOUS):
                return
        _remove(self.client, name, PREVIOUS)

    def _previous(self) -> Release | None:
        """Return the newest earlier release of another version that this model has, leaving out what MLflow lost."""
        lost = {(one.model_name, one.model_version) for one in self._lost()}
        found = _previous_model(self.connection, self.now)
        while found is not None and (found.model_name, found.model_version) in lost:
            found = _previous_model(self.connection, found, self.now)
        return found if found is not None and found.model_name == self.now.model_name else None

    def _alias(self, release: Release, alias: str) -> bool:
        return self._try(
            release,
            lambda one: self.client.set_registered_model_alias(one.model_name, alias, one.model_version),
        )

    def _try(self, release: Release, work: Callable[[Release], object]) -> bool:
        """Do something to a release's version; note why it cannot be done, where that is so for ever."""
        from mlflow.exceptions import MlflowException

        try:
            work(release)
        except MlflowException as error:
            if error.error_code not in _HOPELESS:
                raise
            self.problems[release.release] = (
                f"expected version {release.model_version} of {release.model_name} in MLflow, found: {error.message}. "
                "Next: restore MLflow's database, or leave it: what answers does not depend on it."
            )
            return False
        return True

    def _lost(self) -> list[Release]:
        return self._lost_before() + [get(self.connection, number) for number in self.problems]

    def _lost_before(self) -> list[Release]:
        rows = self.connection.execute("SELECT release FROM release_mirrors WHERE problem IS NOT NULL ORDER BY release")
        return [get(self.connection, row["release"]) for row in rows.fetchall()]

    def _record(self, done: tuple[int, ...]) -> None:
        told: dict[int, str | None] = {**dict.fromkeys(done), **self.problems}
        for number, problem in told.items():
            if problem is not None:
                log.warning("release=%s stands in the ledger, and MLflow cannot show it: %s", number, problem)
            self.connection.execute(
                "INSERT INTO release_mirrors (release, problem) VALUES (%s, %s) "
                "ON CONFLICT (release) DO UPDATE SET problem = excluded.problem, mirrored_at = now()",
                (number, problem),
            )


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


def _previous_model(connection: Connection, release: Release, now: Release | None = None) -> Release | None:
    """Return the release before one whose model differs from it, and from the live one, skipping those that changed only index or prompt."""
    versions = {release.model_version, (now or release).model_version}
    found = before(connection, release)
    while found is not None and found.model_version in versions:
        found = before(connection, found)
    return found


def _end_candidacies(client: Any, released: list[Release]) -> None:
    for name in sorted({release.model_name for release in released}):
        found = _aliases(client, name).get(CANDIDATE)
        if found in {release.model_version for release in released if release.model_name == name}:
            client.delete_registered_model_alias(name, CANDIDATE)


def _clear_other_models(client: Any, connection: Connection, now: Release) -> None:
    """Where MILLRACE_MODEL_NAME was changed, the model of the earlier name is live no more."""
    rows = connection.execute("SELECT DISTINCT model_name FROM releases WHERE model_name <> %s", (now.model_name,))
    for name in sorted(row["model_name"] for row in rows):
        for alias in (CHAMPION, PREVIOUS):
            _remove(client, name, alias)


def _remove(client: Any, name: str, alias: str) -> None:
    if alias in _aliases(client, name):
        client.delete_registered_model_alias(name, alias)


def _aliases(client: Any, name: str) -> dict[str, str]:
    """Return the aliases of a model; none where there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != _ABSENT:
            raise
        return {}
    return {alias: str(version) for alias, version in found.items()}
