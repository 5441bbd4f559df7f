"""`vector_load`, `index_build`, `unchanged_rows`: what filling an index version costs.

Each has a Postgres of its own (the embedded stack's), goes through `tasks.knowledge.index_tables`, and interleaves what
it compares. The vectors are random ones of length 1: what is measured does not depend on them.
"""

import hashlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import sql

from benchmarks.result import Result
from local.stack import EmbeddedStack
from tasks.database import Connection, connect, migrate
from tasks.knowledge import index_tables
from tasks.knowledge.index_tables import Version
from tasks.knowledge.index_tables.contents import COLUMNS

ROWS, DIMENSIONS, ROUNDS = 20_000, 384, 5
CHUNKS_A_DOCUMENT = 10
OVER_TEXT, OF_SERVER, OVER_INDEXED, OVER_UPSERT = 15.0, 0.55, 4.0, 25.0
TEXT_ROWS = 2_000  # the slow way is measured on fewer rows; rates are compared
UPSERT_ROWS = 2_000
_WORDS = [
    f"{stem}{end}"
    for stem in ("index", "search", "chunk", "train", "answer", "batch")
    for end in ("", "s", "ing", "ed")
]


def vector_load() -> Result:
    """Rows a second into a version: our binary load over vectors sent as text, and over the server's own INSERT ... SELECT."""
    rows = made_rows()
    with database() as connection:
        source = _begin(connection, "source")
        index_tables.replace_documents(connection, source, [], rows)
        connection.commit()

        def binary(version: Version) -> int:
            index_tables.replace_documents(connection, version, [], rows)
            return len(rows)

        def server(version: Version) -> int:
            names = _names()
            return connection.execute(
                sql.SQL("INSERT INTO {} ({names}) SELECT {names} FROM {}").format(
                    version.table, source.table, names=names
                )
            ).rowcount

        rates = _rates(
            connection,
            {
                "binary": binary,
                "text": lambda version: _upsert_as_text(connection, version, rows[:TEXT_ROWS]),
                "server": server,
            },
        )
    over, share = rates["binary"] / rates["text"], rates["binary"] / rates["server"]
    return Result(
        figure=f"{over:.1f} x text, {share:.2f} of INSERT ... SELECT",
        bound=f"{OVER_TEXT:g} x, {OF_SERVER:g}",
        holds=over >= OVER_TEXT and share >= OF_SERVER,
        details=[f"{name}: {rate:,.0f} rows/s (best of {ROUNDS})" for name, rate in rates.items()],
    )


def index_build() -> Result:
    """Seconds to load and then build, over loading into a table that has its HNSW index."""
    rows = made_rows()
    with database() as connection:

        def after(version: Version) -> int:
            index_tables.replace_documents(connection, version, [], rows)
            index_tables.build_indexes(connection, version)
            return len(rows)

        def into(version: Version) -> int:
            index_tables.build_indexes(connection, version)
            _copy(connection, version, rows)
            return len(rows)

        rates = _rates(connection, {"load, then build": after, "load into the index": into}, rounds=2)
    over = rates["load, then build"] / rates["load into the index"]
    return Result(
        figure=f"{over:.1f} x",
        bound=f"{OVER_INDEXED:g} x",
        holds=over >= OVER_INDEXED,
        details=[f"{name}: {rate:,.0f} rows/s (best of 2)" for name, rate in rates.items()],
    )


def unchanged_rows() -> Result:
    """Rows a second that a sync takes over unchanged, over an upsert of them into a table with its HNSW index.

    Told beside it: the same with the new version's own indexes, which a sync builds after it has written all rows.
    """
    rows = made_rows()
    uris = sorted({row["document_uri"] for row in rows})
    with database() as connection:
        base = _begin(connection, "base")
        index_tables.replace_documents(connection, base, [], rows)
        index_tables.build_indexes(connection, base)
        connection.commit()

        def ours(version: Version) -> int:
            index_tables.list_uris(connection, "unchanged", ((uri, None) for uri in uris))
            return index_tables.copy_documents(connection, base, version, "unchanged")

        def whole(version: Version) -> int:
            copied = ours(version)
            index_tables.build_indexes(connection, version)
            return copied

        def upsert(_version: Version) -> int:
            return _upsert(connection, base, rows[:UPSERT_ROWS])

        rates = _rates(connection, {"ours": ours, "upsert": upsert})
        rates |= _rates(connection, {"ours, and their indexes built": whole}, rounds=2)
    over, with_build = rates["ours"] / rates["upsert"], rates["ours, and their indexes built"] / rates["upsert"]
    return Result(
        figure=f"{over:.1f} x ({with_build:.1f} x with the indexes of the new version built)",
        bound=f"{OVER_UPSERT:g} x",
        holds=over >= OVER_UPSERT,
        details=[
            *(f"{name}: {rate:,.0f} rows/s (best)" for name, rate in rates.items()),
            "ours: the documents' names to the server, their rows copied there from the version before",
        ],
    )


@contextmanager
def database() -> Iterator[Connection]:
    """Start a Postgres with the schema in a temporary folder; it is gone after the block."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedStack(folder, parts=("postgres",), ports="free") as stack:
        migrate(stack.database_url)
        with connect(stack.database_url) as connection:
            yield connection


def made_rows(count: int = ROWS) -> list[dict[str, Any]]:
    """Rows with random vectors of length 1 and texts of random words."""
    import numpy

    vectors = numpy.random.default_rng(0).normal(size=(count, DIMENSIONS)).astype(numpy.float32)
    vectors /= numpy.linalg.norm(vectors, axis=1, keepdims=True)
    chance = random.Random(0)
    rows = []
    for number in range(count):
        uri, ordinal = f"bench:documents/{number // CHUNKS_A_DOCUMENT}", number % CHUNKS_A_DOCUMENT
        text = " ".join(chance.choices(_WORDS, k=35))
        rows.append(
            {
                "chunk_id": hashlib.sha256(f"{uri}\n{ordinal}\n{text}".encode()).hexdigest()[:32], "document_uri": uri,
                "ordinal": ordinal, "title": "Title", "headings": [], "text": text, "tokens": 35, "start": 0,
                "end": len(text), "page": None, "last_page": None, "covered": None, "metadata": {},
                "chunk_sha256": hashlib.sha256(text.encode()).hexdigest(), "embedding": vectors[number],
            }
        )  # fmt: skip
    return rows


def _begin(connection: Connection, run: str) -> Version:
    about = {"fingerprint": "b", "corpus": "b", "corpus_sha256": "b", "embedder": "b", "dimensions": DIMENSIONS}
    return index_tables.begin(connection, run, about)


def _rates(connection: Connection, ways: dict[str, Callable[[Version], int]], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the best rows a second of each way, each into a fresh version; ways alternate."""
    best = dict.fromkeys(ways, 0.0)
    for number in range(rounds):
        for name, way in ways.items():
            version = _begin(connection, f"{name} {number}")
            connection.commit()
            begun = time.perf_counter()
            done = way(version)
            connection.commit()
            best[name] = max(best[name], done / (time.perf_counter() - begun))
            index_tables.drop(connection, version.version)
            connection.commit()
    return best


def _names() -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(name) for name, _type in COLUMNS)


def _copy(connection: Connection, version: Version, rows: list[dict[str, Any]]) -> None:
    """Load as we do, but leave the indexes where they are."""
    from tasks.knowledge.index_tables import contents

    contents.load_rows(connection, version, rows)


def _upsert_statement(version: Version, embedding: str) -> sql.Composed:
    marks = [sql.SQL(f"%({name})s{embedding if name == 'embedding' else ''}") for name, _type in COLUMNS]
    changes = [sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name, _type in COLUMNS[1:]]
    return sql.SQL("INSERT INTO {} ({}) VALUES ({}) ON CONFLICT (chunk_id) DO UPDATE SET {}").format(
        version.table, _names(), sql.SQL(", ").join(marks), sql.SQL(", ").join(changes)
    )


def _upsert_as_text(connection: Connection, version: Version, rows: list[dict[str, Any]]) -> int:
    """What is usual: executemany, each vector as a list of numbers in text."""
    with connection.cursor() as cursor:
        cursor.executemany(
            _upsert_statement(version, "::vector"),
            [
                {**row, "metadata": "{}", "embedding": "[" + ",".join(map(str, row["embedding"].tolist())) + "]"}
                for row in rows
            ],
        )
    return len(rows)


def _upsert(connection: Connection, version: Version, rows: list[dict[str, Any]]) -> int:
    """Write rows that are there already once more, with vectors in binary form: the best of its kind."""
    with connection.cursor() as cursor:
        cursor.executemany(_upsert_statement(version, ""), [{**row, "metadata": "{}"} for row in rows])
    return len(rows)
