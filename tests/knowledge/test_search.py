"""Search against a real Postgres: modes, filters that leave nothing out, places and ties."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from psycopg import sql

from tasks.database import Connection, connect, migrate
from tasks.errors import DataError, OptionError
from tasks.knowledge import index_tables
from tasks.knowledge.index_tables import Version
from tasks.knowledge.search import Filters, Hit, candidates, search
from tasks.knowledge.search.command import filters_of, main, require_known, shown
from tasks.settings import settings

pytestmark = pytest.mark.integration
ABOUT = {"fingerprint": "t", "corpus": "default", "corpus_sha256": "t", "embedder": "t"}
X, Y = np.array([1, 0, 0, 0], dtype=np.float32), np.array([0, 1, 0, 0], dtype=np.float32)


@pytest.fixture(scope="module")
def database(new_database: Any) -> str:
    """The address of a database with the schema and nothing else."""
    url = str(new_database("search"))
    migrate(url)
    return url


@pytest.fixture(scope="module")
def connection(database: str) -> Iterator[Connection]:
    """A connection to it."""
    with connect(database) as opened:
        yield opened


def towards(degrees: float) -> Any:
    """Return a vector at so many degrees from X, in the plane of X and Y."""
    return np.cos(np.radians(degrees)) * X + np.sin(np.radians(degrees)) * Y


def row(uri: str, text: str, vector: Any, ordinal: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "chunk_id": hashlib.sha256(f"{uri}\n{ordinal}\n{text}".encode()).hexdigest()[:32], "document_uri": uri,
        "ordinal": ordinal, "title": "T", "text": text, "tokens": 3, "start": 10 * ordinal, "end": 10 * ordinal + len(text),
        "chunk_sha256": "0", "embedding": vector,
    } | changes  # fmt: skip


def filled(connection: Connection, run: str, rows: Sequence[dict[str, Any]], **about: Any) -> Version:
    version = index_tables.begin(connection, run, {**ABOUT, "dimensions": len(rows[0]["embedding"]), **about})
    index_tables.replace_documents(connection, version, [], rows)
    index_tables.build_indexes(connection, version)
    connection.commit()
    return version


@pytest.fixture(scope="module")
def animals(connection: Connection) -> Version:
    """Five chunks, at growing angles from X; only of that about foxes is it known how far it reaches."""
    rows = [
        row("s3://b/birds", "Owls hunt mice by night.", towards(10), 0, headings=["Birds", "Owls"], page=3,
            metadata={"author": "Ann", "tags": ["night"]}),
        row("s3://b/birds", "Herons stand in shallow water.", towards(20), 1, headings=["Birds", "Herons"], page=4,
            metadata={"author": "Ann", "tags": ["night"]}),
        row("s3://b/foxes", "Foxes hunt rabbits and mice.", towards(30), title="Zygote", headings=["Foxes"], page=5,
            last_page=7, covered=["Foxes", "Prey"]),
        row("s3://c/bats", "Bats hunt moths.", towards(40), metadata={"author": "Bo"}),
        row("s3://c/cats", "Cats hunt birds, mice and owls; owls and mice hunt too.", towards(50)),
    ]  # fmt: skip
    version = filled(connection, "animals", rows)
    connection.execute("UPDATE index_versions SET status = 'current' WHERE version = %s", (version.version,))
    connection.commit()
    return version


def texts(hits: Sequence[Hit]) -> list[str]:
    return [hit.text.split()[0] for hit in hits]


def test_a_hit_tells_document_place_and_version(connection: Connection, animals: Version) -> None:
    first, second = search(connection, None, X, 2)
    assert (first.document_uri, first.ordinal, first.start, first.end) == ("s3://b/birds", 0, 0, 24)
    assert (first.headings, first.page, first.metadata["author"]) == (("Birds", "Owls"), 3, "Ann")
    assert first.score == pytest.approx(np.cos(np.radians(10))) and first.index_version == animals.version
    assert (first.parts, second.parts) == ({"vector_rank": 1}, {"vector_rank": 2})


def test_words_are_found_all_before_some_in_the_order_of_their_rank(connection: Connection, animals: Version) -> None:
    hits = search(connection, animals.version, X, 5, text="owls and mice", mode="text")
    assert set(texts(hits)[:2]) == {"Owls", "Cats"} and texts(hits)[2:] == ["Foxes"], (
        "no chunk without any of the words"
    )
    assert [hit.parts["text_rank"] for hit in hits] == [1, 2, 3]
    angles = {"Owls": 10, "Cats": 50, "Foxes": 30}
    for hit in hits:
        assert hit.score == pytest.approx(np.cos(np.radians(angles[hit.text.split()[0]]))), "always the cosine"


def test_a_word_of_the_title_is_found(connection: Connection, animals: Version) -> None:
    assert texts(search(connection, animals.version, X, 5, text="zygotes", mode="text")) == ["Foxes"]


def test_words_of_a_search_engine_are_understood(connection: Connection, animals: Version) -> None:
    def found(text: str) -> set[str]:
        return set(texts(search(connection, animals.version, X, 5, text=text, mode="text")))

    assert found("hunt -mice") == {"Bats"}, "excluded words stay excluded when too few are found"
    assert found('"hunt mice"') == {"Owls"}
    assert found("moths or herons") == {"Bats", "Herons"}
    assert found("the of and") == found("") == found("qqq & ! ( '") == set()


def test_hybrid_adds_reciprocal_ranks(connection: Connection, animals: Version) -> None:
    hits = search(connection, animals.version, X, 5, text="moths", mode="hybrid")
    assert texts(hits)[0] == "Bats", "fourth by vector, first by words"
    assert dict(hits[0].parts) == {
        "vector_rank": 4, "text_rank": 1, "text_score": hits[0].parts["text_score"], "rrf": pytest.approx(1 / 64 + 1 / 61),
    }  # fmt: skip
    assert texts(hits)[1:] == ["Owls", "Herons", "Foxes", "Cats"]
    assert "text_rank" not in hits[1].parts and hits[1].parts["rrf"] == pytest.approx(1 / 61)


def test_in_hybrid_every_mark_is_taken_for_words(connection: Connection) -> None:
    rows = [
        row("a", "What python -m does: it runs a module as a script.", towards(80)),
        row("b", "A python sleeps.", towards(70)),
        *(row(f"n{number}", "Something else.", towards(number)) for number in range(5)),
    ]
    version = filled(connection, "marks", rows)
    for question in ("what does python -m do", 'what does "python do -m"'):
        hits = search(connection, version.version, X, 2, text=question, mode="hybrid")
        assert {hit.document_uri: hit.parts.get("text_rank") for hit in hits} == {"a": 1, "b": 2}, question
    assert [hit.document_uri for hit in search(connection, version.version, X, 2, text="python -m", mode="text")] == [
        "b"
    ]


class Longest:
    """Prefers long texts."""

    def score(self, question: str, texts: Sequence[str]) -> list[float]:
        assert question == "hunt"
        return [float(len(text)) for text in texts]


def test_a_reranker_orders_more_hits_than_are_asked_for(connection: Connection, animals: Version) -> None:
    hits = search(connection, animals.version, X, 2, text="hunt", reranker=Longest())
    assert texts(hits) == ["Cats", "Herons"]
    assert dict(hits[0].parts) == {"vector_rank": 5, "rerank": 55.0}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Filters(), ["Owls", "Herons", "Foxes", "Bats", "Cats"]),
        (Filters(prefix="s3://c/"), ["Bats", "Cats"]),
        (Filters(prefix="s3://_/"), []),
        (Filters(metadata={"author": "Ann"}), ["Owls", "Herons"]),
        (Filters(metadata={"tags": ["night"]}, first_page=4), ["Herons"]),
        (Filters(metadata={"author": "Ann' OR '1'='1"}), []),
        (Filters(heading="Birds"), ["Owls", "Herons"]),
        (Filters(heading="Owls", prefix="s3://b/"), ["Owls"]),
        (Filters(first_page=3, last_page=3), ["Owls"]),
        (Filters(last_page=3), ["Owls"]),
        (Filters(first_page=6, last_page=6), ["Foxes"]),
        (Filters(first_page=5, last_page=5), ["Foxes"]),
        (Filters(first_page=7), ["Foxes"]),
        (Filters(first_page=8), []),
        (Filters(heading="Prey"), ["Foxes"]),
    ],
)
@pytest.mark.parametrize("mode", ["vector", "hybrid", "text"])
def test_filters_hold_in_every_mode(
    connection: Connection, animals: Version, where: Filters, expected: list[str], mode: Any
) -> None:
    hits = search(connection, animals.version, X, 5, text="hunt water", mode=mode, where=where)
    assert sorted(texts(hits)) == sorted(expected)
    if mode == "vector":
        assert texts(hits) == expected


def test_what_a_mode_needs_is_asked_for(connection: Connection, animals: Version) -> None:
    for more in ({"mode": "text"}, {"mode": "hybrid"}, {"reranker": Longest()}):
        with pytest.raises(OptionError, match="expected the question's text"):
            search(connection, animals.version, X, 2, **more)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="found 'hybird'. Did you mean 'hybrid'"):
        search(connection, animals.version, X, 2, text="t", mode="hybird")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="index version 999"):
        search(connection, 999, X, 2)


def test_equals_come_in_the_order_of_uri_and_ordinal(connection: Connection) -> None:
    shuffled = [(uri, ordinal) for uri in "cab" for ordinal in (2, 0, 1)]
    version = filled(connection, "ties", [row(uri, "same words", X, ordinal) for uri, ordinal in shuffled])
    for mode in ("vector", "text", "hybrid"):
        for exact in (False, True):
            with index_tables.scan(connection, exact=exact):
                hits = search(connection, version.version, X, 4, text="words", mode=mode)  # type: ignore[arg-type]
            assert [(hit.document_uri, hit.ordinal) for hit in hits] == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]


MANY, FAR, PERCENT = 20_000, 5, 200


@pytest.fixture(scope="module", params=["vector", "halfvec"])
def many(request: pytest.FixtureRequest, connection: Connection) -> tuple[Version, Any]:
    """20,000 chunks in 16 dimensions: five are marked `far` and opposite to the question, and one in a hundred `percent`."""
    chance = np.random.default_rng(7)
    question = np.zeros(16, dtype=np.float32)
    question[0] = 1
    vectors = chance.normal(size=(MANY, 16)).astype(np.float32)
    vectors[:, 0] = np.abs(vectors[:, 0])
    vectors[:FAR] = -question + 0.01 * vectors[:FAR]
    rows = [
        row(f"d{number // 10}", "t", vector, number % 10, metadata={"kind": "far" if number < FAR else "near"}
            | ({"percent": True} if number % (MANY // PERCENT) == 99 else {}))
        for number, vector in enumerate(vectors)
    ]  # fmt: skip
    return filled(connection, f"many-{request.param}", rows, vector_type=request.param), question


@pytest.mark.parametrize("through", ["the planner's way", "HNSW"])
def test_a_filter_never_makes_a_search_return_less_than_there_is(
    connection: Connection, many: tuple[Version, Any], through: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, question = many
    # HNSW gives up long before it meets the five: what is left is found by comparing all that match.
    monkeypatch.setattr(candidates, "SCAN_TUPLES", 100)
    if through == "HNSW":
        monkeypatch.setattr(candidates, "EXACT_ROWS", 0)
        for setting in ("enable_seqscan", "enable_bitmapscan", "enable_sort"):
            connection.execute(sql.SQL("SET LOCAL {} = off").format(sql.Identifier(setting)))
    far = search(connection, version.version, question, 10, where=Filters(metadata={"kind": "far"}))
    assert len(far) == FAR and all(hit.score < -0.9 for hit in far)
    for k in (10, 150):
        hits = search(connection, version.version, question, k, where=Filters(metadata={"percent": True}))
        assert len(hits) == k
    assert len(search(connection, version.version, question, 500, where=Filters(metadata={"percent": True}))) == PERCENT
    connection.rollback()


def test_hnsw_finds_what_an_exact_scan_finds_with_a_filter(
    connection: Connection, many: tuple[Version, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    version, question = many
    where, found = Filters(metadata={"percent": True}), []
    for exact_rows in (0, candidates.EXACT_ROWS):
        monkeypatch.setattr(candidates, "EXACT_ROWS", exact_rows)
        found.append(search(connection, version.version, question, 20, where=where))
    assert [hit.chunk_id for hit in found[0]] == [hit.chunk_id for hit in found[1]]
    assert len(search(connection, version.version, question, 1500)) == 1500, "more than ef_search can be"


class Wordy:
    """Prefers texts by chance, always the same ones."""

    def score(self, question: str, texts: Sequence[str]) -> list[float]:
        return [float(hash_of(text)) for text in texts]


def hash_of(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


@pytest.fixture(scope="module")
def wordy(connection: Connection) -> tuple[Version, Any]:
    """5,000 chunks with vectors and words by chance, and questions."""
    chance = np.random.default_rng(11)
    words = np.array([f"w{number}" for number in range(200)])
    vectors = chance.normal(size=(5_000, 32)).astype(np.float32)
    rows = [
        row(f"d{number}", " ".join(chance.choice(words, 12)), vector, metadata={"third": number % 3 == 0})
        for number, vector in enumerate(vectors)
    ]
    return filled(connection, "wordy", rows), chance.normal(size=(12, 32)).astype(np.float32)


@pytest.mark.parametrize("reranker", [None, Wordy()], ids=["plain", "reranked"])
@pytest.mark.parametrize("where", [Filters(), Filters(metadata={"third": True})], ids=["all", "filtered"])
@pytest.mark.parametrize("mode", ["vector", "text", "hybrid"])
def test_who_asks_for_more_gets_the_same_first_hits(
    connection: Connection, wordy: tuple[Version, Any], mode: Any, where: Filters, reranker: Any, monkeypatch: Any
) -> None:
    version, questions = wordy
    monkeypatch.setattr(candidates, "EXACT_ROWS", 0)
    for number, question in enumerate(questions):
        with index_tables.scan(connection, exact=False):
            few, more, many = (
                search(
                    connection, version.version, question, k, text=f"w{number} w{number + 50}", mode=mode, where=where,
                    ef=30, reranker=reranker,
                )
                for k in (5, 60, 100)
            )  # fmt: skip
        assert len(many) == 100 or mode == "text"
        assert few == many[:5] and more == many[:60]
        if reranker:
            assert sum("rerank" in hit.parts for hit in many) == 50 and "rerank" in many[49].parts


def test_the_commands_output_shows_place_and_parts(connection: Connection, animals: Version) -> None:
    hits = search(connection, animals.version, X, 1, text="owls", mode="hybrid")
    text = shown(animals, hits)
    assert "1. 0.985  s3://b/birds  (T, chunk 0, characters 0 to 24, page 3, Birds > Owls)" in text
    assert "[vector rank 1, text rank 2, text score " in text and ", rrf 0.03252]" in text
    foxes = search(connection, animals.version, X, 1, where=Filters(heading="Prey"))
    assert (foxes[0].page, foxes[0].last_page, foxes[0].covered) == (5, 7, ("Foxes", "Prey"))
    assert "pages 5 to 7, Foxes)" in shown(animals, foxes)
    assert shown(animals, []).endswith("nothing matches")


TWO = """
corpora:
  default:
  manuals: {source: s3://b/manuals, golden_questions: s3://b/golden.jsonl, search_mode: text}
"""


def test_the_command_searches_the_corpus_whose_settings_it_takes(
    connection: Connection, animals: Version, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    manuals = filled(connection, "manuals", [row("s3://b/manual", "How to hunt.", X)], corpus="manuals")
    connection.execute("UPDATE index_versions SET status = 'current' WHERE version = %s", (manuals.version,))
    connection.commit()
    (tmp_path / "corpora.yaml").write_text(TWO)

    class Model:
        def encode(self, texts: Sequence[str], _kind: str) -> Any:
            return [X for _text in texts]

    monkeypatch.setattr("tasks.knowledge.embedders.load_embedder", lambda _settings, _name: Model())
    monkeypatch.setenv("MILLRACE_DATABASE_URL", database)
    monkeypatch.setenv("MILLRACE_MLFLOW_TRACKING_URI", "http://none")
    monkeypatch.setenv("MILLRACE_CORPORA", str(tmp_path / "corpora.yaml"))

    def found(corpus: str, *options: str) -> tuple[bool, bool]:
        """Tell whether the corpus `manuals` was searched, and in its mode."""
        monkeypatch.setenv("MILLRACE_CORPUS", corpus)
        settings.cache_clear()
        assert main(["hunt", *options]) == 0
        said = capsys.readouterr().out
        return "of manuals: " in said, "text rank" in said

    try:
        assert found("manuals") == found("manuals", "--corpus", "manuals") == (True, True)
        assert found("manuals", "--corpus", "default") == found("pydoc:topics") == (False, False)
        assert found("pydoc:topics", "--version", str(manuals.version)) == (True, True), "a version is of its corpus"
        assert found("manuals", "--version", str(animals.version)) == (False, False)
    finally:
        settings.cache_clear()


def test_options_become_filters() -> None:
    given = {"prefix": "s3://b/", "metadata": "author=Ann,language=en=x", "heading": "H", "pages": "3-5"}
    assert filters_of(given) == Filters("s3://b/", {"author": "Ann", "language": "en=x"}, "H", 3, 5)
    assert filters_of({"pages": "3"}) == Filters(first_page=3, last_page=3)
    assert filters_of({"pages": "3-"}) == Filters(first_page=3)
    assert filters_of({}) == Filters()
    for wrong in ({"metadata": "author"}, {"metadata": "=x"}, {"pages": "a-b"}, {"pages": "-"}):
        with pytest.raises(OptionError, match="Next: python -m tasks search"):
            filters_of(wrong)


@pytest.mark.parametrize("options", [{"k": "0"}, {"k": "x"}, {"version": "-1"}, {"mode": "magic"}, {"moed": "text"}])
def test_wrong_options_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(OptionError, match=f"--{next(iter(options))}"):
        require_known(options)


@pytest.mark.parametrize("arguments", [[], ["--k", "3"]])
def test_a_question_is_expected(arguments: list[str]) -> None:
    with pytest.raises(OptionError, match="expected a question"):
        main(arguments)
