"""What the model sees, and what the loss is about."""

import pytest

from tasks.errors import DataError, ModelError
from tasks.training.encoding import IGNORED, Encoded, by_length, encode, pad, training_order
from tests.tiny_model import make_tokenizer, pair


def test_the_loss_is_about_the_answer_and_its_end() -> None:
    tokenizer = make_tokenizer()
    (found,) = encode(tokenizer, [pair("a", "Why?", "So.")], "Be brief.", 100)
    assert tokenizer.decode(found.input_ids) == "<|system|>Be brief.<|end|><|user|>Why?<|end|><|assistant|>So.<|end|>"
    answer = [label for label in found.labels if label != IGNORED]
    assert tokenizer.decode(answer) == "So.<|end|>"
    assert found.answer_tokens == 4
    assert not found.truncated


def test_every_answer_of_a_conversation_counts() -> None:
    tokenizer = make_tokenizer()
    row = pair("a", "Why?", "So.")
    row["messages"] += [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "No."}]
    (found,) = encode(tokenizer, [row], "", 200)
    assert tokenizer.decode([label for label in found.labels if label != IGNORED]) == "So.<|end|>No.<|end|>"
    assert len(found.labels) == len(found.input_ids)


def test_what_is_cut_off_is_counted() -> None:
    row = pair("a", "Why?", "Because it is so.")
    long, short = (encode(make_tokenizer(), [row], "", size)[0] for size in (100, 16))
    assert (long.truncated, short.truncated) == (False, True)
    assert short.input_ids == long.input_ids[:16]


def test_an_example_without_room_for_its_answer_is_an_error() -> None:
    with pytest.raises(DataError, match="max_tokens"):
        encode(make_tokenizer(), [pair("a", "A long question" * 10, "So.")], "", 30)


def test_every_token_of_a_text_counts() -> None:
    tokenizer = make_tokenizer()
    row = {"id": "a", "text": "A plain text."}
    whole, cut = (encode(tokenizer, [row], "unused", size)[0] for size in (100, 5))
    assert tokenizer.decode(whole.input_ids) == "A plain text.<|end|>"
    assert whole.labels == whole.input_ids
    assert (whole.truncated, cut.truncated) == (False, True)
    assert cut.input_ids == whole.input_ids[:5]
    assert whole.answer_tokens == len(whole.input_ids) - 1, "nothing predicts the first token"
    with pytest.raises(DataError, match="at least two tokens"):
        encode(tokenizer, [{"id": "a", "text": ""}], "", 10)


def test_a_template_that_rewrites_the_past_is_an_error() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(ModelError, match="chat template"):
        encode(tokenizer, [pair("a", "Why?", "So.")], "", 100)


def examples(lengths: list[int]) -> list[Encoded]:
    return [Encoded(str(n), [1] * length, [1] * length, False) for n, length in enumerate(lengths)]


def test_each_epoch_has_every_row_and_steps_of_one_length() -> None:
    lengths = [length for length in range(1, 41) for _ in range(2)]
    order = training_order(lengths, 8, 3, seed=5)
    assert len(order) == 240
    for epoch in range(3):
        assert sorted(order[80 * epoch : 80 * (epoch + 1)]) == list(range(80))
    for start in range(0, 240, 8):
        step = [lengths[row] for row in order[start : start + 8]]
        assert max(step) - min(step) <= 4
    assert order[:80] != order[80:160]
    assert order == training_order(lengths, 8, 3, seed=5)
    assert order != training_order(lengths, 8, 3, seed=6)


@pytest.mark.parametrize("rows", [1, 3, 8, 9])
def test_every_step_is_full(rows: int) -> None:
    order = training_order(range(1, rows + 1), 8, 1, seed=0)
    assert len(order) % 8 == 0
    assert set(order) == set(range(rows))


def test_batches_are_longest_first_and_padded() -> None:
    rows = examples([1, 3, 2])
    assert by_length(rows, 2) == [[1, 2], [0]]
    batch = pad([rows[0], rows[1]], 9)
    assert batch["input_ids"] == [[1, 9, 9], [1, 1, 1]]
    assert batch["attention_mask"] == [[1, 0, 0], [1, 1, 1]]
    assert batch["labels"] == [[1, IGNORED, IGNORED], [1, 1, 1]]
