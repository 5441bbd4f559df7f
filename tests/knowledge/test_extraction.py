"""Bytes to title and text."""

import pytest

from tasks.knowledge.extraction import extract


@pytest.mark.parametrize(
    ("uri", "body", "title"),
    [
        ("file:a.md", "# The title #\n\nText", "The title"),
        ("file:a.rst", "The title\n=========\n\nText", "The title"),
        ("pydoc:topics/if", 'The "if" statement\n******************\n', 'The "if" statement'),
        ("file:notes/my_first-note.txt", "Just text.", "my first note"),
        ("s3://bucket/docs/a.b.md", "- a\n- b", "a.b"),
    ],
)
def test_title(uri: str, body: str, title: str) -> None:
    assert extract(uri, body.encode()).title == title


def test_line_ends_and_byte_order_mark_are_normalised() -> None:
    found = extract("file:a.txt", b"\xef\xbb\xbf one\r\ntwo\rthree \n")
    assert (found.text, found.invalid_bytes) == ("one\ntwo\nthree", 0)


def test_invalid_bytes_are_counted_and_real_replacement_characters_are_not() -> None:
    assert extract("file:a.txt", b"caf\xe9 and \xff").invalid_bytes == 2
    assert extract("file:a.txt", "a \ufffd b".encode()).invalid_bytes == 0
