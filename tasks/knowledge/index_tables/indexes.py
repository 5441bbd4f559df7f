"""What makes a version's table quick to search: its words, HNSW on its vectors, GIN on words and metadata, a tree of URIs.

All of it is made after the load. The column `words` is generated, and costs three times what the rest of a row costs
to load (48,000 rows a second without, 17,000 with it): it is added here, once for all rows.
Reads and writes the tables `chunks_vN`. A build after the load is several times quicker than a load into the index,
if its graph fits into `maintenance_work_mem` (a graph that does not costs five times as much): that memory is
estimated from the rows. Where the server cannot share so much between processes (a container's /dev/shm), one
process builds alone.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from tasks.database import SAFE_PARALLEL_BUILDS, Connection, pgvector_version
from tasks.knowledge.index_tables.local_settings import local_settings
from tasks.knowledge.index_tables.versions import Version

log = logging.getLogger(__name__)

# On 24,600 real chunks recall@10 at ef_search 40 and 80 is 0.990 and 0.996 with 24 and 128; with pgvector's own
# defaults, 16 and 64, it is 0.970 and 0.988.
M, EF_CONSTRUCTION = 24, 128
MEBIBYTE = 2**20
# A node of the graph besides its vector: header, 2 x M neighbours of 24 bytes on the lowest level, half as many above.
NODE_OVERHEAD = 128 + 24 * (2 * M + M)
LEAST_MEMORY = 64 * MEBIBYTE
# At most so much, or what the server itself allows where that is more (ALTER DATABASE ... SET maintenance_work_mem).
MOST_MEMORY = 2048 * MEBIBYTE
_PLAIN = (
    ("words", "gin (words)"),
    ("metadata", "gin (metadata jsonb_path_ops)"),
    ("prefix", "btree (document_uri text_pattern_ops)"),
)
_BYTES = {"vector": 4, "halfvec": 2}


def build_indexes(connection: Connection, version: Version) -> None:
    """Make the words and indexes of a loaded table that are not there yet, and its statistics."""
    add_words(connection, version)  # first, because it writes the table anew
    memory = build_memory(connection, version)
    try:
        _build_hnsw(connection, version, memory, build_workers(connection))
    except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory) as error:
        # Workers share the graph in /dev/shm, which containers have little of; alone, a process needs none.
        log.warning("index version=%d is built by one process: %s", version.version, str(error).strip())
        _build_hnsw(connection, version, memory, 0)
    for suffix, method in _PLAIN:
        connection.execute(
            sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} USING {}").format(
                _name(version, suffix), version.own, sql.SQL(method)
            )
        )
    connection.execute(sql.SQL("ANALYZE {}").format(version.own))


def add_words(connection: Connection, version: Version) -> None:
    """Add the column `words` to a loaded table, where it is not there yet. Nobody reads this version yet."""
    connection.execute(
        sql.SQL(
            "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS words tsvector GENERATED ALWAYS AS "
            "(setweight(to_tsvector({config}, title), 'A') || to_tsvector({config}, text)) STORED"
        ).format(table=version.own, config=version.text_config)
    )


def _build_hnsw(connection: Connection, version: Version, memory: int, workers: int) -> None:
    options = {"maintenance_work_mem": f"{memory // 1024}kB", "max_parallel_maintenance_workers": str(workers)}
    with local_settings(connection, options):
        connection.execute(
            sql.SQL(
                "CREATE INDEX IF NOT EXISTS {} ON {} USING hnsw (embedding {}) WITH (m = {}, ef_construction = {})"
            ).format(
                _name(version, "hnsw"),
                version.own,
                sql.Identifier(f"{version.vector_type}_cosine_ops"),
                sql.Literal(M),
                sql.Literal(EF_CONSTRUCTION),
            )  # fmt: skip
        )


def build_memory(connection: Connection, version: Version) -> int:
    """Return the bytes that the graph of this table needs while it is built, within the bounds above."""
    row = connection.execute(
        sql.SQL(
            "SELECT (SELECT count(*) FROM {}) AS rows, pg_size_bytes(current_setting('maintenance_work_mem')) AS server"
        ).format(version.own)
    ).fetchone()
    assert row is not None
    needed = estimated_bytes(row["rows"], version.dimensions, version.vector_type)
    allowed = max(MOST_MEMORY, int(row["server"]))
    if needed > allowed:
        log.warning(
            "index version=%d needs about %d MiB to build its vector index, and gets %d: it will take longer. "
            "Next: raise maintenance_work_mem of this database.", version.version, needed // MEBIBYTE, allowed // MEBIBYTE,
        )  # fmt: skip
    return max(LEAST_MEMORY, min(needed, allowed))


def estimated_bytes(rows: int, dimensions: int, vector_type: str) -> int:
    """Return about how many bytes an HNSW graph takes in memory."""
    return int(1.1 * rows * (dimensions * _BYTES[vector_type] + NODE_OVERHEAD))


def build_workers(connection: Connection) -> int:
    """Return how many processes may help: what the server allows, none where pgvector's parallel builds are not safe.

    On 2 cores one and two measured the same; a server with more cores is told by its own setting.
    """
    if pgvector_version(connection) < SAFE_PARALLEL_BUILDS:
        return 0
    row = connection.execute("SELECT current_setting('max_parallel_maintenance_workers')::int AS n").fetchone()
    return int(row["n"]) if row else 0


def has_vector_index(connection: Connection, table: sql.Identifier) -> bool:
    """Say whether a table has a valid HNSW index."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam "
        "WHERE i.indrelid = to_regclass(%s) AND i.indisvalid AND a.amname = 'hnsw') AS found",
        (table.as_string(connection),),
    ).fetchone()
    return bool(row and row["found"])


def drop_indexes(connection: Connection, version: Version) -> None:
    """Remove the indexes, where a new try loads into a table that an earlier try had indexed."""
    for suffix in ("hnsw", *(suffix for suffix, _method in _PLAIN)):
        connection.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(_name(version, suffix)))


def _name(version: Version, suffix: str) -> sql.Identifier:
    return sql.Identifier(f"{version.table_name}_{suffix}")


@contextmanager
def scan(connection: Connection, *, exact: bool) -> Iterator[None]:
    """Make queries in the block scan every chunk (`exact`), or use the HNSW index even where a scan were cheaper."""
    # A prepared statement keeps a generic plan whatever is set later: the exact scan would be the approximate one again.
    options = {"enable_indexscan" if exact else "enable_seqscan": "off", "plan_cache_mode": "force_custom_plan"}
    with local_settings(connection, options):
        yield
