"""Checks of Postgres: it answers, lets this role in, has pgvector, and the migrations of this code.

Reads through connections that are read-only. A server that cannot be reached, starts up or is full is an
outage (75); one that answers and says no is a wrong setting (2).
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tasks.doctor.examine import Place
from tasks.errors import ServiceUnavailable, SettingsError

# The oldest release that its makers still repair. Every test of this project runs on Postgres 18.
LEAST_POSTGRES = 15
# What a server says while it is away for a while; libpq gives no code for it.
_FOR_A_WHILE = (
    "starting up",
    "shutting down",
    "recovery mode",
    "too many",
    "remaining connection",
    "timeout",
    "closed",
)


@contextmanager
def connected(place: Place) -> Iterator[Any]:
    """Open a read-only connection. Raises ServiceUnavailable or SettingsError, whichever it is."""
    import psycopg
    from psycopg.rows import dict_row

    url = place.settings.database_url.get_secret_value()
    host, port = address(url)
    if host and not host.startswith(("/", "@")):
        reach(host, port, "Postgres", "MILLRACE_DATABASE_URL")
    try:
        with psycopg.connect(url, connect_timeout=5, row_factory=dict_row) as connection:
            connection.read_only = True
            yield connection
    except psycopg.OperationalError as error:
        text = str(error).strip() or type(error).__name__
        if any(words in text.lower() for words in _FOR_A_WHILE):
            raise ServiceUnavailable(f"expected Postgres to answer, found {text}. Next: wait; try again.") from error
        raise SettingsError(
            f"expected Postgres at {host}:{port} to let this role in, found {text}. Next: correct MILLRACE_DATABASE_URL."
        ) from error
    except psycopg.Error as error:
        raise SettingsError(
            f"expected to look into the database, found {error}. Next: grant this role what it needs."
        ) from error


def address(url: str) -> tuple[str, int]:
    """Return host and port of a connection string; no host for a socket or several hosts. Raises SettingsError."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    # The library's own text may repeat parts of the URL, and so might ours of one that is cut in the wrong places.
    malformed = SettingsError(
        "expected MILLRACE_DATABASE_URL as postgresql://user:password@host:port/database, found another form. "
        "Next: correct it; write special characters of the password as %XX."
    )
    try:
        parts = conninfo_to_dict(url)
    except ProgrammingError as error:
        raise malformed from error
    host, port = str(parts.get("host") or ""), str(parts.get("port") or "5432")
    if "@" in str(parts.get("dbname")) or not port.replace(",", "").isdigit():
        raise malformed
    return ("", 0) if "," in host + port else (host, int(port))


def reach(host: str, port: int, service: str, setting: str) -> None:
    """Open and close a connection. Raises SettingsError for an unknown name, ServiceUnavailable for silence."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except socket.gaierror as error:
        wrong = error.errno in {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
        text = f"expected {service} at {host}:{port}, found no address for that name. Next: correct {setting}, or see the DNS."
        raise (SettingsError if wrong else ServiceUnavailable)(text) from error
    except OSError as error:
        raise ServiceUnavailable(
            f"expected {service} to answer at {host}:{port}, found {error.strerror or error}. "
            f"Next: start it (embedded stack: `make up`), open the network to it, or correct {setting}."
        ) from error


def database(place: Place) -> str:
    """Ask for the version, and whether this role may make tables."""
    with connected(place) as connection:
        found = connection.execute(
            "SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int / 10000 AS major, "
            "current_database() AS name, current_user AS role, current_schema() AS schema, "
            "coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS may_create"
        ).fetchone()
    if found["major"] < LEAST_POSTGRES:
        raise SettingsError(f"expected Postgres {LEAST_POSTGRES} or newer, found {found['version']}. Next: upgrade it.")
    if not found["may_create"]:
        raise SettingsError(
            f"expected role {found['role']} to make tables in {found['name']}, found that it may not (schema {found['schema']}). "
            f"Next: GRANT CREATE, USAGE ON SCHEMA {found['schema'] or 'public'} TO {found['role']}."
        )
    return f"Postgres {found['version']}, database {found['name']}, role {found['role']} may make tables"


def pgvector(place: Place) -> str:
    """Compare the extension with the oldest one that is safe."""
    from tasks.database import LEAST_PGVECTOR, SAFE_PARALLEL_BUILDS

    least = ".".join(map(str, LEAST_PGVECTOR))
    with connected(place) as connection:
        found = connection.execute(
            "SELECT (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS here, "
            "(SELECT default_version FROM pg_available_extensions WHERE name = 'vector') AS offered"
        ).fetchone()
    here, offered = found["here"], found["offered"]
    if here is None:
        step = (
            "python -m tasks migrate (as a role that may create extensions)" if offered else "install it on the server"
        )
        raise SettingsError(f"expected the extension pgvector in the database, found none. Next: {step}.")
    if numbers(here) < LEAST_PGVECTOR:
        newer = offered is not None and numbers(offered) >= LEAST_PGVECTOR
        step = "ALTER EXTENSION vector UPDATE" if newer else "install a newer one on the server"
        raise SettingsError(f"expected pgvector {least} or newer, found {here}. Next: {step}.")
    slow = ""
    if numbers(here) < SAFE_PARALLEL_BUILDS:
        slow = f"; below {'.'.join(map(str, SAFE_PARALLEL_BUILDS))} indexes are built by one process"
    return f"pgvector {here} (least {least}){slow}"


def numbers(version: str) -> tuple[int, ...]:
    """Return `0.8.5` as (0, 8, 5)."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def migrations(place: Place) -> str:
    """Compare the applied migrations with those of this code."""
    from tasks.database import migrations as files

    with connected(place) as connection:
        exists = connection.execute("SELECT to_regclass('schema_migrations') IS NOT NULL AS it").fetchone()["it"]
        rows = connection.execute("SELECT name, sha256 FROM schema_migrations").fetchall() if exists else []
    applied = {row["name"]: row["sha256"] for row in rows}
    here = {path.name: sha256 for path, sha256 in files()}
    if missing := [name for name in here if name not in applied]:
        raise SettingsError(
            f"expected all migrations applied, found {', '.join(missing)} missing. Next: python -m tasks migrate."
        )
    if other := [name for name, sha256 in here.items() if applied[name] != sha256]:
        raise SettingsError(
            f"expected {other[0]} as it was applied, found other text. Next: restore the file; add a new one."
        )
    newer = sorted(applied.keys() - here.keys())
    return f"{len(here)} applied" + (f"; newer code also applied {', '.join(newer)}" if newer else "")
