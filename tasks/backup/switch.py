"""The databases of a restore, whose names say how far it is.

    NAME_restoring_ID   is being filled; a rerun drops it and begins again
    NAME_restored_ID    is filled, counted and migrated; waits beside NAME
    NAME                after the switch: all renames of a server are one transaction
    NAME_replaced_ID    what NAME was before, until the objects fit too
    NAME_before_MOMENT  the same, afterwards: kept until a person drops it

So a restore that is killed anywhere is finished by the same command, and before the switch NAME is untouched. Fails with
`TryAgain` while something is connected to what has to be renamed, `BadInput` where the role may not.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql

from tasks.backup.postgres import Database
from tasks.database import Connection, connect
from tasks.errors import BadInput, TryAgain

# What a role cannot do is told with what to do about it.
_RIGHTS = (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedObject, psycopg.errors.UndefinedFile)


def restoring(database: Database, backup: str) -> str:
    """Return the name of a database that is being filled."""
    return f"{database.database}_restoring_{backup}"


def restored(database: Database, backup: str) -> str:
    """Return the name of a database that is filled."""
    return f"{database.database}_restored_{backup}"


def replaced(database: Database, backup: str) -> str:
    """Return the name of what was there before."""
    return f"{database.database}_replaced_{backup}"


@contextmanager
def server(database: Database) -> Iterator[Connection]:
    """Open the maintenance database of a server as its administrator. Raises BadInput where a right is missing."""
    try:
        with connect(database.administered("postgres"), vectors=False) as connection:
            connection.autocommit = True
            yield connection
    except _RIGHTS as error:
        raise _no_right(error) from error


def names(database: Database) -> set[str]:
    """Return the databases of the server."""
    with server(database) as connection:
        return {row["datname"] for row in connection.execute("SELECT datname FROM pg_database")}


def create(database: Database, name: str, *, vectors: bool, comment: str | None = None) -> None:
    """Make an empty database for its role, with the extension it needs; what was there under that name goes."""
    with server(database) as connection:
        drop(connection, name)
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0").format(
                sql.Identifier(name), sql.Identifier(database.owner)
            )
        )
        if comment:
            connection.execute(
                sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(comment))
            )
    if vectors:
        try:
            with connect(database.administered(name), vectors=False) as connection:
                connection.execute("CREATE EXTENSION vector")
        except _RIGHTS as error:
            raise _no_right(error) from error


def drop(connection: Connection, name: str) -> None:
    """Drop a database that a restore made."""
    connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def rename(connection: Connection, old: str, new: str) -> None:
    """Rename a database."""
    connection.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(old), sql.Identifier(new)))


def require_quiet(databases: Iterable[Database]) -> None:
    """Prove that nobody is connected to what is to be replaced. Raises TryAgain, naming who is."""
    wanted = list(databases)
    with server(wanted[0]) as connection:
        rows = connection.execute(
            "SELECT datname, usename, coalesce(nullif(application_name, ''), 'no name') AS program, count(*) AS times "
            "FROM pg_stat_activity WHERE datname = ANY(%s) AND pid <> pg_backend_pid() GROUP BY 1, 2, 3 ORDER BY 1",
            ([database.database for database in wanted],),
        ).fetchall()
    if rows:
        raise TryAgain(
            f"expected nobody in the databases that are replaced, found {', '.join(map(_who, rows))}. Next: stop Airflow, "
            "MLflow, the assistant and the stages (embedded stack: make down, then python -m local up --only postgres,s3), "
            "then repeat: what is restored already stays."
        )


def switch(databases: Iterable[Database], backup: str) -> None:
    """Put the restored databases in the place of the present ones, all in one transaction."""
    wanted = list(databases)
    require_quiet(wanted)
    with server(wanted[0]) as connection:
        try:
            with connection.transaction():
                for database in wanted:
                    rename(connection, database.database, replaced(database, backup))
                    rename(connection, restored(database, backup), database.database)
        except psycopg.errors.ObjectInUse as error:
            raise TryAgain(
                f"expected nobody in the databases that are replaced, found: {str(error).strip()}. "
                "Next: stop what connects, then repeat."
            ) from error


def finish(databases: Iterable[Database], backup: str) -> list[str]:
    """Give what was replaced its last name; empty databases are dropped. Return the names that stay."""
    moment = f"{datetime.now(UTC):%Y%m%dt%H%M%Sz}"
    kept = []
    for database in databases:
        old = replaced(database, backup)
        if old not in names(database):
            continue
        empty = _is_empty(database, old)
        with server(database) as connection:
            if empty:
                drop(connection, old)
                continue
            rename(connection, old, f"{database.database}_before_{moment}")
            kept.append(f"{database.database}_before_{moment}")
    return kept


def _is_empty(database: Database, name: str) -> bool:
    from tasks.backup.snapshot import is_empty

    with connect(database.administered(name), vectors=False) as connection:
        return is_empty(connection)


def _who(row: dict[str, Any]) -> str:
    return f"{row['datname']}: {row['times']} x {row['program'][:60]} ({row['usename']})"


def _no_right(error: Exception) -> BadInput:
    return BadInput(
        f"expected a role that may create databases and the extension vector, found: {str(error).strip()}. "
        "Next: name such a role in MILLRACE_ADMIN_DATABASE_URL; the roles of the databases have to exist."
    )
