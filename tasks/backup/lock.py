"""One backup, restore or deletion at a time.

Holds an advisory lock of the `millrace` database's session for the length of a block: who is killed lets go of it.
Housekeeping takes it too, so that no run folder is deleted between the dump that names it and its copy. Fails with
`TryAgain` when another holds it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tasks.database import connect
from tasks.errors import TryAgain

_LOCK = 0x4261636B  # any constant number, other than those of migrations, ledger and mirror; ours spells "Back"


@contextmanager
def alone(url: str, what: str) -> Iterator[None]:
    """Hold the lock. `what` says in the error what could not begin."""
    with connect(url, vectors=False) as connection:
        connection.autocommit = True  # no transaction stays open for as long as a backup takes
        row = connection.execute("SELECT pg_try_advisory_lock(%s) AS held", (_LOCK,)).fetchone()
        if row is None or not row["held"]:
            raise TryAgain(
                f"expected {what} to have the buckets for itself, found a backup, a restore or housekeeping at work. "
                "Next: repeat when that has ended."
            )
        try:
            yield
        finally:
            # The server may notice the end of the connection a moment later than the next command begins.
            connection.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))
