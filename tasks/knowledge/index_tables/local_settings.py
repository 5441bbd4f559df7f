"""Settings of the server that hold for a block of queries, and for nothing after it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from psycopg.pq import TransactionStatus

from tasks.database import Connection

_SET = "SELECT set_config(name, value, true) FROM unnest(%s::text[], %s::text[]) AS t (name, value)"


@contextmanager
def local_settings(connection: Connection, values: Mapping[str, str]) -> Iterator[None]:
    """Run the block in a transaction with these settings; inside another transaction they are put back at its end."""
    names = list(values)
    inside = connection.info.transaction_status != TransactionStatus.IDLE
    with connection.transaction():
        before: list[str | None] = []
        if inside:  # what is set for a transaction would outlive our savepoint
            query = "SELECT current_setting(name, true) AS value FROM unnest(%s::text[]) WITH ORDINALITY AS t (name, n) ORDER BY n"
            before = [row["value"] for row in connection.execute(query, (names,))]
        connection.execute(_SET, (names, list(values.values())))
        yield
        if inside:
            connection.execute(_SET, (names, before))
