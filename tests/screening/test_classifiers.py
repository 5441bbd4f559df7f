"""Rules that a model decides, with tiny models whose weights are set so that single words decide."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ModelError
from tasks.screening import Models, Policy, Screened, classifiers, load_policy, screen
from tasks.settings import load_settings

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "ada", "lovelace", "idiot", "met", "the", "you", "are", "an", "owl", "."]
LOUD = {"ada", "lovelace", "idiot"}  # words whose embedding points where the first label is
SIZE = 8


def build(folder: Path, kind: str, labels: list[str]) -> None:
    """Save a BERT of one layer whose attention averages, so that a loud word is heard at its place and at [CLS]."""
    import torch
    import transformers

    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=SIZE,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=SIZE,
        max_position_embeddings=64,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    model: Any = getattr(transformers, kind)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(1)
            if name.endswith("pooler.dense") or (
                kind.endswith("SequenceClassification") and name.endswith(("self.value", "attention.output.dense"))
            ):
                module.weight.copy_(torch.eye(SIZE))
        words = model.bert.embeddings.word_embeddings.weight
        words[:, 1] = 1
        for word in LOUD:
            words[WORDS.index(word)] = 0
            words[WORDS.index(word), 0] = 5
        if kind.endswith("SequenceClassification"):
            words[WORDS.index("[CLS]")] = 0
            words[WORDS.index("[CLS]"), 2] = 0.01  # [CLS] itself is quiet: what the attention brings decides
        model.classifier.weight[0, 0] = 20
        model.classifier.weight[0, 1] = -20
        if kind.endswith("SequenceClassification"):
            set_between(model, folder, "you are an idiot .", ["you are an owl .", "the owl met an owl .", "the owl ."])
    model.save_pretrained(folder, safe_serialization=True)


def set_between(model: Any, folder: Path, loud: str, quiet: list[str]) -> None:
    """Let the classifier's first answer begin between what a loud text and the quiet ones leave at [CLS]."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    heard = [
        float(model.eval().bert(**tokenizer(text, return_tensors="pt")).pooler_output[0, 0]) for text in [loud, *quiet]
    ]
    assert heard[0] > max(heard[1:])
    middle = (heard[0] + max(heard[1:])) / 2
    model.classifier.weight.zero_()
    model.classifier.weight[0, 0] = 20 / (heard[0] - middle)
    model.classifier.bias.copy_(torch.tensor([-middle * 20 / (heard[0] - middle), 0.0]))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """Models in a package, as a deployment may bring them."""
    root = tmp_path_factory.mktemp("packages")
    package = root / "millrace_tiny_models"
    build(package / "names", "BertForTokenClassification", ["B-PER", "O"])
    build(package / "toxic", "BertForSequenceClassification", ["toxic", "fine"])
    build(package / "places", "BertForTokenClassification", ["B-LOC", "O"])
    (package / "__init__.py").write_text("", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        yield Models("package:millrace_tiny_models/names", "package:millrace_tiny_models/toxic", root / "cache")


def screened(text: str, models: Models) -> Screened:
    return screen(text, load_policy().model_copy(update={"models": models}))


def test_names_are_redacted(models: Models) -> None:
    found = screened("the owl met Ada Lovelace .", models)
    assert found.text.startswith("the owl met [person_name]")
    assert found.text.endswith(" .")
    assert "Lovelace" not in found.text
    for text in ("the owl met the owl .", "you are an owl", ""):
        assert screened(text, models).hits == {}


def test_a_long_text_is_looked_at_whole(models: Models) -> None:
    found = screened("the owl met the owl . " * 60 + "Ada met the owl .", models)
    assert found.hits == {"person_name": 1}
    assert found.text.endswith("[person_name] met the owl .")


def test_toxic_passages_block(models: Models) -> None:
    models = replace(models, names=None)
    found = screened("the owl met an owl .\n\nyou are an idiot .\n\nthe owl .", models)
    assert found.hits == {"toxicity": 1}
    assert set(found.blocked) == {"toxicity"}
    assert found.text == "the owl met an owl .\n\n[toxicity]\n\nthe owl ."
    for text in ("you are an owl .", "the owl", "\n\n"):
        assert screened(text, models).hits == {}


def test_without_models_nothing_is_looked_for() -> None:
    assert screen("Ada, you are an idiot.", load_policy()).hits == {}


def test_a_model_is_loaded_once(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    screened("the owl", models)
    monkeypatch.setattr(classifiers, "fetch", lambda *_: pytest.fail("fetched again"))
    screened("the other owl", models)


def test_models_come_from_the_settings(models: Models) -> None:
    given = {
        "MILLRACE_DATABASE_URL": "postgresql://x",
        "MILLRACE_MLFLOW_TRACKING_URI": "http://x",
        "MILLRACE_NAMES_MODEL": str(models.names),
    }
    policy = load_policy(settings=load_settings(given))
    assert (policy.models.names, policy.models.toxicity) == (models.names, None)
    assert policy.fingerprint != load_policy().fingerprint


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("package:millrace_tiny_models/toxic", "expected a model for token-classification"),
        ("package:millrace_tiny_models/places", "to know one of the labels"),
        ("package:millrace_tiny_models/none", "found nothing there"),
    ],
)
def test_a_model_of_another_kind_is_refused(reference: str, told: str, models: Models) -> None:
    policy: Policy = load_policy().model_copy(update={"models": Models(reference, None, models.cache_dir)})
    with pytest.raises(ModelError, match=told):
        screen("the owl", policy)
