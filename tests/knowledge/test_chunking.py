"""Chunks: nothing lost, nothing too long, cut where a reader would pause."""

import random
from pydoc_data.topics import topics

import pytest

from tasks.errors import SettingsError
from tasks.knowledge.chunking import Chunk, Chunker, boundaries, cut
from tasks.knowledge.embedder import tokenizer_of
from tasks.knowledge.extraction import extract
from tasks.settings import load_settings

SETTINGS = load_settings({"MILLRACE_DATABASE_URL": "postgresql://none", "MILLRACE_MLFLOW_TRACKING_URI": "http://none"})
TOKENIZER, MAX_TOKENS = tokenizer_of(SETTINGS)


def check(text: str, chunks: list[Chunk], limit: int) -> None:
    """Every character is in exactly one chunk, except white space; each chunk fits and says its size truly."""
    position = 0
    for number, chunk in enumerate(chunks):
        assert chunk.ordinal == number
        assert text[position : chunk.start].strip() == "", "text lost before a chunk"
        assert chunk.text == text[chunk.start : chunk.end] == chunk.text.strip()
        assert len(TOKENIZER.encode(chunk.text, add_special_tokens=False).ids) == chunk.tokens <= limit
        position = chunk.end
    assert text[position:].strip() == "", "text lost at the end"


@pytest.mark.parametrize("limit", [32, 200, 254])
def test_no_text_is_lost_and_no_chunk_is_too_long_on_every_topic(limit: int) -> None:
    chunker = Chunker(TOKENIZER, limit, MAX_TOKENS)
    for key, body in topics.items():
        text = extract(f"pydoc:topics/{key}", body.encode()).text
        check(text, chunker.chunks(text), limit)


def test_no_text_is_lost_on_random_text() -> None:
    chance = random.Random(7)
    pieces = [
        "word",
        "Zürich",
        "漢字",
        "🦉",
        " ",
        "\n",
        "\n\n",
        "\t",
        ". ",
        "x" * 400,
        "-" * 50,
        "# Heading\n",
        "a.b.c",
        "\x01",
    ]
    chunker = Chunker(TOKENIZER, 32, MAX_TOKENS)
    for _ in range(200):
        text = "".join(chance.choice(pieces) for _ in range(chance.randrange(0, 120)))
        check(text, chunker.chunks(text), 32)


def test_a_cut_prefers_headings_then_blank_lines_then_sentences() -> None:
    # One token a character here, so that the limit is easy to see.
    def spans(text: str, limit: int) -> list[str]:
        return [text[start:end] for start, end in cut(text, [(i, i + 1) for i in range(len(text))], limit)]

    assert spans("aaaa bbbb. cc\n\ndd\n# H\nee ff gg", 22) == ["aaaa bbbb. cc\n\ndd", "# H\nee ff gg"]
    assert spans("aaaa bbbb. cc\n\ndd ee. ff gg hh", 18) == ["aaaa bbbb. cc", "dd ee. ff gg hh"]
    assert spans("aaaa bbbb cc. dd ee ff gg", 16) == ["aaaa bbbb cc.", "dd ee ff gg"]
    assert spans("aaaa bbbb cc dd", 10) == ["aaaa bbbb", "cc dd"]
    assert spans("a" * 25, 10) == ["a" * 10, "a" * 10, "a" * 5]


def test_underlined_headings_are_boundaries() -> None:
    text = "Intro.\n\nThe part\n========\n\nBody."
    assert boundaries(text)[0] == [text.index("The part")]


def test_chunks_that_the_embedder_would_cut_are_refused() -> None:
    with pytest.raises(SettingsError, match="at most 254"):
        Chunker(TOKENIZER, 255, MAX_TOKENS)
