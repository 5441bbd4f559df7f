"""Tables of index versions, against a real Postgres."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from psycopg import sql

from tasks import database
from tasks.database import SQL_FOLDER, Connection, connect, migrate
from tasks.errors import DataError, SettingsError
from tasks.knowledge import index_tables
from tasks.knowledge.index_tables import Version, contents, indexes, local_settings, versions
from tasks.knowledge.search import Filters, search

pytestmark = pytest.mark.integration
ABOUT = {"fingerprint": "t", "corpus": "manuals", "corpus_sha256": "t", "embedder": "t", "dimensions": 3}


@pytest.fixture(scope="module")
def url(new_database: Any) -> str:
    """A database with the schema and nothing else."""
    found = str(new_database("index_tables"))
    migrate(found)
    return found


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    """A connection whose transaction is rolled back, so that every test begins without versions."""
    with connect(url) as opened:
        opened.execute("SELECT 1")
        yield opened
        opened.rollback()


def begin(connection: Connection, run: str = "s3://b/runs/d/r", **changes: Any) -> Version:
    return index_tables.begin(connection, run, ABOUT | changes)


def row(uri: str, ordinal: int = 0, text: str = "an owl sleeps", **changes: Any) -> dict[str, Any]:
    identity = hashlib.sha256(f"{uri}\n{ordinal}\n{text}".encode()).hexdigest()[:32]
    return {
        "chunk_id": identity, "document_uri": uri, "ordinal": ordinal, "title": "Birds", "text": text, "tokens": 3, "start": 0,
        "end": len(text), "chunk_sha256": "0", "embedding": np.array([1, 0, 0], dtype=np.float32),
    } | changes  # fmt: skip


def rows_of(connection: Connection, version: Version) -> list[dict[str, Any]]:
    return connection.execute(
        sql.SQL("SELECT * FROM {} ORDER BY document_uri, ordinal").format(version.table)
    ).fetchall()


def test_a_row_comes_back_as_it_was_loaded_with_its_words(connection: Connection) -> None:
    version = begin(connection)
    full = row("a", headings=["Animals", "Owls, barn"], page=7, last_page=9, covered=["Animals", "Owls, barn", "Bats"],
               metadata={"author": "Zoë", "tags": ["x"]})  # fmt: skip
    index_tables.replace_documents(connection, version, ["a", "b"], [full, row("b")])
    index_tables.build_indexes(connection, version)
    first, second = rows_of(connection, version)
    assert (first["headings"], first["page"], first["metadata"]) == (full["headings"], 7, full["metadata"])
    assert (second["headings"], second["page"], second["metadata"]) == ([], None, {})
    assert (first["last_page"], first["covered"]) == (9, full["covered"])
    assert (second["last_page"], second["covered"]) == (None, None)
    assert first["words"] == "'bird':1A 'owl':3 'sleep':4"
    assert first["embedding"].to_list() == [1, 0, 0]


def test_halves_and_words_follow_the_version(connection: Connection) -> None:
    version = begin(
        connection, vector_type="halfvec", text_search="german", settings={"chunk_tokens": 100}, source="docs/"
    )
    index_tables.replace_documents(connection, version, ["a"], [row("a", text="die Eulen schlafen")])
    index_tables.build_indexes(connection, version)
    (found,) = rows_of(connection, version)
    assert type(found["embedding"]).__name__ == "HalfVector"
    assert "'eul'" in found["words"] and "die" not in found["words"]
    known = index_tables.get(connection, version.version)
    assert (known.settings, known.source, known.corpus) == ({"chunk_tokens": 100}, "docs/", "manuals")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimensions": 2001}, r"at most 2000 dimensions.*found 2001.*MILLRACE_VECTOR_TYPE=halfvec, or another"),
        ({"dimensions": 4001, "vector_type": "halfvec"}, r"at most 4000.*Next: set another MILLRACE_EMBEDDER"),
        ({"text_search": "englisch"}, r"MILLRACE_TEXT_SEARCH.*found 'englisch'\. Did you mean 'english'"),
        ({"vector_type": "bit"}, r"MILLRACE_VECTOR_TYPE.*found 'bit'"),
    ],
)
def test_what_cannot_be_searched_is_not_begun(connection: Connection, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        begin(connection, **changes)
    assert connection.execute("SELECT count(*) AS n FROM index_versions").fetchone() == {"n": 0}


def test_a_version_stays_what_it_was_begun_as(connection: Connection) -> None:
    begin(connection)
    with pytest.raises(DataError, match="expected the embedder that index version .* found another"):
        begin(connection, embedder="another")


def test_the_longest_vectors_are_taken(connection: Connection) -> None:
    for number, (vector_type, dimensions) in enumerate([("vector", 2000), ("halfvec", 4000)]):
        version = begin(connection, f"r{number}", vector_type=vector_type, dimensions=dimensions)
        vector = np.ones(dimensions, dtype=np.float32)
        index_tables.replace_documents(connection, version, ["a"], [row("a", embedding=vector)])
        index_tables.build_indexes(connection, version)
        assert len(rows_of(connection, version)) == 1


def test_each_corpus_has_its_own_current_version(connection: Connection) -> None:
    mine, other = begin(connection, "r1"), begin(connection, "r2", corpus="default")
    connection.execute("UPDATE index_versions SET status = 'current'")
    assert index_tables.get(connection, None, "manuals").version == mine.version
    assert index_tables.get(connection, None).version == other.version
    assert index_tables.lock_current(connection, "nobody's") is None
    with pytest.raises(DataError, match="current index version of corpus nobody's, found none"):
        index_tables.get(connection, None, "nobody's")


def test_what_serves_is_not_written(connection: Connection) -> None:
    version = begin(connection)
    connection.execute("UPDATE index_versions SET status = 'current'")
    with pytest.raises(DataError, match="found current"):
        index_tables.replace_documents(connection, version, ["a"], [row("a")])
    with pytest.raises(DataError, match="found it current"):
        begin(connection)


def test_documents_are_replaced_whole(connection: Connection) -> None:
    version = begin(connection)
    index_tables.replace_documents(
        connection, version, ["a", "b"], [row("a", n, f"text {n}") for n in range(5)] + [row("b")]
    )
    index_tables.replace_documents(connection, version, ["a"], iter([row("a", 0, "new")]))
    assert [(found["document_uri"], found["text"]) for found in rows_of(connection, version)] == [
        ("a", "new"),
        ("b", "an owl sleeps"),
    ]


def test_unchanged_documents_are_copied_and_moved_ones_under_their_new_name(connection: Connection) -> None:
    base, version = begin(connection, "r1"), begin(connection, "r2", vector_type="halfvec")
    before = [
        row("stays", 0, "über\nowls", page=3, last_page=4, covered=["O"]),
        row("old", 0, "π \\ 'x'"),
        row("old", 1, "b"),
        row("gone"),
    ]
    index_tables.replace_documents(connection, base, ["stays", "old", "gone"], before)
    listed = [("stays", None), ("new", "old"), ("never there", None)]
    index_tables.list_uris(connection, "unchanged", listed)
    for _try in range(2):
        assert index_tables.copy_documents(connection, base, version, "unchanged") == 3
    found = {(item["document_uri"], item["ordinal"]): item for item in rows_of(connection, version)}
    assert set(found) == {("stays", 0), ("new", 0), ("new", 1)}
    assert found["new", 0]["chunk_id"] == row("new", 0, "π \\ 'x'")["chunk_id"], "as index_documents computes it"
    assert (found["stays", 0]["chunk_id"], found["stays", 0]["page"]) == (before[0]["chunk_id"], 3)
    assert (found["stays", 0]["last_page"], found["stays", 0]["covered"]) == (4, ["O"])


def test_tables_made_before_it_was_kept_how_far_a_chunk_reaches_are_searched_and_copied(
    new_database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in sorted(SQL_FOLDER.glob("[0-9]*.sql")):
        if path.name < "007":
            (tmp_path / path.name).write_text(path.read_text())
    url = str(new_database("older"))
    with monkeypatch.context() as patch:
        patch.setattr(database, "SQL_FOLDER", tmp_path)
        # As code of then read a version.
        known = [name for name in Version.__dataclass_fields__ if name != "base_table"]
        patch.setattr(versions, "_FIELDS", sql.SQL(", ").join(map(sql.Identifier, known)))
        migrate(url)
        with connect(url) as connection:
            base, retired = begin(connection), begin(connection, "retired")
            for name in ("last_page", "covered"):
                connection.execute(sql.SQL("ALTER TABLE {} DROP COLUMN {}").format(base.table, sql.Identifier(name)))
            connection.execute(
                sql.SQL(
                    'INSERT INTO {} (chunk_id, document_uri, ordinal, title, headings, text, tokens, start, "end", page, chunk_sha256, embedding)'
                    " VALUES ('c', 'a', 0, 'T', '{{Owls}}', 'an owl', 2, 0, 6, 3, 's', '[1,0,0]')"
                ).format(base.table)
            )
            connection.execute(sql.SQL("DROP TABLE {}").format(retired.table))
            connection.execute("UPDATE index_versions SET status = 'retired' WHERE version = %s", (retired.version,))
    assert migrate(url) == [path.name for path in sorted(SQL_FOLDER.glob("[0-9]*.sql")) if path.name >= "007"]
    with connect(url) as connection:
        version = begin(connection, "r2")
        index_tables.list_uris(connection, "unchanged", [("a", None)])
        index_tables.copy_documents(connection, base, version, "unchanged")
        for made in (base, version):
            index_tables.build_indexes(connection, made)
            for where in (Filters(first_page=3, last_page=3), Filters(heading="Owls")):
                (hit,) = search(connection, made.version, [1, 0, 0], 5, where=where)
                assert (hit.page, hit.last_page, hit.headings, hit.covered) == (3, 3, ("Owls",), ("Owls",))
            assert search(connection, made.version, [1, 0, 0], 5, where=Filters(first_page=4)) == []


def test_only_listed_documents_are_kept_and_counted(connection: Connection) -> None:
    version = begin(connection)
    index_tables.replace_documents(connection, version, ["a", "b", "c"], [row("a"), row("b"), row("c"), row("c", 1)])
    index_tables.build_indexes(connection, version)
    index_tables.list_uris(connection, "kept", [("a", None), ("c", None)])
    index_tables.list_uris(connection, "kept", [("c", None), ("b", None)])
    assert index_tables.keep_only(connection, version, "kept") == 1
    assert list(index_tables.documents_in(connection, version)) == [("b", 1), ("c", 2)]
    assert indexes_of(connection, version) == {"pkey", "document_uri_ordinal_key"}, "nothing is deleted under HNSW"


def test_documents_are_streamed(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_FETCHED", 2)
    version = begin(connection)
    uris = [f"d{number}" for number in range(7)]
    index_tables.replace_documents(connection, version, uris, [row(uri) for uri in uris])
    assert [uri for uri, _chunks in index_tables.documents_in(connection, version)] == uris


def indexes_of(connection: Connection, version: Version) -> set[str]:
    found = connection.execute("SELECT indexname FROM pg_indexes WHERE tablename = %s", (version.table_name,))
    return {item["indexname"].removeprefix(f"{version.table_name}_") for item in found}


def test_indexes_are_made_once_and_leave_before_a_load(connection: Connection) -> None:
    version = begin(connection)
    for _try in range(2):
        index_tables.build_indexes(connection, version)
    assert {"hnsw", "words", "metadata", "prefix"} < indexes_of(connection, version)
    index_tables.replace_documents(connection, version, ["a"], [row("a")])
    assert not {"hnsw", "words", "metadata", "prefix"} & indexes_of(connection, version)


@pytest.mark.parametrize(("safe_from", "workers"), [((0, 8, 2), 3), ((99, 0), 0)])
def test_one_process_builds_where_parallel_builds_are_not_safe(
    safe_from: tuple[int, ...], workers: int, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexes, "SAFE_PARALLEL_BUILDS", safe_from)
    connection.execute("SET LOCAL max_parallel_maintenance_workers = 3")
    assert indexes.build_workers(connection) == workers


def test_words_follow_what_is_loaded_after_them(connection: Connection) -> None:
    version = begin(connection)
    index_tables.build_indexes(connection, version)
    index_tables.replace_documents(connection, version, ["a"], [row("a", text="herons")])
    index_tables.build_indexes(connection, version)
    assert rows_of(connection, version)[0]["words"] == "'bird':1A 'heron':2"


def test_memory_follows_the_rows_within_bounds(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    assert indexes.estimated_bytes(30_000, 384, "vector") == pytest.approx(112e6, rel=0.05)
    assert indexes.estimated_bytes(30_000, 384, "halfvec") < indexes.estimated_bytes(30_000, 384, "vector")
    version = begin(connection)
    assert indexes.build_memory(connection, version) == indexes.LEAST_MEMORY
    monkeypatch.setattr(indexes, "estimated_bytes", lambda *_values: 2**50)
    assert indexes.build_memory(connection, version) == indexes.MOST_MEMORY
    connection.execute("SET LOCAL maintenance_work_mem = '3GB'")
    assert indexes.build_memory(connection, version) == 3 * 2**30, "an operator may give more"


def test_one_process_builds_where_memory_cannot_be_shared(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(indexes, "build_memory", lambda *_values: 2**40)  # more than any /dev/shm
    monkeypatch.setattr(indexes, "build_workers", lambda *_values: 1)
    version = begin(connection)
    # A table as small as ours would not be built in parallel unless it is told to.
    connection.execute(sql.SQL("ALTER TABLE {} SET (parallel_workers = 1)").format(version.table))
    index_tables.replace_documents(connection, version, ["a"], [row("a")])
    index_tables.build_indexes(connection, version)
    assert "is built by one process" in caplog.text
    assert "hnsw" in indexes_of(connection, version)


def test_local_settings_end_with_their_block(url: str) -> None:
    def value(connection: Connection) -> str:
        found = connection.execute("SELECT current_setting('enable_seqscan') AS v").fetchone()
        return str(found["v"]) if found else ""

    with connect(url) as connection:
        for inside in (False, True):
            if inside:
                connection.execute("SELECT 1")
            with local_settings(connection, {"enable_seqscan": "off"}):
                assert value(connection) == "off"
            assert value(connection) == "on", f"inside another transaction: {inside}"
            connection.commit()
