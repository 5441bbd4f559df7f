"""Pairs from structure alone: every answer stands in its document, under the heading that its question names."""

from pathlib import Path

import pytest

from tasks.storage import Storage
from tasks.training.examples import Candidate
from tasks.training.pairs import Document, from_corpus, lead, pairs, sections, texts
from tasks.training.recipes import Recipe, load_recipe

GUIDE = """# The guide

It tells how things are done here.

## Install

Run the installer:

    make setup

It takes a minute. Nothing else
is needed.

- one
- two

## Empty

### Close the door

    grammar ::= passed over

Push it until it clicks.

door.open(wide=False)

   Open the door. With *wide* it opens
   fully.
"""


def document(text: str = GUIDE) -> Document:
    return Document("file:guide.md", "The guide", text, "0" * 64)


def said(candidate: Candidate) -> tuple[str, str]:
    assert candidate.messages is not None
    return candidate.messages[0].content, candidate.messages[1].content


def recipe(**data: object) -> Recipe:
    found = load_recipe("smoke_cpu")
    return found.model_copy(update={"data": found.data.model_copy(update=data)})


def test_what_stands_under_a_heading_is_its_answer() -> None:
    found = {c.provenance["section"]: said(c) for c in pairs(document())}
    assert list(found) == ["The guide", "Install", "Close the door", "door.open"], "an empty section is no pair"
    assert found["The guide"][1] == "It tells how things are done here."
    assert found["Install"][1] == (
        "Run the installer:\n\n    make setup\n\nIt takes a minute. Nothing else is needed.\n\n- one\n- two"
    )
    assert found["Close the door"][1] == "Push it until it clicks."
    assert found["door.open"][1] == "Open the door. With *wide* it opens fully."
    assert '"Install" in "The guide"' in found["Install"][0]
    assert "`door.open`" in found["door.open"][0]


def test_provenance_leads_back_to_the_place() -> None:
    for candidate in pairs(document()):
        place = candidate.provenance
        words = said(candidate)[1].split()
        assert words[0] in GUIDE[place["start"] : place["end"]]
        assert (place["document"], place["made_by"], candidate.source) == (
            "file:guide.md",
            "structure/1",
            "file:guide.md",
        )


def test_a_document_without_headings_is_one_section() -> None:
    (section,) = sections(document("Just a text.\n\nOf two paragraphs."))
    assert (section.heading, section.start, section.end) == ("The guide", 0, 32)


def test_a_long_paragraph_is_cut_after_a_sentence() -> None:
    found = lead("This is a sentence. " * 200)
    assert found is not None
    assert len(found) <= 1500
    assert found.endswith("sentence.")


@pytest.mark.parametrize("body", ["", "   \n\n", "```\ncode\n```", "word " * 400])
def test_a_section_without_an_answer_is_no_pair(body: str) -> None:
    assert lead(body) is None


def test_pieces_of_a_text_hold_all_of_it() -> None:
    long = document("Words of a long text, with some sense. " * 200)
    pieces = [candidate.text or "" for candidate in texts(long, 64)]
    assert "".join("".join(pieces).split()) == "".join(long.text.split())
    assert all(len(piece.split()) <= 64 for piece in pieces)


def test_a_folder_of_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    (tmp_path / "a.md").write_text(GUIDE, encoding="utf-8")
    (tmp_path / "b.md").write_text(GUIDE.replace("The guide", "A copy"), encoding="utf-8")
    (tmp_path / "c.md").write_text("# Key\n\nIt is gh" + "p_" + "a1B2" * 9, encoding="utf-8")
    (tmp_path / "d.md").write_bytes(b"caf\xe9")
    found, counts = from_corpus(str(tmp_path), Storage(), recipe(rows_per_source=10))
    assert counts == {"corpus_documents": 2, "corpus_documents_rejected": 2, "corpus_copies": 4}
    assert len(found) == 4
    few, counts = from_corpus("pydoc:topics", Storage(), recipe(rows_per_source=2))
    assert counts["corpus_documents"] < 79, "no more documents are read than there is room for"
    assert max(sum(c.source == source for c in few) for source in {c.source for c in few}) <= 2
