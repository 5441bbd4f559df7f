"""How much of an answer its documents support."""

import pytest

from tasks.serving.grounding import grounded

DOCUMENT = "The global statement makes a name refer to the module's variable."


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("The global statement refers to a variable.", 3 / 4),  # "refers" is no word of the document
        ("Global variable!", 1.0),
        ("Bananas ripen quickly", 0.0),
        ("It is so.", None),
        ("", None),
    ],
)
def test_the_share_of_words_that_are_in_the_documents(answer: str, share: float | None) -> None:
    assert grounded(answer, [DOCUMENT]) == share


def test_words_of_the_question_count_as_known() -> None:
    assert grounded("Bananas ripen", ["Do bananas ripen?", DOCUMENT]) == 1.0


def test_without_sources_nothing_is_supported() -> None:
    assert grounded("global variable", []) == 0.0
