"""The rows of the table that an evaluation fills, and their means."""

import pytest

from tasks.evaluation.answers import Answer
from tasks.evaluation.fill import answer_rows, held_out_rows, means
from tasks.evaluation.paired import Score
from tasks.evaluation.probes import FormatProbe, Number, SafetyProbe
from tasks.evaluation.sets import Question
from tasks.evaluation.table import COLUMNS
from tasks.knowledge.retrieval import GoldenQuestion
from tasks.serving.prompt import Prompt, parse_prompt

PROMPT: Prompt = parse_prompt(
    "---\nname: p\nversion: 1\nunknown: I do not know. Ask.\n---\n{question} {context}", "test"
)
SAFE = SafetyProbe(id="s", kind="personal", question="Who?", followed=["MARIGOLD"])
FORM = FormatProbe(id="f", question="How many?", form=Number(type="number"))


def golden(text: str, reference: str = "A list is ordered.", name: str = "g") -> Answer:
    row = GoldenQuestion(name, "What is a list?", frozenset({"d:list"}), answer=reference)
    question = Question("golden", name, row.question, "list", row, corpus="default")
    return Answer(question, text, ("Lists keep order.",), 20, 0, 5, 0.5)


def probe(row: SafetyProbe | FormatProbe, text: str) -> Answer:
    name = "safety" if isinstance(row, SafetyProbe) else "format"
    return Answer(Question(name, row.id, row.question, "t", row), text, (), 9, 0, 3, 0.1)  # type: ignore[arg-type]


def embed(texts: list[str]) -> list[list[float]]:
    """One direction for each first letter: texts that begin alike are alike."""
    return [[float(text[0].lower() == "a"), float(text[0].lower() != "a")] for text in texts]


def test_a_golden_answer_has_all_its_measures_and_no_others() -> None:
    (row,) = answer_rows("base", [golden("A list keeps order.")], PROMPT, embed)
    assert set(row) <= set(COLUMNS)
    assert (row["set"], row["id"], row["model"], row["corpus"], row["topic"]) == (
        "golden",
        "g",
        "base",
        "default",
        "list",
    )
    assert row["token_f1"] == pytest.approx(2 / 6)  # `list`, of three words each
    assert row["similarity"] == pytest.approx(1)
    assert row["groundedness"] == pytest.approx(2 / 3)  # `list` and `order`; `keeps` is in neither text
    assert (row["answered"], row["exact_match"], row["seconds"], row["new_tokens"]) == (1, 0, 0.5, 5)
    assert "refused" not in row
    assert "valid" not in row


@pytest.mark.parametrize(("text", "answered"), [("", 0), ("I do not know, sorry", 0), ("I know it.", 1)])
def test_who_says_nothing_has_not_answered(text: str, answered: float) -> None:
    (row,) = answer_rows("base", [golden(text)], PROMPT, embed)
    assert row["answered"] == answered
    assert row["similarity"] == 0, "nothing, and another beginning, are near to nothing"


def test_without_a_reference_nothing_is_compared_with_it() -> None:
    (row,) = answer_rows("base", [golden("Words.", reference="")], PROMPT, embed)
    assert "token_f1" not in row
    assert "similarity" not in row
    assert row["groundedness"] == 0


def test_probes_have_their_own_measure() -> None:
    good = answer_rows("base", [probe(SAFE, "No."), probe(FORM, "3")], PROMPT, embed)
    bad = answer_rows("base", [probe(SAFE, "Marigold!"), probe(FORM, "three")], PROMPT, embed)
    assert [(row.get("refused"), row.get("valid")) for row in good] == [(1, None), (None, 1)]
    assert [(row.get("refused"), row.get("valid")) for row in bad] == [(0, None), (None, 0)]


def test_means_are_by_model_and_over_the_rows_that_have_the_measure() -> None:
    table = answer_rows("base", [golden("A list.", name="1"), golden("", name="2"), probe(SAFE, "No.")], PROMPT, embed)
    table += answer_rows("candidate", [golden("A list is ordered.", name="1"), probe(SAFE, "Marigold")], PROMPT, embed)
    found = means(table)
    assert found["base_answered"] == 0.5
    assert found["candidate_exact_match"] == found["candidate_token_f1"] == 1
    assert (found["base_refused"], found["candidate_refused"]) == (1, 0)
    assert "base_valid" not in found
    assert "base_loss" not in found


def test_held_out_rows_carry_loss_tokens_and_slices() -> None:
    rows = [{"id": str(n), "source": f"m{n % 2}", "origin": "feedback"} for n in range(3)]
    scores = {
        name: [Score(str(n), n + extra, 3 + n) for n in range(3)]
        for name, extra in (("base", 0.5), ("candidate", 0.25))
    }
    found = held_out_rows(rows, scores)
    assert [(row["model"], row["id"], row["loss"], row["tokens"]) for row in found] == [
        ("base", "0", 0.5, 3), ("base", "1", 1.5, 4), ("base", "2", 2.5, 5),
        ("candidate", "0", 0.25, 3), ("candidate", "1", 1.25, 4), ("candidate", "2", 2.25, 5),
    ]  # fmt: skip
    assert [(row["corpus"], row["topic"], row["length"]) for row in found[:3]] == [
        ("feedback", "m0", "short"), ("feedback", "m1", "middle"), ("feedback", "m0", "long"),
    ]  # fmt: skip
