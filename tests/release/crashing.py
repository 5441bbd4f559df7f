"""A stage in a process of its own that kills itself at the k-th thing it does, and a world that is put back after it."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import botocore.client
import psycopg
import requests
from psycopg import sql
from pydantic import SecretStr

from tasks.database import connect
from tasks.release import ledger
from tasks.settings import Settings
from tasks.settings import settings as process_settings
from tasks.storage import Storage

_READS = ("Get", "Head", "List")


@dataclass
class Steps:
    """Counts statements of SQL, writes to S3 and requests to MLflow; dies before the one numbered `fatal`."""

    fatal: int | None
    count: int = 0
    names: list[str] = field(default_factory=list)

    def step(self, name: str) -> None:
        self.count += 1
        self.names.append(name)
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does it: nothing of Python runs after it

    def before(self, owner: Any, method: str, name: Callable[..., str | None]) -> None:
        original = getattr(owner, method)

        def counted(*arguments: Any, **options: Any) -> Any:
            if (told := name(*arguments, **options)) is not None:
                self.step(told)
            return original(*arguments, **options)

        setattr(owner, method, counted)

    def watch(self) -> None:
        self.before(psycopg.Cursor, "execute", lambda _self, query, *_, **__: f"SQL {str(query)[:60]}")
        self.before(psycopg.Connection, "commit", lambda _self: "SQL COMMIT")
        self.before(
            botocore.client.BaseClient,
            "_make_api_call",
            lambda _self, operation, *_: None if operation.startswith(_READS) else f"S3 {operation}",
        )
        self.before(requests.Session, "request", lambda _self, method, url, **_: f"MLflow {method} {url[-40:]}")


def in_a_process(
    work: Callable[[], object], settings: Settings, storage: Storage, fatal: int | None
) -> list[str] | None:
    """Run `work` in a fork of this process; return what it did, or None where it was killed.

    `storage` must not have been used: a connection of this process must not be spoken on by another.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover (it ends by os._exit)
        code = 1
        try:
            import mlflow.utils.request_utils
            import pgvector.psycopg

            import tasks.stage

            mlflow.utils.request_utils._cached_get_request_session.cache_clear()
            os.environ["MILLRACE_DATABASE_URL"] = settings.database_url.get_secret_value()
            process_settings.cache_clear()
            tasks.stage.Storage = lambda *_: storage  # type: ignore[assignment,misc]
            pgvector.psycopg.register_vector = lambda _connection: None  # only reads the types, once a connection
            steps = Steps(fatal)
            steps.watch()
            work()
            os.write(writing, "\n".join(steps.names).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        told = file.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    assert os.waitstatus_to_exitcode(status) == 0, "the stage failed by itself: see its output"
    return told.split("\n")


@dataclass
class World:
    """A house at one moment, which can be put back: its database is a template, its aliases and objects are known."""

    house: Any
    aliases: dict[str, str]
    copy: str = ""

    def __post_init__(self) -> None:
        self.template = self.house.url.rsplit("/", 1)[1]
        self.evidence = self._evidence()

    @property
    def settings(self) -> Settings:
        url = self.house.url.rsplit("/", 1)[0] + "/" + self.copy
        found: Settings = self.house.settings.model_copy(update={"database_url": SecretStr(url)})
        return found

    def put_back(self, manifest: str) -> None:
        """Make a new copy of the database, and undo what was done in MLflow and S3."""
        with psycopg.connect(self.house.url.rsplit("/", 1)[0] + "/postgres", autocommit=True) as connection:
            self._drop(connection)
            self.copy = f"{self.template}_copy"
            made = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(made.format(sql.Identifier(self.copy), sql.Identifier(self.template)))
        self.house.storage.delete_prefix(manifest)
        for uri in self._evidence() - self.evidence:
            self.house.storage.delete_prefix(uri)
        client, name, now = self.house.mlflow(), self.house.settings.model_name, self.aliases_now()
        for alias in now.keys() - self.aliases.keys():
            client.delete_registered_model_alias(name, alias)
        for alias, version in self.aliases.items():
            if now.get(alias) != version:
                client.set_registered_model_alias(name, alias, version)

    def close(self) -> None:
        with psycopg.connect(self.house.url.rsplit("/", 1)[0] + "/postgres", autocommit=True) as connection:
            self._drop(connection)

    def aliases_now(self) -> dict[str, str]:
        found = self.house.mlflow().get_registered_model(self.house.settings.model_name).aliases
        return {alias: str(version) for alias, version in found.items()}

    def rows(self) -> list[ledger.Release]:
        with connect(self.settings.database_url.get_secret_value(), vectors=False) as connection:
            return ledger.history(connection)

    def state(self, manifest: str) -> tuple[object, ...]:
        """Return everything that outlives the process and that another try could look at."""
        with connect(self.settings.database_url.get_secret_value(), vectors=False) as connection:
            mirrors = connection.execute("SELECT release FROM release_mirrors").fetchall()
        return (
            tuple(row.run for row in self.rows()),  # not their numbers: an INSERT that was rolled back leaves a gap
            len(mirrors),
            tuple(sorted(self.aliases_now().items())),
            tuple(sorted(self._evidence() - self.evidence)),
            self.house.storage.exists(manifest),
        )

    def _drop(self, connection: psycopg.Connection[Any]) -> None:
        if self.copy:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(self.copy)))

    def _evidence(self) -> set[str]:
        return set(self._listed())

    def _listed(self) -> Iterator[str]:
        for uri, _size, _etag in self.house.storage.list(f"s3://{self.house.settings.s3_bucket}/releases/"):
            yield uri
