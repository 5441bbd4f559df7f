"""Counts are the tokenizer's own: on every text of this machine, on any Unicode, for tokenizers of every kind."""

from itertools import pairwise
from pydoc_data.topics import topics

import pytest
from hypothesis import given
from hypothesis import strategies as some
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tasks.errors import ModelError
from tasks.knowledge.chunking import TokenCounter
from tasks.knowledge.chunking import tokens as module
from tests.knowledge.chunking_checks import TOKENIZER, documents, tokens

# Letters, marks, white space of every kind, control characters, accents that combine, Chinese, right to left, emoji,
# what normalizers treat in their own way (sharp s, dotted I, final sigma, soft hyphen, ligatures), and added tokens.
PIECES = [
    "word", "Word", "ÉTÉ", "e\u0301", "\u0301", "ß", "İ", "ΟΔΟΣ", "Σ", "ﬁ", "½", "漢字", "かな", "한국어", "🦉", "👩‍👩‍👧", "שלום",
    "[SEP]", "[CLS", "]", "[", "##a", "<mask>", "a.b", "don't", "http://x.y/?z=1", "_", "x" * 101, "0" * 30, "-" * 30,
    " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u2003", "\u2028", "\u3000", "\u0085", "\u200b", "\ufeff", "\u00ad",
    "\x00", "\x01", "\x0b", "\x0c", "\x1c", "\x1f", "\x7f", "\ufffd", "\u202e", "\U000e0001", "\ue000", "。", "，", "—", "…", "$", "`",
]  # fmt: skip
TEXTS = (
    some.lists(some.sampled_from(PIECES) | some.text(max_size=8), max_size=30)
    .map("".join)
    .filter(
        lambda text: not any("\ud800" <= letter <= "\udfff" for letter in text)  # no tokenizer takes half a character
    )
)


def trained(tokenizer: Tokenizer, trainer: object) -> Tokenizer:
    tokenizer.train_from_iterator(list(topics.values())[:30], trainer)
    return tokenizer


def byte_level(**options: bool) -> Tokenizer:
    """As RoBERTa's."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | options)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(
        made,
        trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, special_tokens=["<mask>"], show_progress=False),
    )


def sentence_piece() -> Tokenizer:
    """As XLM-R's."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return trained(
        made, trainers.UnigramTrainer(vocab_size=900, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    )


def cased() -> Tokenizer:
    """A BERT that keeps capitals."""
    made = Tokenizer.from_str(TOKENIZER.to_str())
    made.normalizer = normalizers.BertNormalizer(lowercase=False, clean_text=False)
    return made


COUNTERS = {
    "MiniLM": TokenCounter(TOKENIZER),
    "cased": TokenCounter(cased()),
    "byte-level": TokenCounter(byte_level()),
    "SentencePiece": TokenCounter(sentence_piece()),
}


@pytest.mark.parametrize(
    ("name", "proven"), [("MiniLM", True), ("cased", True), ("byte-level", True), ("SentencePiece", False)]
)
def test_it_knows_whose_words_add_up(name: str, proven: bool) -> None:
    assert COUNTERS[name].proven is proven


@pytest.mark.parametrize("name", COUNTERS)
@given(text=TEXTS)
def test_counts_are_the_tokenizers_on_any_text(name: str, text: str) -> None:
    assert COUNTERS[name].count(text) == tokens(text, COUNTERS[name].tokenizer)


@pytest.mark.parametrize("name", ["MiniLM", "byte-level"])
def test_counts_are_the_tokenizers_on_every_text_of_this_machine(name: str) -> None:
    counter, texts = COUNTERS[name], documents()
    assert len(texts) > 300
    assert [place for place, text in enumerate(texts) if counter.count(text) != tokens(text, counter.tokenizer)] == []


@given(text=TEXTS)
def test_a_ruler_adds_up_between_words(text: str) -> None:
    ruler = COUNTERS["MiniLM"].ruler(text, 4)
    assert ruler.starts[0] == 0 and ruler.starts[-1] == len(text)
    assert all(one < other for one, other in pairwise(ruler.starts))
    assert ruler.tokens(0, len(text)) == tokens(text)
    for start, end in pairwise([0, *ruler.starts[1:-1:3], len(text)]):
        inner = text[start:end].strip(" \t\n\r")
        at = text.find(inner, start)
        if inner and (count := ruler.counted(at, at + len(inner))) is not None:
            assert count == tokens(inner)


def test_long_texts_are_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = topics["assert"]
    whole = COUNTERS["MiniLM"].ruler(text)
    monkeypatch.setattr(module, "_SEGMENT", 50)
    parts = COUNTERS["MiniLM"].ruler(text)
    assert (whole.starts, whole.before) == (parts.starts, parts.before)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 10)
    counter = TokenCounter(TOKENIZER)
    for number in range(200):
        assert counter.count(f"w{number} {'y' * 70}") == tokens(f"w{number} {'y' * 70}")
        assert len(counter._known) <= 10


@pytest.mark.parametrize(
    "spoil",
    [
        lambda made: made.add_tokens([AddedToken("two words")]),
        lambda made: made.add_tokens([AddedToken("<eats>", rstrip=True)]),
        lambda made: setattr(made, "normalizer", normalizers.Replace(" ", "_")),
        lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.Split("\n", "isolated")),
        lambda made: setattr(made, "normalizer", normalizers.Sequence([normalizers.NFD(), normalizers.Strip()])),
    ],
)
def test_what_is_not_certain_is_not_assumed(spoil: object) -> None:
    made = Tokenizer.from_str(TOKENIZER.to_str())
    spoil(made)  # type: ignore[operator]
    counter = TokenCounter(made)
    assert not counter.proven
    assert counter.count("It has two words <eats> here.\nAnd more. ") == tokens(
        "It has two words <eats> here.\nAnd more. ", made
    )


def test_an_added_token_within_a_word_is_seen() -> None:
    made = Tokenizer.from_str(TOKENIZER.to_str())
    made.add_tokens([AddedToken("zqx", normalized=True)])
    counter = TokenCounter(made)
    assert counter.proven
    assert counter.count("aZQXb zqx. [MASK]s") == tokens("aZQXb zqx. [MASK]s", made)


def test_an_added_token_that_becomes_plain_letters_is_seen() -> None:
    made = Tokenizer.from_str(TOKENIZER.to_str())
    made.add_tokens([AddedToken("ZQÉ", normalized=True)])
    assert TokenCounter(made).count("a zqexz zqe.") == tokens("a zqexz zqe.", made)


def test_byte_level_with_a_space_before_everything_is_not_certain() -> None:
    assert not TokenCounter(byte_level(add_prefix_space=True)).proven


def test_a_tokenizer_that_cuts_is_refused() -> None:
    made = Tokenizer.from_str(TOKENIZER.to_str())
    made.enable_truncation(10)
    with pytest.raises(ModelError, match="truncation"):
        TokenCounter(made)
