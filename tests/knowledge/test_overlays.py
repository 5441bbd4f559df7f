"""Versions that stand on an earlier one's table, against a real Postgres: read, searched, gone back to, dropped, erased."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from psycopg import sql

from tasks.database import Connection, connect, migrate
from tasks.errors import DataError, TryAgain
from tasks.knowledge import erasure_rows, index_tables
from tasks.knowledge.erasure_rows import delete_rows, versions_with
from tasks.knowledge.index_tables import Version, overlays
from tasks.knowledge.search import Filters, candidates, search
from tests.knowledge.test_index_tables import begin, row, rows_of

pytestmark = pytest.mark.integration
DOCUMENTS = 300


@pytest.fixture(scope="module")
def url(new_database: Any) -> str:
    found = str(new_database("overlays"))
    migrate(found)
    return found


@pytest.fixture
def connection(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """A connection whose transaction is rolled back; tables of any size are stood on."""
    monkeypatch.setattr(overlays, "LEAST_ROWS", 1)
    with connect(url) as opened:
        opened.execute("SELECT 1")
        yield opened
        opened.rollback()


def chunk(uri: str, seed: int = 0, ordinal: int = 0) -> dict[str, Any]:
    """A chunk whose text and vector follow from URI and seed."""
    vector = np.random.default_rng([seed, ordinal, *uri.encode()]).normal(size=3).astype(np.float32)
    text = f"text {seed} of {uri}"
    about = {"letter": uri[-1]}
    return row(uri, ordinal, text, embedding=vector / np.linalg.norm(vector), metadata=about)


def names(first: int = 0, last: int = DOCUMENTS) -> list[str]:
    return [f"d{number:03}" for number in range(first, last)]


def filled(connection: Connection, run: str, chunks: list[dict[str, Any]], **changes: Any) -> Version:
    version = begin(connection, run, **changes)
    index_tables.replace_documents(connection, version, sorted({one["document_uri"] for one in chunks}), chunks)
    return version


def base_of(connection: Connection) -> Version:
    """A version with two chunks of each document."""
    version = filled(connection, "base", [chunk(uri, 0, ordinal) for uri in names() for ordinal in (0, 1)])
    index_tables.build_indexes(connection, version)
    return version


def laid(
    connection: Connection, base: Version, run: str, new: list[dict[str, Any]], stays: list[str], share: float = 0.5
) -> Version | None:
    version = filled(connection, run, new)
    index_tables.list_uris(connection, "unchanged", ((uri, None) for uri in stays))
    found = index_tables.lay_over(connection, base, version, "unchanged", share)
    if found is not None:
        index_tables.build_indexes(connection, found)
    return found


def contents(connection: Connection, version: Version) -> list[tuple[Any, ...]]:
    return [(one["document_uri"], one["ordinal"], one["text"], one["words"]) for one in rows_of(connection, version)]


def exact(connection: Connection, version: Version, vector: Any, k: int, where: Filters | None = None) -> list[str]:
    condition, values = (where or Filters()).condition()
    query = sql.SQL("SELECT chunk_id FROM {} WHERE {} ORDER BY embedding <=> %(v)s, document_uri, ordinal LIMIT %(k)s")
    with index_tables.scan(connection, exact=True):
        found = connection.execute(query.format(version.table, condition), values | {"v": vector, "k": k})
        return [one["chunk_id"] for one in found]


def test_it_shows_what_stays_and_what_is_new_and_nothing_of_what_went(connection: Connection) -> None:
    base = base_of(connection)
    new = [chunk("d000", 1), chunk("n000", 1)]
    version = laid(connection, base, "next", new, names(2))
    assert version is not None and version.base_table == base.table_name
    kept = [one for one in contents(connection, base) if one[0] not in ("d000", "d001")]
    assert [one for one in contents(connection, version) if one[0] in names(2)] == kept
    assert [(uri, text) for uri, _ordinal, text, _words in contents(connection, version) if uri not in names(2)] == [
        ("d000", "text 1 of d000"),
        ("n000", "text 1 of n000"),
    ]
    own = connection.execute(sql.SQL("SELECT count(*) AS n FROM {}").format(version.own)).fetchone()
    assert own == {"n": 2}
    assert len(contents(connection, base)) == 2 * DOCUMENTS  # what serves is untouched


def test_however_often_documents_change_it_holds_what_a_copy_would(connection: Connection) -> None:
    """Random changes of five syncs, each from the one before: a document changes, goes, comes back with an old text."""
    chance, base = random.Random(7), base_of(connection)
    serving, copy, there = base, base, dict.fromkeys(names(), 0)
    for number in range(1, 6):
        touched = chance.sample(names(0, DOCUMENTS + 20), 20)
        stays = sorted(set(there) - set(touched))
        new = {uri: chance.choice((0, number)) for uri in touched if chance.random() < 0.7}
        rows = [chunk(uri, seed, ordinal) for uri, seed in new.items() for ordinal in (0, 1)]
        there = {uri: seed for uri, seed in there.items() if uri in stays} | new
        version = laid(connection, serving, f"laid {number}", rows, stays)
        assert version is not None and version.base_table == base.table_name
        plain = filled(connection, f"copied {number}", rows)
        index_tables.copy_documents(connection, copy, plain, "unchanged")
        index_tables.build_indexes(connection, plain)
        assert contents(connection, version) == contents(connection, plain)
        again = filled(connection, f"copied from what is laid {number}", rows)
        index_tables.copy_documents(connection, serving, again, "unchanged")
        index_tables.build_indexes(connection, again)
        assert contents(connection, again) == contents(connection, plain)
        assert {one[0] for one in contents(connection, version)} == set(there)
        serving, copy = version, plain


@pytest.mark.parametrize("where", [Filters(), Filters(metadata={"letter": "3"})])
@pytest.mark.parametrize("compared", [0, 10_000], ids=["by index", "one by one"])
def test_a_search_finds_the_nearest_of_both_tables(
    connection: Connection, where: Filters, compared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "EXACT_ROWS", compared)
    monkeypatch.setattr(candidates, "SMALL_LAYER", compared)
    base = base_of(connection)
    version = laid(connection, base, "next", [chunk(uri, 1) for uri in names(0, 30)], names(30))
    assert version is not None
    for seed in range(20):
        vector = chunk("question", seed)["embedding"]
        for k in (1, 10, 45):
            with index_tables.scan(connection, exact=False):
                found = candidates.nearest(connection, version, vector, k, where, 200)
            assert [one["chunk_id"] for one in found] == exact(connection, version, vector, k, where)


@pytest.mark.parametrize("where", [Filters(), Filters(metadata={"letter": "3"})])
def test_the_first_hits_are_the_same_however_many_are_asked_for(
    connection: Connection, where: Filters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the version's own table holds less than is asked for, and where vectors are equal."""
    monkeypatch.setattr(candidates, "EXACT_ROWS", 20)
    base = base_of(connection)
    equal = chunk("d200")["embedding"]
    new = [chunk(uri, 1) | ({"embedding": equal} if uri < "d020" else {}) for uri in names(0, 60)]
    version = laid(connection, base, "next", new, names(60))
    assert version is not None
    for vector in (equal, chunk("question", 3)["embedding"]):
        found = [candidates.nearest(connection, version, vector, k, where, 10) for k in (100, 60, 30, 5, 1)]
        longest = [one["chunk_id"] for one in found[0]]
        for shorter in found[1:]:
            assert [one["chunk_id"] for one in shorter] == longest[: len(shorter)]


def test_the_planner_asks_the_index_of_the_earlier_table_by_itself(connection: Connection) -> None:
    """Nothing is forbidden to it, as in a search: documents that are not shown are looked up for rows that HNSW yields."""
    many = [chunk(f"d{number:05}") for number in range(6_000)]
    base = filled(connection, "base", many)
    index_tables.build_indexes(connection, base)
    stays = [one["document_uri"] for one in many[300:]]
    version = laid(connection, base, "next", [chunk(f"d{number:05}", 1) for number in range(300)], stays)
    assert version is not None
    own, earlier = index_tables.layers(version)
    assert own.own and not earlier.own
    query = sql.SQL("EXPLAIN ") + candidates._NEAREST.format(
        fields=candidates._FIELDS, table=earlier.table, condition=earlier.condition, order=candidates._APPROXIMATE
    )
    vector = chunk("question")["embedding"]
    plan = connection.execute(query, {"vector": vector, "rows": 40, "k": 10, "block": 40}).fetchall()
    # The few documents that are not shown may be read through for each row; the table may not.
    assert f"Index Scan using {base.table_name}_hnsw" in str(plan) and "Sort" not in str(plan[:5]), plan


def test_words_are_found_in_both_tables(connection: Connection) -> None:
    base = base_of(connection)
    version = laid(connection, base, "next", [chunk("d000", 1), chunk("n000", 1)], names(2))
    assert version is not None
    vector = chunk("question")["embedding"]
    hits = search(connection, version.version, vector, 600, text="text", mode="text")
    assert len(hits) == 2 * (DOCUMENTS - 2) + 2
    assert {hit.document_uri for hit in hits} == {*names(2), "d000", "n000"}


@pytest.mark.parametrize(
    ("new", "stays_from", "share"),
    [(32, 0, 0.05), (0, 16, 0.05), (0, DOCUMENTS, 0.5), (0, 0, 0.0)],
    ids=["too much is new", "too much is gone", "nothing stays", "never"],
)
def test_where_much_changed_nothing_is_laid_over(
    connection: Connection, new: int, stays_from: int, share: float
) -> None:
    base = base_of(connection)
    added = [chunk(f"n{number}") for number in range(new)]
    assert laid(connection, base, "next", added, names(stays_from), share) is None
    left = index_tables.of_run(connection, "next")
    assert left is not None and left.base_table is None


def test_a_small_table_and_one_of_another_kind_are_not_stood_on(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(connection)
    assert laid(connection, replace(base, fingerprint="other"), "next", [chunk("n")], names()) is None
    with monkeypatch.context() as patch:
        patch.setattr(overlays, "LEAST_ROWS", 10_000)
        assert laid(connection, base, "next", [chunk("n")], names()) is None
    monkeypatch.setattr(overlays, "MOST_HIDDEN", 3)
    assert laid(connection, base, "next", [chunk("n")], names(2)) is None
    assert laid(connection, base, "next", [chunk("n")], names(1)) is not None


def test_an_old_table_is_not_stood_on(connection: Connection) -> None:
    """However often a version stood on it since: what was deleted in the meantime is still in it."""
    base = base_of(connection)
    second = laid(connection, base, "second", [chunk("n000")], names())
    assert second is not None
    connection.execute(
        "UPDATE index_versions SET created_at = now() - interval '31 days' WHERE version = %s", (base.version,)
    )
    assert laid(connection, second, "third", [chunk("n001")], [*names(), "n000"]) is None


def test_a_version_begun_again_stands_by_itself(connection: Connection) -> None:
    base = base_of(connection)
    version = laid(connection, base, "next", [chunk("n000", 1)], names(1))
    assert version is not None
    again = begin(connection, "next")
    assert again.base_table is None
    assert [one[0] for one in contents(connection, again)] == ["n000"]
    index_tables.list_uris(connection, "unchanged", ((uri, None) for uri in names(1)))
    once_more = index_tables.lay_over(connection, base, again, "unchanged", 0.5)
    assert once_more is not None
    index_tables.build_indexes(connection, once_more)
    assert len(contents(connection, once_more)) == 2 * (DOCUMENTS - 1) + 1


def test_who_comes_late_does_not_write_into_what_another_try_finished(connection: Connection) -> None:
    base = base_of(connection)
    late = filled(connection, "next", [chunk("n000", 1)])
    index_tables.list_uris(connection, "unchanged", ((uri, None) for uri in names()))
    laid_over = index_tables.lay_over(connection, base, late, "unchanged", 0.5)
    assert laid_over is not None
    with pytest.raises(TryAgain, match="another try has finished it"):
        index_tables.replace_documents(connection, late, ["n000"], [chunk("n000", 2)])
    index_tables.lock_building(connection, laid_over)  # who finished it may


def test_it_is_whole_only_with_both_tables(connection: Connection) -> None:
    base = base_of(connection)
    version = laid(connection, base, "next", [chunk("n000", 1)], names())
    assert version is not None
    connection.execute("UPDATE index_versions SET chunks = %s WHERE run = 'next'", (2 * DOCUMENTS + 1,))
    index_tables.require_whole(connection, version)
    with connection.transaction(force_rollback=True):
        index_tables.drop_indexes(connection, base)
        with pytest.raises(DataError, match="no vector index"):
            index_tables.require_whole(connection, version)
    connection.execute(sql.SQL("DELETE FROM {} WHERE document_uri = 'd005'").format(base.table))
    with pytest.raises(DataError, match=r"expected 601 chunks .*, found 599"):
        index_tables.require_whole(connection, version)


def test_what_is_stood_on_is_dropped_last(connection: Connection) -> None:
    base = base_of(connection)
    version = laid(connection, base, "next", [chunk("n000", 1)], names())
    assert version is not None
    with pytest.raises(DataError, match=f"no other stands on, found {version.version} on {base.version}"):
        index_tables.drop(connection, base.version)
    assert index_tables.drop(connection, version.version) and index_tables.drop(connection, base.version)
    left = connection.execute(r"SELECT relname FROM pg_class WHERE relname LIKE 'chunks\_v%'").fetchall()
    assert left == []


@pytest.mark.parametrize("unsafe", [False, True], ids=["safe deletes", "unsafe deletes"])
@pytest.mark.parametrize("uri", ["d005", "d000", "n000"])
def test_an_erased_document_is_gone_from_every_version(
    connection: Connection, uri: str, unsafe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if unsafe:
        monkeypatch.setattr(erasure_rows, "SAFE_DELETES", (99,))
    base = base_of(connection)
    version = laid(connection, base, "next", [chunk("d000", 1), chunk("n000", 1)], names(1))
    assert version is not None
    for one in (base, version):
        count = len(contents(connection, one))
        connection.execute(
            "UPDATE index_versions SET chunks = %s, documents = %s, status = 'former' WHERE version = %s",
            (count, len({row[0] for row in contents(connection, one)}), one.version),
        )
    found = versions_with(connection, "manuals", uri)
    built: list[int] = []
    build = index_tables.build_indexes
    monkeypatch.setattr(index_tables, "build_indexes", lambda c, v: (built.append(v.version), build(c, v)))
    delete_rows(connection, found, "manuals", uri)
    touched = {"d005": [base.version], "d000": [base.version, version.version], "n000": [version.version]}
    assert built == (touched[uri] if unsafe else [])
    for one in (base, version):
        known = index_tables.get(connection, one.version)
        rows = contents(connection, known)
        assert uri not in {row[0] for row in rows}
        assert (known.chunks, known.documents) == (len(rows), len({row[0] for row in rows}))
    for table in (base.table, version.own):
        held = connection.execute(sql.SQL("SELECT 1 FROM {} WHERE document_uri = %s").format(table), (uri,))
        assert held.fetchone() is None
