"""What a document must pass: extraction, policy and suite, in that order; without a database."""

import hashlib
from collections.abc import Mapping

from tasks.knowledge.cache import text_sha256
from tasks.knowledge.examination import Body, Examination, examine
from tasks.knowledge.extraction import Extract, Section
from tasks.knowledge.sources import DocumentRefused

TOKEN = "gh" + "p_" + "a1B2" * 9


class Said:
    """Stands for the extraction: what each document says is given."""

    def __init__(self, said: Mapping[str, Extract]) -> None:
        self._said = said

    def extract(self, uri: str, body: bytes) -> Extract:
        if uri not in self._said:
            raise DocumentRefused("document_is_whole", "expected a whole document, found half of one")
        return self._said[uri]


def examined(
    said: Mapping[str, Extract], *others: str, accepted: Mapping[str, frozenset[str]] | None = None
) -> Examination:
    bodies = [Body(uri, "stamp", hashlib.sha256(uri.encode()).hexdigest(), b"bytes") for uri in (*said, *others)]
    return examine(bodies, Said(said), accepted)


def test_the_policy_blocks_redacts_and_never_repeats_what_it_found() -> None:
    texts = {"a": f"Deploy\n======\n\nexport TOKEN={TOKEN}", "b": "Ask ada@analytical.org.", "c": "Nothing."}
    found = examined({uri: Extract(uri, text, 0) for uri, text in texts.items()})
    assert [(row["uri"], row["text"]) for row in found.rows] == [("b", "Ask [email_address]."), ("c", "Nothing.")]
    assert found.rows[0]["text_sha256"] == text_sha256("Ask [email_address].")
    assert [(one.item, one.rule) for one in found.rejected] == [("a", "access_token")]
    assert TOKEN not in found.rejected[0].reason + found.rejected[0].excerpt
    assert found.redactions == {"b": {"email_address": 1}}


def test_a_document_that_breaks_two_rules_has_two_rejections() -> None:
    found = examined({"a": Extract("t" * 400, "a\x00b", 0)})
    assert found.rows == []
    assert [one.rule for one in found.rejected] == ["text_has_no_nul", "title_is_short"]


def test_what_cannot_be_taken_apart_is_a_rejection_and_the_rest_goes_on() -> None:
    found = examined({"good": Extract("Good", "A good document.", 0)}, "half")
    assert [row["uri"] for row in found.rows] == ["good"]
    assert [(one.item, one.rule, one.excerpt) for one in found.rejected] == [("half", "document_is_whole", "")]


def test_a_redaction_moves_the_sections_after_it_and_reaches_title_headings_and_metadata() -> None:
    text = "Ask ada@analytical.org.\n\nLater\n\nThe second part."
    sections = (Section(0), Section(text.index("Later"), ("Mail ada@analytical.org", "Later"), 2))
    metadata = {"author": "ada@analytical.org", "tool": "wri\x00ter"}
    row = examined({"a": Extract("By ada@analytical.org", text, 0, "pdf", sections, "", metadata)}).rows[0]
    second = row["sections"][1]
    assert row["text"][second["start"] :].startswith("Later")
    assert second["headings"] == ["Mail [email_address]", "Later"]
    assert (row["title"], second["page"]) == ("By [email_address]", 2)
    assert row["metadata"] == {"author": "[email_address]", "tool": "writer"}


def test_what_a_person_accepted_passes_that_rule_and_no_other() -> None:
    sha256 = hashlib.sha256(b"a").hexdigest()
    said = {"a": Extract("A", f"A token {TOKEN} stands here.", 1)}
    one = examined(said, accepted={sha256: frozenset({"access_token"})})
    assert [rejection.rule for rejection in one.rejected] == ["text_is_utf8"]
    both = examined(said, accepted={sha256: frozenset({"access_token", "text_is_utf8"})})
    assert [row["uri"] for row in both.rows] == ["a"]
