"""Index versions: one table of chunks each, with its own HNSW index.

Reads and writes `index_versions` and the tables `chunks_vN` it names. A version is begun once a run
(under an advisory lock), filled document by document, and never changed after it became current.
Fails with `DataError` when a version is asked for that is not there, or is not open for writing.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from tasks.database import SAFE_PARALLEL_BUILDS, Connection, pgvector_version
from tasks.errors import DataError

log = logging.getLogger(__name__)

_BUILD_LOCK = 0x4D696C6D  # any constant number other than the migrations' lock
_OPEN = ("building", "checked", "refused")  # states in which a run may still write into its version
# Measured on 2 cores (pgvector 0.8.5): a build whose graph fits in memory is five times one that spills,
# and one extra worker is as fast as two.
_BUILD_MEMORY = "512MB"
_BUILD_WORKERS = "1"

COLUMNS = (
    ("chunk_id", "text"),
    ("document_uri", "text"),
    ("ordinal", "int4"),
    ("title", "text"),
    ("text", "text"),
    ("tokens", "int4"),
    ("start", "int4"),
    ("end", "int4"),
    ("chunk_sha256", "text"),
    ("embedding", "vector"),
)


@dataclass(frozen=True)
class Version:
    """A row of `index_versions`."""

    version: int
    table_name: str
    status: str
    fingerprint: str
    corpus: str
    corpus_sha256: str
    embedder: str
    dimensions: int
    documents: int | None
    chunks: int | None
    metrics: dict[str, Any]
    run: str

    @property
    def table(self) -> sql.Identifier:
        """The table of its chunks, quoted."""
        return sql.Identifier(self.table_name)


_FIELDS = ", ".join(Version.__dataclass_fields__)


def current(connection: Connection) -> Version | None:
    """Return the version that serves now, or None."""
    return _one(connection, "status = 'current'", ())


def lock_current(connection: Connection) -> Version | None:
    """Return the version that serves now; until the transaction ends nobody else begins, switches or drops one."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_BUILD_LOCK,))
    return current(connection)


def get(connection: Connection, version: int | None) -> Version:
    """Return a version (None: the current one). Raises DataError when there is none, or its table is retired."""
    found = current(connection) if version is None else _one(connection, "version = %s", (version,))
    if found is None or found.status == "retired":
        wanted = "a current index version" if version is None else f"index version {version}"
        raise DataError(
            f"expected {wanted}, found {'a retired one' if found else 'none'}. Next: run sync_knowledge, or name another."
        )
    return found


def of_run(connection: Connection, run: str) -> Version | None:
    """Return the version that `run` builds, or None."""
    return _one(connection, "run = %s", (run,))


def _one(connection: Connection, condition: str, values: Sequence[Any]) -> Version | None:
    query = f"SELECT {_FIELDS} FROM index_versions WHERE {condition}"
    row = connection.execute(query.encode(), values).fetchone()
    return Version(**row) if row else None


def begin(connection: Connection, run: str, about: Mapping[str, Any]) -> Version:
    """Return the version that `run` builds, making its row and table when there is none; any number may ask at once.

    `about` holds fingerprint, corpus, corpus_sha256, embedder and dimensions (the facts of `list_documents` do).
    Raises DataError when the run's version is no longer open: it was switched to, and what serves is never written.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_BUILD_LOCK,))
        found = of_run(connection, run)
        if found is None:
            row = connection.execute(
                "INSERT INTO index_versions (fingerprint, corpus, corpus_sha256, embedder, dimensions, table_name, status, run) "
                "VALUES (%(fingerprint)s, %(corpus)s, %(corpus_sha256)s, %(embedder)s, %(dimensions)s, "
                "'chunks_v' || currval(pg_get_serial_sequence('index_versions', 'version')), 'building', %(run)s) RETURNING version",
                {**about, "run": run},
            ).fetchone()
            assert row is not None
            found = get(connection, row["version"])
            _create_table(connection, found)
            log.info("index version=%d table=%s begun", found.version, found.table_name)
    return require_open(found)


def require_open(version: Version) -> Version:
    """Return `version` if its run may still write into it. Raises DataError."""
    if version.status not in _OPEN:
        raise DataError(
            f"expected index version {version.version} to be open for its run, found it {version.status}. "
            "Next: start a new run of sync_knowledge; what serves is never written."
        )
    return version


def _create_table(connection: Connection, version: Version) -> None:
    connection.execute(
        sql.SQL(
            "CREATE TABLE {table} (chunk_id text PRIMARY KEY, document_uri text NOT NULL, ordinal integer NOT NULL, "
            "title text NOT NULL, text text NOT NULL, tokens integer NOT NULL, start integer NOT NULL, "
            '"end" integer NOT NULL, chunk_sha256 text NOT NULL, embedding vector({dimensions}) NOT NULL, '
            "UNIQUE (document_uri, ordinal))"
        ).format(table=version.table, dimensions=sql.Literal(version.dimensions))
    )


def replace_documents(
    connection: Connection, version: Version, uris: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Make `rows` the only chunks of the documents `uris`, in one transaction: safe to repeat, and to run twice at once."""
    with connection.transaction():
        # Two tries of one part may overlap (a lost pod and its retry): the second waits here, then replaces.
        connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (_BUILD_LOCK, version.version))
        row = connection.execute(
            "SELECT status FROM index_versions WHERE version = %s FOR SHARE", (version.version,)
        ).fetchone()
        if row is None or row["status"] not in _OPEN:
            raise DataError(
                f"expected index version {version.version} to be open, found {row['status'] if row else 'nothing'}. "
                "Next: start a new run of sync_knowledge."
            )
        drop_hnsw(connection, version)
        connection.execute(sql.SQL("DELETE FROM {} WHERE document_uri = ANY(%s)").format(version.table), (list(uris),))
        names = sql.SQL(", ").join(sql.Identifier(name) for name, _type in COLUMNS)
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(version.table, names)
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types([kind for _name, kind in COLUMNS])
            for chunk in rows:
                copy.write_row([chunk[name] for name, _type in COLUMNS])


def copy_documents(connection: Connection, base: Version, version: Version, uris: Sequence[str]) -> int:
    """Copy the chunks of documents from `base` into `version` on the server, once; return how many chunks they are."""
    names = sql.SQL(", ").join(sql.Identifier(name) for name, _type in COLUMNS)
    connection.execute(
        sql.SQL(
            "INSERT INTO {target} ({names}) SELECT {names} FROM {source} WHERE document_uri = ANY(%s) ON CONFLICT DO NOTHING"
        ).format(target=version.table, source=base.table, names=names),
        (list(uris),),
    )
    row = connection.execute(
        sql.SQL("SELECT count(*) AS n FROM {} WHERE document_uri = ANY(%s)").format(version.table), (list(uris),)
    ).fetchone()
    return int(row["n"]) if row else 0


def keep_only(connection: Connection, version: Version, uris: Sequence[str]) -> int:
    """Delete the chunks of every other document (left by an earlier try of the same run); return how many."""
    return connection.execute(
        sql.SQL("DELETE FROM {} WHERE NOT document_uri = ANY(%s)").format(version.table), (list(uris),)
    ).rowcount


def build_hnsw(connection: Connection, version: Version) -> None:
    """Build the vector index of a loaded table (a build after the load is five times loading into one)."""
    workers = _BUILD_WORKERS if pgvector_version(connection) >= SAFE_PARALLEL_BUILDS else "0"
    with connection.transaction():
        for name, value in (("maintenance_work_mem", _BUILD_MEMORY), ("max_parallel_maintenance_workers", workers)):
            connection.execute("SELECT set_config(%s, %s, true)", (name, value))
        connection.execute(
            sql.SQL(
                "CREATE INDEX IF NOT EXISTS {} ON {} USING hnsw (embedding vector_cosine_ops) WITH (m = 16, ef_construction = 64)"
            ).format(_hnsw(version), version.table)
        )
    connection.execute(sql.SQL("ANALYZE {}").format(version.table))


def drop_hnsw(connection: Connection, version: Version) -> None:
    """Remove the vector index, where a new try loads into a table that an earlier try had indexed."""
    connection.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(_hnsw(version)))


def _hnsw(version: Version) -> sql.Identifier:
    return sql.Identifier(f"{version.table_name}_hnsw")


def documents_in(connection: Connection, version: Version) -> dict[str, int]:
    """Return how many chunks each document has in `version`."""
    query = sql.SQL("SELECT document_uri, count(*) AS n FROM {} GROUP BY document_uri").format(version.table)
    return {row["document_uri"]: row["n"] for row in connection.execute(query)}


def drop(connection: Connection, version: int) -> bool:
    """Drop the table of a version and mark it retired; return whether there was one. Raises DataError when it is current.

    Which versions releases still need is the caller's to know (tasks.housekeeping).
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_BUILD_LOCK,))
        found = _one(connection, "version = %s", (version,))
        if found is None or found.status == "retired":
            return False
        if found.status == "current":
            raise DataError(f"expected a former index version, found {version} current. Next: keep it.")
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(found.table))
        connection.execute("UPDATE index_versions SET status = 'retired' WHERE version = %s", (version,))
    return True


@contextmanager
def scan(connection: Connection, *, exact: bool) -> Iterator[None]:
    """Make queries in the block scan every chunk (`exact`), or use the HNSW index even where a scan were cheaper."""
    with connection.transaction():
        connection.execute("SELECT set_config(%s, 'off', true)", ("enable_indexscan" if exact else "enable_seqscan",))
        yield
