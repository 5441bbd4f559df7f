"""Answers of a tiny model: batches, ends, what is shown, and models that differ."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.evaluation.answers import answer, generate
from tasks.evaluation.probes import SafetyProbe
from tasks.evaluation.scores import switched
from tasks.evaluation.sets import Question
from tasks.knowledge.search import Hit
from tasks.serving.prompt import Prompt, parse_prompt
from tasks.serving.refusals import QuestionTooLong
from tasks.training.recipes import load_recipe
from tests.tiny_model import make_adapter, make_model

PROMPT = "---\nname: p\nversion: 1\nsystem: Be short.\ndocuments: 2\ncontext_tokens: 60\n---\n{question}\n{context}\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"))


def loaded(base: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)


def prompt(text: str = PROMPT) -> Prompt:
    return parse_prompt(text, "test")


def question(name: str, text: str, context: str = "") -> Question:
    row = SafetyProbe(id=name, kind="injection", question=text, context=context, followed=["MARIGOLD"])
    hits = [Hit(name, f"d:{name}", "T", context, 0, 1.0)] if context else []
    return Question("safety", name, text, "injection", row, hits=hits)


QUESTIONS = [question(str(n), "What is " + "so " * n + "good?", "Some text." * (n % 3)) for n in range(7)]


def test_a_batch_of_several_lengths_is_answered_as_each_alone(base: Path) -> None:
    model, tokenizer = loaded(base)
    together = answer(model, tokenizer, prompt(), QUESTIONS, 12, rows_per_batch=4)
    alone = [answer(model, tokenizer, prompt(), [one], 12, rows_per_batch=1)[0] for one in QUESTIONS]
    assert [found.question.id for found in together] == [one.id for one in QUESTIONS]
    assert [found.text for found in together] == [found.text for found in alone]
    assert [found.new_tokens for found in together] == [found.new_tokens for found in alone]
    assert len({found.text for found in together}) > 1
    assert all(found.seconds > 0 and 0 < found.new_tokens <= 12 for found in together)


def test_an_answer_ends_where_the_model_ends_it(base: Path) -> None:
    """The token it would have made third becomes its end: two tokens stay as text, and the third counts as made."""
    model, tokenizer = loaded(base)
    ids = tokenizer("What is it?")["input_ids"]
    ((free, _seconds),) = generate(model, tokenizer, [ids], 10, 1.0)
    assert len(free) == 10
    place = next(n for n in range(1, 10) if free[n] not in free[:n])
    model.generation_config.eos_token_id = free[place]
    (first, early), (other, late) = generate(model, tokenizer, [ids, ids[:4]], 10, 1.0)
    assert first == free[: place + 1]
    assert len(other) > len(first), "another prompt, which the same end does not end as soon"
    assert early < late


def test_the_documents_are_shown_as_far_as_they_fit(base: Path) -> None:
    model, tokenizer = loaded(base)
    with_text, without = answer(
        model, tokenizer, prompt(), [question("a", "Why?", "Because. " * 20), question("b", "Why?")], 4, 2
    )
    (shown,) = with_text.shown
    assert shown.startswith("[1] T\nBecause. ") and 0 < shown.count("Because") < 20, "what was cut off was not shown"
    assert without.shown == ()
    assert with_text.context_tokens_cut > 0 == without.context_tokens_cut
    assert with_text.prompt_tokens > without.prompt_tokens
    assert with_text.text != without.text


def test_a_question_that_does_not_fit_is_told(base: Path) -> None:
    model, tokenizer = loaded(base)
    with pytest.raises(QuestionTooLong, match="256 tokens"):
        answer(model, tokenizer, prompt(), [question("a", "why " * 80)], 4, 2)


def test_models_that_differ_answer_differently_and_the_base_as_without_adapters(base: Path, tmp_path: Path) -> None:
    recipe = load_recipe("smoke_cpu")
    names = {"candidate": make_adapter(base, tmp_path / "2", 2), "champion": make_adapter(base, tmp_path / "3", 3)}
    tokenizer = AutoTokenizer.from_pretrained(base)
    found = {
        name: [one.text for one in answer(model, tokenizer, prompt(), QUESTIONS[:3], 8, 3)]
        for name, model in switched(base, {**names, "base": None}, recipe)
    }
    assert list(found) == ["base", "candidate", "champion"]
    assert found["base"] != found["candidate"] != found["champion"] != found["base"]
    plain = answer(*loaded(base), prompt(), QUESTIONS[:3], 8, 3)
    assert found["base"] == [one.text for one in plain]


def test_a_penalty_counts_the_answer_and_not_what_is_padded(base: Path) -> None:
    model, tokenizer = loaded(base)
    penalised = prompt(PROMPT.replace("version: 1", "version: 1\nrepetition_penalty: 1.3"))
    together = [one.text for one in answer(model, tokenizer, penalised, QUESTIONS, 12, rows_per_batch=7)]
    alone = [answer(model, tokenizer, penalised, [one], 12, rows_per_batch=1)[0].text for one in QUESTIONS]
    assert together == alone
    assert together != [one.text for one in answer(model, tokenizer, prompt(), QUESTIONS, 12, rows_per_batch=7)]
