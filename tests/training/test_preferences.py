"""Which candidates a method can use, and rejected answers that nobody wrote."""

from tasks.training.examples import Candidate, Message
from tasks.training.preferences import fitted, usable, with_rejected
from tasks.training.recipes import load_recipe


def candidate(name: str, answer: str, source: str = "s", origin: str = "docstrings", split: str = "train",
              rejected: str | None = None) -> Candidate:  # fmt: skip
    turns = [Message(role="user", content=f"{name}?"), Message(role="assistant", content=answer)]
    return Candidate(
        id=name,
        messages=turns,
        source=source,
        origin=origin,
        split=split,
        rejected=rejected,
        provenance={"made_by": "t"},
    )  # type: ignore[arg-type]


TEXT = Candidate(id="t", text="A text.", source="d", origin="corpus", provenance={"made_by": "t"})
WRITTEN = candidate("w", "good", origin="curated", rejected="bad")
PLAIN = candidate("p", "good", origin="curated")


def test_what_a_method_can_learn_from() -> None:
    found = [TEXT, WRITTEN, PLAIN, candidate("d", "one")]
    assert [c.id for c in usable(found, "sft")[0]] == ["w", "p", "d"]
    assert [c.id for c in usable(found, "dpo")[0]] == ["w", "d"]
    assert usable(found, "dpo")[1] == {"unusable_corpus": 1, "unusable_curated": 1}
    assert [c.id for c in usable(found, "pretrain")[0]] == ["t"]


def test_other_methods_get_no_rejected_answers() -> None:
    (row,) = [c.row() for c in fitted([WRITTEN], load_recipe("smoke_cpu"))]
    assert "rejected" not in row


def test_the_rejected_answer_is_another_of_the_document_and_side() -> None:
    chosen = [
        candidate("a", "one"), candidate("b", "two"), candidate("c", "One!"),
        candidate("h", "three", split="held_out"), candidate("i", "four", split="held_out"),
        candidate("alone", "five", "other"), WRITTEN,
    ]  # fmt: skip
    found = {c.id: c for c in with_rejected(chosen)}
    assert (found["a"].rejected, found["c"].rejected) == ("two", "two"), "not the same words"
    assert found["b"].rejected in {"one", "One!"}
    assert (found["h"].rejected, found["i"].rejected) == ("four", "three"), "not from the other side"
    assert found["alone"].rejected in {"one", "two", "One!"}, "of another document of the side"
    assert found["a"].provenance["rejected_is_the_answer_to"] == "b"
    assert found["w"] == WRITTEN


def test_without_another_answer_there_is_none() -> None:
    assert [c.rejected for c in with_rejected([candidate("a", "same"), candidate("b", "Same.")])] == [None, None]
