"""The embedder, compared with sentence-transformers on the same folder."""

import json
import shutil
from pathlib import Path

import numpy
import pytest

from tasks.errors import ModelError
from tasks.knowledge.embedder import Embedder, embedder_dimensions, embedder_name, load_embedder, token_batches
from tasks.models import fetch
from tasks.settings import Settings, load_settings

TEXTS = ["What does assert do?", "A much longer text about " + "lists and dictionaries, " * 30, "", "Zürich 漢字"]


def made(**changes: str) -> Settings:
    base = {"MILLRACE_DATABASE_URL": "postgresql://none", "MILLRACE_MLFLOW_TRACKING_URI": "http://none"}
    return load_settings(base | changes)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder(made(MILLRACE_EMBEDDER_PRECISION="fp32"))


def test_vectors_equal_those_of_sentence_transformers(embedder: Embedder) -> None:
    from sentence_transformers import SentenceTransformer

    folder = fetch(made().embedder, made().cache_dir)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    found = embedder.encode(TEXTS)
    assert found.dtype == numpy.float32
    assert found.shape == (4, embedder.dimensions) == (4, embedder_dimensions(made()))
    assert (found * expected).sum(axis=1).min() > 0.99999


def test_a_text_has_the_same_vector_alone_and_in_a_batch(embedder: Embedder) -> None:
    together = embedder.encode(TEXTS)
    for position, text in enumerate(TEXTS):
        assert float(together[position] @ embedder.encode([text])[0]) > 0.99999


def test_texts_that_are_cut_are_counted(embedder: Embedder) -> None:
    before = embedder.truncated
    embedder.encode(["short", "long " * 300])
    assert embedder.truncated == before + 1


def test_no_texts_have_no_vectors(embedder: Embedder) -> None:
    assert embedder.encode([]).shape == (0, embedder.dimensions)


def test_name_pins_weights_and_precision(embedder: Embedder) -> None:
    assert embedder.name == embedder_name(made(MILLRACE_EMBEDDER_PRECISION="fp32"))
    assert embedder_name(made(MILLRACE_EMBEDDER_PRECISION="bf16")) == embedder.name.replace("+fp32", "+bf16")


def test_the_precision_of_an_index_is_used_and_another_model_is_refused(embedder: Embedder) -> None:
    assert load_embedder(made(MILLRACE_EMBEDDER_PRECISION="bf16"), embedder.name).name == embedder.name
    with pytest.raises(ModelError, match="hub:other"):
        load_embedder(made(), "hub:other/model@0123456+fp32")


def test_batches_hold_every_text_once_within_the_budget() -> None:
    lengths = [5, 300, 7, 100, 100, 8, 1]
    batches = list(token_batches(lengths, 210))
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[p] for p in batch) <= 210 for batch in batches)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "mean or CLS"),
        ("config_sentence_transformers.json", {"prompts": {"query": "query: "}}, "without prompts"),
    ],
)
def test_a_folder_that_asks_for_more_is_refused(
    tmp_path: Path, file: str, change: dict[str, object], message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(fetch(made().embedder, made().cache_dir), folder)
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        Embedder(folder, "test", "fp32")
