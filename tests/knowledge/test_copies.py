"""Copies among many documents, in a real database: which one is kept does not depend on how work was shared out."""

import random
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256

import pytest

from tasks.database import Connection, connect, migrate
from tasks.knowledge.copies import Copy, Row, copies
from tasks.knowledge.near_duplicates import bands, signature, similarity

pytestmark = pytest.mark.integration
WORDS = [f"w{number}" for number in range(5000)]
THRESHOLD = 0.9


@pytest.fixture(scope="module")
def database(new_database: Callable[[str], str]) -> str:
    url = new_database("copies")
    migrate(url)
    return url


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    with connect(database) as opened:
        opened.execute("CREATE TEMP TABLE staying (uri text PRIMARY KEY)")
        yield opened
        opened.rollback()


def row(uri: str, text: str) -> Row:
    signed = signature(text)
    return Row(uri, sha256(text.encode()).hexdigest(), signed, bands(signed, THRESHOLD))


def text_of(seed: int, length: int = 600) -> list[str]:
    return random.Random(seed).choices(WORDS, k=length)


def changed(words: list[str], first: int, count: int) -> str:
    """Return the words with `count` of them, from the place `first`, changed."""
    return " ".join(f"z{word}" if first <= at < first + count else word for at, word in enumerate(words))


def found(
    connection: Connection, rows: Iterable[Row], corpus: str = "default", threshold: float = THRESHOLD
) -> dict[str, str]:
    return {copy.uri: copy.same_as for copy in copies(connection, corpus, rows, threshold)}


def index(
    connection: Connection, row: Row, *, corpus: str = "default", status: str = "indexed", stays: bool = True
) -> None:
    connection.execute(
        "INSERT INTO documents (corpus, uri, title, content_sha256, text_sha256, bytes, chunks, status, signature, bands)"
        " VALUES (%s, %s, '', '', %s, 1, 1, %s, %s, %s)",
        (corpus, row.uri, row.text_sha256, status, row.signature, list(row.bands)),
    )
    if stays:
        connection.execute("INSERT INTO staying VALUES (%s)", (row.uri,))


def test_exact_and_near_copies_and_what_is_neither(connection: Connection) -> None:
    words = text_of(1)
    rows = [
        row("b", " ".join(words)),
        row("a", changed(words, 0, 10)),  # nearly b
        row("c", " ".join(words)),  # b again, which itself is a copy of a
        row("d", changed(words, 0, 300)),  # half of b
        row("e", "short text"),
        row("f", "short text"),
        row("g", "short texts"),
        row("h", " ".join(text_of(2))),
    ]
    assert found(connection, rows) == {"b": "a", "c": "a", "f": "e"}
    assert found(connection, rows, threshold=1) == {"c": "b", "f": "e"}


def test_a_copy_says_how_similar_it_is(connection: Connection) -> None:
    words = text_of(1)
    one, other, same = row("a", " ".join(words)), row("b", changed(words, 0, 10)), row("c", " ".join(words))
    near = similarity(one.signature, other.signature)
    assert THRESHOLD <= near < 1
    assert list(copies(connection, "default", [one, other, same], THRESHOLD)) == [
        Copy("b", "a", near, False),
        Copy("c", "a", 1.0, True),
    ]


def test_a_chain_keeps_its_ends(connection: Connection) -> None:
    words = text_of(3)
    rows = [row("a", changed(words, 0, 24)), row("b", " ".join(words)), row("c", changed(words, 300, 24))]
    assert similarity(rows[0].signature, rows[1].signature) >= THRESHOLD
    assert similarity(rows[1].signature, rows[2].signature) >= THRESHOLD
    assert similarity(rows[0].signature, rows[2].signature) < THRESHOLD
    assert found(connection, rows) == {"b": "a"}  # c is near to b only, which is no kept document


def test_what_stays_in_the_corpus_stands_for_new_copies(connection: Connection) -> None:
    words = text_of(4)
    text = " ".join(words)
    index(connection, row("z", text))
    index(connection, row("leaving", " ".join(text_of(5))), stays=False)
    index(connection, row("rejected", " ".join(text_of(6))), status="rejected")
    index(connection, row("elsewhere", " ".join(text_of(7))), corpus="other")
    rows = [row("a", text), row("b", changed(words, 0, 10))]
    rows += [row(f"new{seed}", " ".join(text_of(seed))) for seed in (5, 6, 7)]
    assert found(connection, rows) == {"a": "z", "b": "z"}
    assert found(connection, [row("new", " ".join(text_of(7)))], corpus="other") == {"new": "elsewhere"}


def test_a_document_is_no_copy_of_itself(connection: Connection) -> None:
    index(connection, row("a", " ".join(text_of(8))))
    assert found(connection, [row("a", " ".join(text_of(8)))]) == {}


def test_documents_without_signatures_are_compared_exactly(connection: Connection) -> None:
    index(connection, row("short", "three small words"))
    connection.execute("UPDATE documents SET signature = NULL WHERE uri = 'short'")
    assert found(connection, [row("a", "three small words"), row("b", "three large words")]) == {"a": "short"}


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_rows_says_nothing(seed: int, connection: Connection) -> None:
    rows = []
    for family in range(40):
        words = text_of(family, 300)
        rows += [row(f"{at:02d}-{family}", changed(words, 7 * at, 1 + 3 * at)) for at in range(5)]
    expected = found(connection, rows)
    assert len(expected) > 40
    assert not set(expected.values()) & set(expected)
    random.Random(seed).shuffle(rows)
    assert found(connection, rows) == expected


def test_memory_stays_flat(connection: Connection) -> None:
    def peak(count: int) -> int:
        text = " ".join(text_of(9, 40))

        def rows() -> Iterator[Row]:
            for number in range(count):
                # Every tenth is a copy; all others have texts of their own.
                yield row(f"{number:06d}", text if number % 10 == 0 else f"{number} " + " ".join(text_of(number, 20)))

        tracemalloc.start()
        try:
            assert sum(1 for _ in copies(connection, "default", rows(), THRESHOLD)) == count // 10 - 1
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(200)  # loads what is loaded once
    few, many = peak(15_000), peak(45_000)  # both fill what is looked at in one go
    assert many < few + 300_000  # 30,000 more documents: their signatures alone are 15 MB
