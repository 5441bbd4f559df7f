"""An embedded Postgres made fast for tests, which give it thousands of small databases, tables and connections."""

import psycopg
from psycopg import sql


def hurry(url: str) -> None:
    """Let the server wait for no disk, and make its password cheap to check.

    Only a machine that dies loses what was not brought to the disk; a killed server or client loses nothing.
    """
    password = psycopg.conninfo.conninfo_to_dict(url)["password"]
    with psycopg.connect(url, autocommit=True) as connection:
        for name in ("fsync", "full_page_writes", "synchronous_commit"):
            connection.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(name)))
        connection.execute("SELECT pg_reload_conf()")
        connection.execute("SET scram_iterations = 1")
        connection.execute(sql.SQL("ALTER ROLE CURRENT_USER PASSWORD {}").format(sql.Literal(password)))
