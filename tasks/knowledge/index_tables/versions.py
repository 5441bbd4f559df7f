"""The versions of an index: which serve, which are built, and the table each has for its chunks.

Reads and writes `index_versions`; makes and drops the tables `chunks_vN` it names. A version that stands on an earlier one
(`overlays.py`) has a view of that name. Fails with `DataError` when a
version is asked for that is not there or not open for writing, and with `SettingsError` when one is begun with
vectors that HNSW cannot hold, or a text search configuration that the server has not.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from tasks.database import Connection
from tasks.errors import DataError, SettingsError, TryAgain, nearest
from tasks.knowledge.index_tables.local_settings import local_settings

log = logging.getLogger(__name__)

DEFAULT_CORPUS = "default"
BUILD_LOCK = 0x4D696C6D  # any constant number other than the migrations' lock
_PATIENCE = 10  # seconds
OPEN = ("building", "checked", "refused")  # states from which a run may still build its version
_FIXED = ("fingerprint", "embedder", "dimensions", "vector_type", "text_search")  # of a version, once it is begun
# What an HNSW index of pgvector takes, by the type of the column.
MOST_DIMENSIONS = {"vector": 2000, "halfvec": 4000}
_ABSENT = {"source": "", "vector_type": "vector", "text_search": "english"}


@dataclass(frozen=True)
class Version:
    """A row of `index_versions`. `corpus` is a name, `source` where its documents came from."""

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
    source: str = ""
    vector_type: str = "vector"
    text_search: str = "english"
    settings: dict[str, Any] = field(default_factory=dict)
    base_table: str | None = None

    @property
    def table(self) -> sql.Identifier:
        """What its chunks are read from, quoted: its table, or a view of its own rows and those it shares."""
        return sql.Identifier(self.table_name)

    @property
    def own(self) -> sql.Identifier:
        """The table that its rows are written to and indexed in; where it stands on no other, that is all of them."""
        return sql.Identifier(f"{self.table_name}_own") if self.base_table else self.table

    @property
    def hidden(self) -> sql.Identifier:
        """The documents of `base_table` that it does not show."""
        return sql.Identifier(f"{self.table_name}_hidden")

    @property
    def column_type(self) -> sql.Composed:
        """The SQL type of its vectors."""
        return sql.SQL("{}({})").format(sql.Identifier(self.vector_type), sql.Literal(self.dimensions))

    @property
    def text_config(self) -> sql.Composed:
        """Its text search configuration, as an SQL constant."""
        return sql.SQL("{}::regconfig").format(sql.Literal(self.text_search))


_FIELDS = sql.SQL(", ").join(sql.Identifier(name) for name in Version.__dataclass_fields__)


def current(connection: Connection, corpus: str = DEFAULT_CORPUS) -> Version | None:
    """Return the version of a corpus that serves now, or None."""
    return _one(connection, "status = 'current' AND corpus = %s", (corpus,))


def lock_current(connection: Connection, corpus: str = DEFAULT_CORPUS) -> Version | None:
    """Return what serves now; until the transaction ends nobody else begins, switches or drops a version."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (BUILD_LOCK,))
    return current(connection, corpus)


def get(connection: Connection, version: int | None, corpus: str = DEFAULT_CORPUS) -> Version:
    """Return a version (None: the current one of `corpus`). Raises DataError when it is not there or retired."""
    found = current(connection, corpus) if version is None else _one(connection, "version = %s", (version,))
    if found is None or found.status == "retired":
        wanted = f"a current index version of corpus {corpus}" if version is None else f"index version {version}"
        raise DataError(
            f"expected {wanted}, found {'a retired one' if found else 'none'}. Next: run sync_knowledge, or name another."
        )
    return found


def of_run(connection: Connection, run: str) -> Version | None:
    """Return the version that `run` builds, or None."""
    return _one(connection, "run = %s", (run,))


def _one(connection: Connection, condition: str, values: Sequence[Any]) -> Version | None:
    query = sql.SQL("SELECT {} FROM index_versions WHERE ").format(_FIELDS).as_string(connection) + condition
    row = connection.execute(query.encode(), values).fetchone()
    return Version(**row) if row else None


def begin(connection: Connection, run: str, about: Mapping[str, Any]) -> Version:
    """Return the version that `run` builds, making its row and table when there is none; any number may ask at once.

    One that was finished on an earlier one's table stands by itself again, with its own rows only.
    `about` holds fingerprint, corpus (a name), corpus_sha256, embedder and dimensions, and may hold source,
    vector_type, text_search and settings. A version that was judged is building again: what was said of it is not true
    of what is written now. Raises SettingsError when no such version can be searched, and DataError when the run's
    version is no longer open (it was switched to, and what serves is never written) or was begun as another.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (BUILD_LOCK,))
        found = of_run(connection, run)
        if found is None:
            found = _make(connection, run, {**_ABSENT, **about, "settings": Jsonb(about.get("settings") or {})})
            log.info("index version=%d corpus=%s table=%s begun", found.version, found.corpus, found.table_name)
        differs = [name for name in _FIXED if name in about and getattr(found, name) != about[name]]
        if differs:
            raise DataError(
                f"expected the {', '.join(differs)} that index version {found.version} was begun with, found another. "
                "Next: start a new run of sync_knowledge."
            )
        if require_open(found).status != "building":
            connection.execute("UPDATE index_versions SET status = 'building' WHERE version = %s", (found.version,))
        _take_off(connection, found)
    return replace(found, status="building", base_table=None)


def _take_off(connection: Connection, version: Version) -> None:
    """Make the table of a version's own rows its table, where it stood on an earlier one."""
    if version.base_table is None:
        return
    # Others wait for the lock that the caller holds: who reads this table, a backup say, is not waited for long.
    options = {"lock_timeout": f"{_PATIENCE}s"}
    try:
        with connection.transaction(), local_settings(connection, options):
            connection.execute(sql.SQL("DROP VIEW {}").format(version.table))
            connection.execute(sql.SQL("DROP TABLE {}").format(version.hidden))
            connection.execute(sql.SQL("ALTER TABLE {} RENAME TO {}").format(version.own, version.table))
    except psycopg.errors.LockNotAvailable as error:
        raise TryAgain(
            f"expected index version {version.version} to be free to be built again, found it being read or written. "
            "Next: nothing; it is tried again."
        ) from error
    connection.execute("UPDATE index_versions SET base_table = NULL WHERE version = %s", (version.version,))


def _make(connection: Connection, run: str, about: Mapping[str, Any]) -> Version:
    require_searchable(connection, about["dimensions"], about["vector_type"], about["text_search"])
    row = connection.execute(
        "INSERT INTO index_versions (fingerprint, corpus, source, corpus_sha256, embedder, dimensions, vector_type, "
        "text_search, settings, table_name, status, run) "
        "VALUES (%(fingerprint)s, %(corpus)s, %(source)s, %(corpus_sha256)s, %(embedder)s, %(dimensions)s, "
        "%(vector_type)s, %(text_search)s, %(settings)s, "
        "'chunks_v' || currval(pg_get_serial_sequence('index_versions', 'version')), 'building', %(run)s) RETURNING version",
        {**about, "run": run},
    ).fetchone()
    assert row is not None
    made = get(connection, row["version"])
    _create_table(connection, made)
    return made


def require_searchable(connection: Connection, dimensions: int, vector_type: str, text_search: str) -> None:
    """Refuse vectors too long for HNSW, and a text search configuration that is not there. Raises SettingsError."""
    most = MOST_DIMENSIONS.get(vector_type)
    if most is None:
        raise SettingsError(
            f"expected MILLRACE_VECTOR_TYPE to be one of {', '.join(MOST_DIMENSIONS)}, found {vector_type!r}. Next: correct it."
        )
    if dimensions > most:
        other = "MILLRACE_VECTOR_TYPE=halfvec, or " if dimensions <= MOST_DIMENSIONS["halfvec"] else ""
        raise SettingsError(
            f"expected vectors of at most {most} dimensions (HNSW on {vector_type}), found {dimensions}. "
            f"Next: set {other}another MILLRACE_EMBEDDER."
        )
    known = [row["cfgname"] for row in connection.execute("SELECT cfgname FROM pg_ts_config ORDER BY cfgname")]
    if text_search not in known:
        raise SettingsError(
            f"expected MILLRACE_TEXT_SEARCH to be one of the server's configurations ({', '.join(known)}), "
            f"found {text_search!r}.{nearest(text_search, known)} Next: correct it; simple takes words as they are."
        )


def require_open(version: Version) -> Version:
    """Return `version` if its run may still write into it. Raises DataError."""
    if version.status not in OPEN:
        raise DataError(
            f"expected index version {version.version} to be open for its run, found it {version.status}. "
            "Next: start a new run of sync_knowledge; what serves is never written."
        )
    return version


def _create_table(connection: Connection, version: Version) -> None:
    # Rows stay in one piece where a page holds them: a vector moved aside costs a third of the load, and each search.
    connection.execute(
        sql.SQL(
            "CREATE TABLE {table} (chunk_id text PRIMARY KEY, document_uri text NOT NULL, ordinal integer NOT NULL, "
            "title text NOT NULL, headings text[] NOT NULL DEFAULT '{{}}', text text NOT NULL, tokens integer NOT NULL, "
            'start integer NOT NULL, "end" integer NOT NULL, page integer, last_page integer, covered text[], '
            "metadata jsonb NOT NULL DEFAULT '{{}}', chunk_sha256 text NOT NULL, embedding {type} NOT NULL, UNIQUE (document_uri, ordinal)) "
            "WITH (toast_tuple_target = 8160)"
        ).format(table=version.table, type=version.column_type)
    )


def drop(connection: Connection, version: int) -> bool:
    """Drop the table of a version and mark it retired; return whether there was one.

    Raises DataError when it is current, or another version stands on its table.

    Which versions releases still need is the caller's to know (tasks.housekeeping).
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (BUILD_LOCK,))
        found = _one(connection, "version = %s", (version,))
        if found is None or found.status == "retired":
            return False
        if found.status == "current":
            raise DataError(f"expected a former index version, found {version} current. Next: keep it.")
        standing = connection.execute(
            "SELECT version FROM index_versions WHERE base_table = %s AND status <> 'retired' LIMIT 1",
            (found.table_name,),
        ).fetchone()
        if standing:
            raise DataError(
                f"expected an index version that no other stands on, found {standing['version']} on {version}. Next: keep it."
            )
        _take_off(connection, found)
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(found.table))
        connection.execute("UPDATE index_versions SET status = 'retired' WHERE version = %s", (version,))
    return True
