"""Chunks of every chunker: nothing lost, nothing too long, cut where a reader would pause."""

import time
from dataclasses import dataclass
from importlib import import_module
from inspect import getsource
from pydoc_data.topics import topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tasks.errors import SettingsError
from tasks.knowledge.chunking import Chunk, Chunker, Place, chunk, cut, fingerprint, make_chunker
from tasks.knowledge.chunking.boundaries import headings
from tests.knowledge.chunking_checks import MAX_TOKENS, TOKENIZER, check, documents, tokens
from tests.knowledge.test_chunking_tokens import TEXTS, byte_level, sentence_piece

NAMES = ("auto", "recursive", "structure", "code", "sentence_window")


def made(name: str, limit: int = 32, overlap: int = 0) -> Chunker:
    return make_chunker(name, TOKENIZER, limit, MAX_TOKENS, overlap)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", [32, 200, 254])
def test_nothing_is_lost_or_too_long_on_every_topic(name: str, limit: int) -> None:
    chunker = made(name, limit)
    for text in topics.values():
        check(text, chunker.chunks(text, (), "code:python"), limit)


@pytest.mark.parametrize("name", ["recursive", "structure"])
def test_nothing_is_lost_or_too_long_on_every_text_of_this_machine(name: str) -> None:
    chunker = made(name, 128, 30)
    for text in documents(most=60_000):
        check(text, chunker.chunks(text), 128)


STRUCTURED = some.lists(
    some.sampled_from(
        ["# One\n", "\n## Two\n", "Under\n=====\n", "| a | b |\n", "```\n", "x = 1\n", "def f(a):\n", "    return 1\n", "class A:\n",
         "A sentence of a few words. ", "Another one, longer than the first, with commas! ", "\n\n", "漢字かな。"]
    ),
    max_size=60,
).map("".join)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@given(
    text=TEXTS | STRUCTURED,
    overlap=some.sampled_from([0, 5, 16]),
    places=some.lists(some.integers(0, 200), max_size=6),
    data=some.data(),
)
@settings(deadline=None)
def test_nothing_is_lost_or_too_long_on_any_text(
    name: str, text: str, overlap: int, places: list[int], data: some.DataObject
) -> None:
    kinds = some.sampled_from(["text", "table", "code"])
    names = some.lists(some.sampled_from("abc"), max_size=3).map(tuple)
    sections = [
        Place(start, data.draw(names), None, data.draw(kinds)) for start in sorted({*places}) if start < len(text)
    ]
    chunks = made(name, overlap=overlap).chunks(text, sections, "code:python")
    check(text, chunks, 32)
    assert chunks == made(name, overlap=overlap).chunks(text, sections, "code:python")


@pytest.mark.parametrize("name", NAMES)
@given(text=TEXTS | STRUCTURED, places=some.lists(some.integers(0, 200), max_size=6), data=some.data())
@settings(deadline=None)
def test_every_section_is_found_by_its_page_and_its_headings(
    name: str, text: str, places: list[int], data: some.DataObject
) -> None:
    names = some.lists(some.sampled_from("abc"), max_size=3).map(tuple)
    starts = sorted({0, *(start for start in places if start < len(text))})
    sections = [Place(start, data.draw(names), page) for page, start in enumerate(starts, 1)]
    chunks = made(name).chunks(text, sections, "code:python")
    for section, end in zip(sections, [*starts[1:], len(text)], strict=True):
        if text[section.start : end].strip():
            assert any(
                found.page <= section.page <= found.last_page and {*section.headings} <= {*found.covered}
                for found in chunks
                if found.start < end and section.start < found.end and found.page and found.last_page and section.page
            )


def test_a_chunk_tells_how_far_it_reaches() -> None:
    pages = [f"Page {number} has a few words about something and little else.\n\n" for number in range(1, 7)]
    starts = [sum(map(len, pages[:number])) for number in range(6)]
    (only,) = made("auto", 200).chunks("".join(pages), [Place(at, (), n) for n, at in enumerate(starts, 1)], "pdf")
    assert (only.page, only.last_page, only.covered) == (1, 6, ())
    text = GUIDE.format(long="This section has many words that fill it. " * 4)
    (only,) = made("structure", 100).chunks(text)
    assert only.headings == ("Title",) and only.covered == ("Title", "Install", "Note", "Use", "Deep")


def test_a_chunk_of_code_covers_the_definitions_it_is_in_and_holds() -> None:
    inner = "".join(f"    def method{number}(self):\n        return {number}\n\n" for number in range(12))
    text = f"def one():\n    pass\n\n\n# A note.\ndef two():\n    pass\n\n\nclass Big:\n{inner}"
    sections = [Place(0, ("one",)), Place(text.index("def two"), ("two",)), Place(text.index("class"), ("Big",))]
    for known in ([], sections):
        first, *rest = made("code", 60).chunks(text, known, "code:python")
        assert first.covered == ("one", "two")
        assert all(found.covered[0] == "Big" and found.headings == ("Big",) for found in rest[1:])
        assert {f"method{number}" for number in range(12)} <= {name for found in rest for name in found.covered}


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_other_tokenizers_are_obeyed(make: object) -> None:
    tokenizer = make()  # type: ignore[operator]
    for name in NAMES:
        chunker = make_chunker(name, tokenizer, 100, 512, 20 if name != "sentence_window" else 0)
        for text in list(topics.values())[:12]:
            check(text, chunker.chunks(text, (), "code:python"), 100, tokenizer)


HOSTILE = {
    "one word": "x" * 300_000,
    "marks": "-=" * 20_000,
    "no white space": "漢" * 30_000,
    "white space": "a" + " \n" * 100_000 + "b",
    "zeros": "\x00" * 50_000 + "end",
    "nested": "(" * 20_000 + ")" * 20_000,
    "nested blocks": "".join(f"{' ' * level}if x:\n" for level in range(300)) + " " * 300 + "pass\n",
    "headings": "# a\n" * 5_000,
    "fences": "```\n" * 5_000,
    "one line of code": "x=1;y=f(x);" * 10_000,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_texts_are_cut_like_others(name: str, text: str) -> None:
    chunks = made(name, 100).chunks(text, (), "code:python")
    check(text, chunks, 100)
    assert max(len(found.text) for found in chunks) <= 100 * 32


def test_time_grows_with_the_length_of_a_line_of_code_and_no_quicker() -> None:
    def seconds(functions: int) -> float:
        body = "".join(
            f"var a{i}=function(b,c){{return b+c*{i}}};if(a{i}(1,2)>3){{x.y(a{i})}}" for i in range(functions)
        )
        begun = time.process_time()
        made("code", 200).chunks(f"!function(){{{body}}}();", (), "code:javascript")
        return time.process_time() - begun

    seconds(100)
    # Four times the text took fourteen times the seconds when every node was looked at from where its line begins.
    assert min(seconds(8_000) for _ in range(3)) < 10 * min(seconds(2_000) for _ in range(3))


def test_a_cut_prefers_headings_then_blank_lines_then_sentences() -> None:
    # One token a character here, so that the limit is easy to see.
    def spans(text: str, limit: int) -> list[str]:
        return [text[start:end] for start, end in cut(text, [(i, i + 1) for i in range(len(text))], limit)]

    assert spans("aaaa bbbb. cc\n\ndd\n# H\nee ff gg", 22) == ["aaaa bbbb. cc\n\ndd", "# H\nee ff gg"]
    assert spans("aaaa bbbb. cc\n\ndd ee. ff gg hh", 18) == ["aaaa bbbb. cc", "dd ee. ff gg hh"]
    assert spans("aaaa bbbb cc. dd ee ff gg", 16) == ["aaaa bbbb cc.", "dd ee ff gg"]
    assert spans("aaaa bbbb cc dd", 10) == ["aaaa bbbb", "cc dd"]
    assert spans("a" * 25, 10) == ["a" * 10, "a" * 10, "a" * 5]


def test_headings_of_both_kinds_are_found_and_those_in_fences_are_not() -> None:
    text = "# One\n\n====\nTwo\n====\n\nThree\n-----\n\n```\n# no\n```\n## Four ##\n| a |\n|---|\n"
    assert [(text[start:].split("\n")[0], level, title) for start, level, title in headings(text)] == [
        ("# One", 1, "One"),
        ("====", 1, "Two"),
        ("Three", 2, "Three"),
        ("## Four ##", 2, "Four"),
    ]


def test_an_overlap_repeats_whole_sentences_and_no_more_than_asked() -> None:
    text = " ".join(f"Sentence number {number} says a thing." for number in range(60))
    chunks = made("recursive", 64, 20).chunks(text)
    check(text, chunks, 64)
    for one, other in zip(chunks, chunks[1:], strict=False):
        repeated = text[other.start : one.end]
        assert repeated.startswith("Sentence number") and 0 < tokens(repeated) <= 20


GUIDE = """Title
=====

A few words.

Install
-------

{long}

Note
----

Tiny.

Use
---

Tiny too.

Deep
~~~~

Also small.
"""


def test_structure_keeps_to_sections_and_joins_tiny_ones() -> None:
    text = GUIDE.format(long="This section has many words that fill it. " * 4)
    assert [part.text for part in made("structure", 100).chunks(text)] == [text.strip()]
    text = GUIDE.format(long="This section has many words that fill it. " * 9)
    found = made("structure", 100).chunks(text)
    assert [part.text.split("\n")[0] for part in found] == ["Title", "Note"]
    assert [part.headings for part in found] == [("Title",), ("Title", "Note")]
    text = GUIDE.format(long="This section has many words that fill it. " * 30)
    check(text, found := made("structure", 100).chunks(text), 100)
    assert all(part.headings == ("Title", "Install") for part in found[1:-1]) and len(found) > 3


def test_structure_does_not_join_chapters_that_are_not_tiny() -> None:
    part = "Twenty words or so stand here, to make it a section of some size that is not tiny at all. "
    text = f"# One\n\n{part}\n\n# Two\n\n## Of two\n\n### Three\n\n{part}\n\n### Four\n\n{part}\n"
    found = made("structure", 100).chunks(text)
    assert [chunk.headings for chunk in found] == [("One",), ("Two",)]
    assert "Four" in found[1].text
    assert made("recursive", 100).chunks(text)[0].text.count("Twenty") == 3


def test_tables_are_cut_between_rows_and_code_between_lines() -> None:
    rows = "".join(f"| row {number}. | of a. table |\n" for number in range(30))
    code = "".join(f"call({number}). then(it)\n" for number in range(30))
    text = f"{rows}\n{code}"
    sections = [Place(0, ("T",), 1, "table"), Place(len(rows) + 1, ("C",), 2, "code")]
    found = made("structure", 60).chunks(text, sections)
    check(text, found, 60)
    assert all(part.text.startswith("| row") and part.text.endswith("|") for part in found if part.page == 1)
    assert all(part.text.startswith("call(") and part.text.endswith("(it)") for part in found if part.page == 2)
    assert {part.page for part in found} == {1, 2}


PROGRAMS = {
    "python": ("@wraps\ndef {name}(a):\n    return a + 1\n", "class Big:\n{body}", "    # About {name}.\n    def {name}(self):\n        return 1\n"),
    "javascript": ("function {name}(a) {{\n  return a + 1;\n}}\n", "class Big {{\n{body}}}\n",
     "  // About {name}.\n  {name}() {{\n    return 1;\n  }}\n"),
    "typescript": ("export function {name}(a: number) {{\n  return a + 1;\n}}\n", "class Big {{\n{body}}}\n",
     "  // About {name}.\n  {name}(): number {{\n    return 1;\n  }}\n"),
    "java": ("interface {name} {{\n  int one(int a);\n}}\n", "class Big {{\n{body}}}\n",
     "  // About {name}.\n  int {name}() {{\n    return 1;\n  }}\n"),
    "go": ("func {name}(a int) int {{\n\treturn a + 1\n}}\n", "type Big struct {{\n{body}}}\n", "\t// About {name}.\n\t{name} int\n"),
    "rust": ("#[inline]\nfn {name}(a: i32) -> i32 {{\n    a + 1\n}}\n", "impl Big {{\n{body}}}\n",
     "    /// About {name}.\n    fn {name}() -> i32 {{\n        1\n    }}\n"),
    "c": ("int {name}(int a) {{\n  return a + 1;\n}}\n", "struct Big {{\n{body}}};\n", "  /* About {name}. */\n  int {name};\n"),
    "cpp": ("template <class T>\nT {name}(T a) {{\n  return a + 1;\n}}\n", "class Big {{\n{body}}};\n",
     "  // About {name}.\n  int {name}() {{\n    return 1;\n  }}\n"),
    "bash": ("# About it.\n{name}() {{\n  echo one\n}}\n", "big() {{\n{body}}}\n", "  # About {name}.\n  echo {name} is one of many\n"),
}  # fmt: skip


@pytest.mark.parametrize("language", PROGRAMS)
def test_definitions_stay_whole_with_what_stands_above_them(language: str) -> None:
    function, outer, method = PROGRAMS[language]
    one = [function.format(name=f"first{number}") for number in range(20)]
    inner = [method.format(name=f"inner{number}") for number in range(20)]
    text = "é = 1\n" * (language == "python") + "\n".join([*one, outer.format(body="\n".join(inner))])
    found = made("code", 100).chunks(text, (), f"code:{language}")
    check(text, found, 100)
    for whole in [*one, *inner]:
        assert sum(whole.strip() in part.text for part in found) == 1, f"divided:\n{whole}"
    assert 5 < len(found) < 25
    assert any(part.headings and part.headings[0] in {"Big", "big"} for part in found) or language == "rust"


@pytest.mark.parametrize("module", ["argparse", "ast", "typing"])
def test_real_programs_are_cut_between_definitions(module: str) -> None:
    text = getsource(import_module(module))
    found = made("code", 200).chunks(text, (), "code:python")
    check(text, found, 200)
    assert (
        sum(part.text.startswith(("def ", "class ", "@", "#", "_", "import", '"""', "if ")) for part in found)
        > len(found) / 2
    )
    assert max(part.tokens for part in found) <= 200 < 2.5 * sum(part.tokens for part in found) / len(found)


def test_a_language_without_grammar_is_cut_at_lines() -> None:
    text = "".join(f"put {number} into field. go on\n" for number in range(100))
    found = made("code", 50).chunks(text, (), "code:hypertalk")
    check(text, found, 50)
    assert all(part.text.startswith("put") for part in found)


def test_a_sentence_window_embeds_each_sentence_once_and_shows_its_neighbours() -> None:
    text = " ".join(f"Sentence number {number} tells of another thing entirely." for number in range(40))
    found = made("sentence_window", 64).chunks(text)
    check(text, found, 64)
    assert " ".join(part.embedded for part in found) == text
    assert all(tokens(part.embedded) <= 16 for part in found)
    middle = found[20]
    assert middle.text.index(middle.embedded) > 20 and tokens(middle.text) > 40


@dataclass(frozen=True)
class Document:
    """What an extraction gives, as far as chunking looks."""

    text: str
    sections: tuple[Place, ...] = ()
    format: str = "text"


def test_auto_chooses_by_format() -> None:
    text = topics["assert"] + "\ndef f():\n    pass\n" * 30
    named = (Place(0, ("Assert",)),)

    def texts(name: str, document: Document) -> list[Chunk]:
        return chunk(made(name), document)

    for document, name in [
        (Document(text, (), "code:python"), "code"),
        (Document(text, named, "markdown"), "structure"),
        (Document(text), "recursive"),
        (Document(text, (Place(0, (), 3),), "pdf"), "recursive"),
    ]:
        assert texts("auto", document) == texts(name, document)
    assert texts("auto", Document(text, (Place(0, (), 3),), "pdf"))[0].page == 3


def test_the_fingerprint_tells_what_decides_chunks() -> None:
    all_of_them = {fingerprint(name, size, overlap) for name in NAMES for size in (100, 200) for overlap in (0, 20)}
    assert len(all_of_them) == 20
    assert "grammars=" in fingerprint("auto", 200) and "grammars=" not in fingerprint("recursive", 200)


@pytest.mark.parametrize(
    ("name", "size", "overlap", "message"),
    [("recursive", 255, 0, "at most 254"), ("recursive", 16, 0, "at least 32"), ("recursive", 100, 51, "at most half"),
     ("best", 100, 0, "one of auto")],
)  # fmt: skip
def test_sizes_that_do_not_go_together_are_refused(name: str, size: int, overlap: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_chunker(name, TOKENIZER, size, MAX_TOKENS, overlap)
