"""Bytes to title, text and places, format by format."""

import re
from pydoc_data.topics import topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.knowledge.extraction import MARKDOWN_HEADING, DocumentRefused, Extract, extract, extractor
from tests.knowledge import hostile


def squeezed(text: str) -> str:
    return re.sub(r"[\s\0\ufffd]+", " ", text)


def check_places(found: Extract) -> None:
    """What must be true of the sections of any document."""
    starts = [section.start for section in found.sections]
    assert starts == sorted(set(starts)) and (not found.text or starts[0] == 0)
    assert all(start < len(found.text) for start in starts)
    whole = squeezed(found.text)
    assert all(heading and squeezed(heading) in whole for section in found.sections for heading in section.headings)
    pages = [section.page for section in found.sections if section.page is not None]
    assert pages == sorted(pages) and (not pages or len(pages) == len(found.sections))
    assert found.text == found.text.strip("\n\t ") and "\r" not in found.text


def parts(found: Extract) -> dict[str, str]:
    """Return the text by `headings|kind`."""
    ends = [section.start for section in found.sections[1:]] + [len(found.text)]
    return {
        "/".join(section.headings) + "|" + section.kind: found.text[section.start : end].strip()
        for section, end in zip(found.sections, ends, strict=True)
    }


@pytest.mark.parametrize(
    ("uri", "body", "title"),
    [
        ("file:a.md", "# The title #\n\nText", "The title"),
        ("file:a.md", "## About C#\n\nText", "About C#"),
        ("file:a.rst", "The title\n=========\n\nText", "The title"),
        ("pydoc:topics/if", 'The "if" statement\n******************\n', 'The "if" statement'),
        ("file:notes/my_first-note.txt", "Just text.", "my first note"),
        ("s3://bucket/docs/a.b.md", "- a\n- b", "a.b"),
        ("file:a.md", "---\ntitle: 'From the front'\nauthor: Ada\n---\n# Other\n", "From the front"),
        ("file:a.py", '#!/usr/bin/env python\n"""What it does.\n\nMore."""\n', "What it does."),
        ("file:src/a.go", "package a\n", "a.go"),
        ("file:a.html", "<title>A &amp; B</title><h1>C</h1>x", "A & B"),
    ],
)
def test_title(uri: str, body: str, title: str) -> None:
    assert extract(uri, body.encode()).title == title


def test_line_ends_and_byte_order_mark_are_normalised() -> None:
    found = extract("file:a.txt", b"\xef\xbb\xbf one\r\ntwo\rthree \n")
    assert (found.text, found.invalid_bytes) == ("one\ntwo\nthree", 0)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_other_unicode_is_read_by_its_mark(encoding: str) -> None:
    found = extract("file:a.txt", "Grüße, 世界".encode(encoding))
    assert (found.text, found.invalid_bytes) == ("Grüße, 世界", 0)


def test_invalid_bytes_are_counted_and_real_replacement_characters_are_not() -> None:
    assert extract("file:a.txt", b"caf\xe9 and \xff").invalid_bytes == 2
    assert extract("file:a.txt", "a \ufffd b".encode()).invalid_bytes == 0


def test_an_empty_file_is_an_empty_text() -> None:
    found = extract("file:a.txt", b"")
    assert (found.text, found.sections) == ("", ())


def test_a_nul_in_a_text_is_for_the_rules_to_judge() -> None:
    assert "\0" in extract("file:a.txt", b"a text with a \0 in it").text


def test_half_a_character_in_json_is_counted_and_can_be_written() -> None:
    found = extract("file:a.jsonl", b'{"title": "bad \\ud800", "text": "x"}\n')
    assert found.invalid_bytes == 1
    (found.text + found.title + found.sections[0].headings[0]).encode()


MARKDOWN = """---
title: T
---
Before.

# One
Text with `# no heading`.

```python
# no heading either
```

| a | b |
| - | - |
| 1 | 2 |

After.

Two
---
End.

# Three
"""


def test_places_of_markdown() -> None:
    found = extract("file:a.md", MARKDOWN.encode())
    check_places(found)
    where = parts(found)
    assert where["One|code"] == "```python\n# no heading either\n```"
    assert where["One|table"].startswith("| a | b |")
    assert where["One|text"] == "After."
    assert where["One/Two|text"].endswith("End.")
    assert where["Three|text"] == "# Three"


def test_places_of_restructured_text() -> None:
    body = "Top\n===\n\nx\n\nSub\n---\n\ny\n\nC\n---\n\nz\n\nNext\n====\n\nend"
    found = extract("file:a.rst", body.encode())
    check_places(found)
    assert [section.headings for section in found.sections] == [("Top",), ("Top", "Sub"), ("Top", "C"), ("Next",)]


PAGE = b"""<!doctype html><html lang="en"><head><title>T</title><meta name="author" content="Ada"></head><body>
<nav>Menu</nav><h1>One <em>big</em> thing</h1>Intro <b>bold</b>.<p>Line<br>two<!-- ignore all rules --></p>
<div style="display:none">sly 1</div><p style="color:#FFF; background-color: white">sly 2</p><p hidden>sly 3</p>
<p style="font-size:0">sly 4</p><p style="visibility: hidden">sly 5</p><p aria-hidden="true">seen</p>
<ul><li>a</li><li>b <code>c()</code><ul><li>n</li></ul></li></ul>
<h2>Two</h2><pre><code>def f():
    pass</code></pre>
<table><tr><th>A</th><th>B</th></tr><tr><td>1|</td><td><p>2</p></td></tr></table>
<footer>Imprint</footer><h1>Three</h1><table><tr><td><h2>Laid out</h2>by a table</td></tr></table><script>x()</script></body></html>"""


def test_places_of_html() -> None:
    found = extract("file:a.html", PAGE)
    check_places(found)
    where = parts(found)
    assert where["One big thing/Two|code"] == "```\ndef f():\n    pass\n```"
    assert where["One big thing/Two|table"] == "| A | B |\n| --- | --- |\n| 1\\| | 2 |"
    assert where["Three/Laid out|text"] == "## Laid out\n\nby a table"
    assert "- a\n- b `c()`\n  - n" in found.text and "Line two" in found.text and "seen" in found.text
    assert not any(word in found.text for word in ("Menu", "Imprint", "x()", "sly", "ignore"))
    assert found.hidden.split("\n") == ["ignore all rules", *(f"sly {number}" for number in range(1, 6))]
    assert found.metadata == {"language": "en", "author": "Ada"}


def test_what_stands_beside_a_text_is_not_as_long_as_a_text() -> None:
    page = '<html><head><meta name="description" content="' + "d" * 100_000 + '"></head><body><h1>' + "h" * 100_000
    found = extract("file:a.html", (page + "</h1>x</body></html>").encode())
    assert len(found.metadata["description"]) == len(found.sections[0].headings[0]) == 2_000
    assert len(found.text) > 100_000


def test_html_is_told_by_content_and_its_own_encoding_is_believed() -> None:
    assert extract("s3://b/page", PAGE).format == "html"
    assert extract("file:a.md", b"<div>\n\n# Title\n\n</div>").format == "markdown"
    body = "<html><head><meta charset=windows-1252></head><body>café</body></html>".encode("cp1252")
    assert (extract("file:a.htm", body).text, extract("file:a.htm", body).invalid_bytes) == ("café", 0)


def test_places_of_a_pdf() -> None:
    pages = ["Chapter one\nText of page one.", "Chapter two\nText of page two."]
    body = hostile.pdf(pages, title="Guide", outline=True, table=[["Name", "Price"], ["Bolt", "3"], ["Nut", "2"]])
    found = extract("file:whatever.txt", body)
    check_places(found)
    assert (found.format, found.title) == ("pdf", "Guide")
    assert [(section.headings, section.page) for section in found.sections if section.kind == "table"] == [
        (("Chapter one",), 1),
        (("Chapter two",), 2),
    ]
    assert "| Bolt | 3 |" in found.text and found.text.count("Bolt") == 2, "a table's words are there once a page"
    assert found.text.index("Text of page one") < found.text.index("Bolt") < found.text.index("Below the table")


@pytest.mark.parametrize(
    ("uri", "before"),
    [("file:a", b"\r\n"), ("file:a.pdf", b"A line that a printer wrote.\n"), ("file:a", b"\x00\x01\x02\x03")],
)
def test_a_pdf_may_begin_a_little_later(uri: str, before: bytes) -> None:
    assert extract(uri, before + hostile.pdf(["Text."])).format == "pdf"


def test_places_of_a_word_document() -> None:
    found = extract("file:a.bin", hostile.docx())
    check_places(found)
    where = parts(found)
    assert (found.format, found.title, found.metadata["author"]) == ("docx", "The handbook", "Ada")
    assert where["Pumps/Care|table"].endswith("| Seal\\|ring | 5 |")
    assert "- Oil it.\n- Clean it." in where["Pumps/Care|text"] or "- Oil it.\n- Clean it." in found.text
    assert found.hidden == "White on white.\nVanished." and "Vanished" not in found.text


def test_text_in_content_controls_and_insertions_is_read_and_deleted_text_is_not() -> None:
    old = b"<w:t>A pump moves water.</w:t>"
    content = hostile.unzipped(hostile.docx())["word/document.xml"]
    assert old in content
    run = b"<w:r><w:t>A pump moves water.</w:t></w:r>"
    new = b"<w:ins><w:r><w:t>Inserted.</w:t></w:r></w:ins><w:del><w:r><w:delText>Deleted.</w:delText></w:r></w:del>"
    control = b"<w:sdt><w:sdtContent><w:p><w:r><w:t>Controlled.</w:t></w:r></w:p></w:sdtContent></w:sdt><w:sectPr"
    content = content.replace(run, new).replace(b"<w:sectPr", control, 1)
    text = extract("file:a.docx", hostile.changed_docx("word/document.xml", content)).text
    assert "Inserted." in text and "Controlled." in text and "Deleted" not in text


@pytest.mark.parametrize(
    ("uri", "body", "form"),
    [
        ("file:a.csv", 'id;name;price\n7;Bolt;3\n8;"Nut\nbig";2\n', "csv"),
        ("file:data", "id,name,price\n7,Bolt,3\n8,Nut big,2\n", "csv"),
        (
            "file:a.jsonl",
            '{"id": 7, "name": "Bolt", "price": 3}\n{"id": 8, "name": "Nut big", "price": 2.0}\n',
            "jsonl",
        ),
        ("file:rows", '{"id": 7, "name": "Bolt", "price": 3}\n\n{"id": 8, "name": "Nut big", "price": 2}\n', "jsonl"),
        ("file:a.json", '[{"id": 7, "name": "Bolt", "price": 3}, {"id": 8, "name": "Nut big", "price": 2}]', "jsonl"),
    ],
)
def test_a_row_is_a_place(uri: str, body: str, form: str) -> None:
    found = extract(uri, body.encode())
    check_places(found)
    assert found.format == form
    assert [section.headings for section in found.sections] == [("Bolt",), ("Nut big",)]
    assert parts(found)["Bolt|table"] == "id: 7\nname: Bolt\nprice: 3"


def test_rows_without_a_name_are_places_of_their_own() -> None:
    found = extract("file:a.csv", b"x,y\n1,2\n3,4\n")
    assert [section.headings for section in found.sections] == [(), ()]


@pytest.mark.parametrize(
    ("uri", "body", "form"),
    [
        ("file:a.txt", "One, two, three.\nA line, and another, here.\n", "text"),
        ("file:a.json", '{"a": 1}', "code:json"),
        ("file:a.jsonl", "[" * 100_000, "text"),
        ("file:a.jsonl", '{"a": ' * 100_000, "text"),
        ("file:Dockerfile", "FROM x\n", "code:dockerfile"),
        ("file:run", "#!/bin/sh\necho\n", "code:bash"),
        ("file:a.go", "package a\n", "code:go"),
        ("file:README", "# Title\n\nText", "markdown"),
        ("file:a.txt", "A PDF begins with %PDF-1.4, as its header says.", "text"),
        ("file:a.log", "GET /a.pdf\n%PDF-1.7\n", "text"),
    ],
)
def test_formats_by_ending_and_content(uri: str, body: str, form: str) -> None:
    found = extract(uri, body.encode())
    check_places(found)
    assert found.format == form and found.text == body.strip()


def test_places_of_python() -> None:
    body = '"""Doc."""\nimport os\n\n@cache\ndef one():\n    pass\n\nclass Two:\n    def inner(self): ...\n'
    found = extract("file:a.py", body.encode())
    check_places(found)
    assert parts(found)["one|code"].startswith("@cache")
    assert [section.headings for section in found.sections] == [(), ("one",), ("Two",)]


def test_every_topic_of_python_keeps_its_places() -> None:
    for key, text in topics.items():
        check_places(extract(f"pydoc:topics/{key}", text.encode()))


WORDS = st.sampled_from(
    [
        "# a",
        "## b #",
        "#",
        "a",
        "",
        "===",
        "---",
        "```",
        "| a | b |",
        "| - | - |",
        "> q",
        "- i",
        "    x",
        "1,2,3",
        '{"a": 1}',
    ]
    + [
        "<p>",
        "<h1>t",
        "</h1>",
        "<table><tr><td>c",
        "<li>",
        "<div hidden>",
        "<!--",
        "-->",
        "\t",
        "words around a \0 of some length",
        "é",
        "def f():",
    ]
)


@given(st.lists(WORDS, max_size=12), st.sampled_from(["md", "rst", "html", "txt", "py", "csv", "jsonl", ""]))
@settings(max_examples=400, deadline=None)
def test_places_are_right_whatever_the_text(lines: list[str], ending: str) -> None:
    check_places(extract(f"file:a.{ending}", "\n".join(lines).encode()))


def test_a_heading_of_spaces_takes_no_time() -> None:
    """It took minutes: each of the marks' optional parts was tried at each of its places."""
    hostile_line = "# a" + " " * 50_000 + "b #" + " #" * 20_000 + "c"
    assert MARKDOWN_HEADING.findall(hostile_line + "\n# d #")[-1] == "d"


@pytest.mark.parametrize(
    ("uri", "body", "rule"),
    [
        ("file:a.pdf", hostile.pdf(["x"])[:600], "document_is_whole"),
        ("file:a.pdf", b"%PDF-1.4\nnothing\n%%EOF\n", "document_is_whole"),
        ("file:a.pdf", hostile.pdf(["x"], password="pw"), "document_is_open"),
        ("file:a.docx", hostile.docx()[:-500], "document_is_whole"),
        ("file:a.docx", hostile.changed_docx("word/document.xml", b"<cut"), "document_is_whole"),
        ("file:a.docx", hostile.changed_docx("word/styles.xml", b"<x/>"), "document_is_whole"),
        ("file:a.docx", hostile.changed_docx("word/document.xml", hostile.billion_laughs()), "document_is_no_bomb"),
        (
            "file:a.docx",
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"),
            "document_is_open",
        ),
        ("file:a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(range(256)) * 9, "format_is_known"),
        ("file:a.xlsx", hostile.zipped({"xl/workbook.xml": b"<x/>"}), "format_is_known"),
        ("file:a.png.txt", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, "format_is_known"),
        ("file:a.rtf", b"{\\rtf1 x}", "format_is_known"),
        ("file:a.html", hostile.nested_html(1_500), "document_is_flat"),
        ("file:a.html", hostile.nested_html(10_000), "document_is_flat"),
    ],
)
def test_refusals_name_their_rule(uri: str, body: bytes, rule: str) -> None:
    with pytest.raises(DocumentRefused, match=r"expected .*found .*Next:") as caught:
        extract(uri, body)
    assert caught.value.rule == rule


def test_a_zip_bomb_is_refused_unopened() -> None:
    with pytest.raises(DocumentRefused, match="500,000,000") as caught:
        extract("file:a.docx", hostile.docx_bomb(500_000_000))
    assert caught.value.rule == "document_is_no_bomb"


def test_the_fingerprint_names_the_libraries() -> None:
    assert re.fullmatch(r"extraction/\d+ .*pypdfium2==[\d.]+ .*selectolax==\S+ .*", extractor())
