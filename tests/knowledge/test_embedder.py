"""The embedder, compared with sentence-transformers on the same folder; identities, prompts, batches."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest

from tasks.errors import ModelError, SettingsError
from tasks.knowledge.embedders import (
    Embedder,
    EmbedderSpec,
    dimensions,
    identity,
    load_embedder,
    prompts,
    tokenizer_of,
)
from tasks.knowledge.embedders.base import token_batches
from tasks.knowledge.embedders.folder import read_folder
from tasks.knowledge.embedders.identity import named
from tasks.knowledge.embedders.probe import backend_of, fast_bf16, precision_of
from tasks.models import fetch, revision
from tasks.settings import Settings, load_settings

TEXTS = ["What does assert do?", "A much longer text about " + "lists and dictionaries, " * 30, "", "Zürich 漢字"]
PROMPTS = {"prompts": {"query": "query: ", "document": "passage: "}}


def made(**changes: str) -> Settings:
    base = {"MILLRACE_DATABASE_URL": "postgresql://none", "MILLRACE_MLFLOW_TRACKING_URI": "http://none"}
    return load_settings(base | changes)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder(made(MILLRACE_EMBEDDER_PRECISION="fp32", MILLRACE_EMBEDDER_BACKEND="torch"))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the model that is the package `copied`, so that a test can change its files."""
    folder = tmp_path / "copied" / "model"
    shutil.copytree(fetch(made().embedder, made().cache_dir), folder)
    (tmp_path / "copied" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def change(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_vectors_equal_those_of_sentence_transformers(embedder: Embedder) -> None:
    from sentence_transformers import SentenceTransformer

    folder = fetch(made().embedder, made().cache_dir)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    found = embedder.encode(TEXTS)
    assert found.dtype == numpy.float32
    assert found.shape == (4, embedder.dimensions) == (4, dimensions(made()))
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
    assert embedder.name == identity(made(MILLRACE_EMBEDDER_PRECISION="fp32"))
    assert embedder.name == identity(made(MILLRACE_EMBEDDER_PRECISION="fp32", MILLRACE_EMBEDDER_BACKEND="openvino"))
    for backend, tag in (("torch", "+bf16"), ("openvino", "+bf16-openvino")):
        found = identity(made(MILLRACE_EMBEDDER_PRECISION="bf16", MILLRACE_EMBEDDER_BACKEND=backend))
        assert found == embedder.name.replace("+fp32", tag)
        assert named(made(), found).backend == backend
    assert identity(made(MILLRACE_EMBEDDER_PRECISION="int8")) == embedder.name.replace("+fp32", "+int8")


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}),
        ("sentence_bert_config.json", {"max_seq_length": 128}),
        ("config_sentence_transformers.json", PROMPTS),
        ("config.json", {"hidden_act": "relu"}),
        ("tokenizer.json", {"normalizer": None}),
    ],
)
def test_name_pins_what_else_decides_vectors(package: Path, file: str, values: dict[str, Any]) -> None:
    settings = made(MILLRACE_EMBEDDER="package:copied/model", MILLRACE_EMBEDDER_BACKEND="torch")
    change(package / "config.json", {"transformers_version": "0.0"})
    before = identity(settings)
    change(package / "config.json", {"transformers_version": "9.9"})
    assert identity(settings) == before, "tells nothing of the vectors"
    change(package / file, values)
    assert identity(settings) != before
    with pytest.raises(ModelError, match="found other weights, settings or tokenizer"):
        load_embedder(settings, before)


def test_an_identity_of_the_weights_alone_is_still_loaded(package: Path) -> None:
    settings = made(MILLRACE_EMBEDDER="package:copied/model", MILLRACE_EMBEDDER_BACKEND="torch")
    former = f"package:copied/model@{revision('package:copied/model', package)[:16]}+fp32"
    assert former != identity(settings)
    assert load_embedder(settings, former).name == former


def test_auto_keeps_the_precision_of_what_is_indexed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = "tasks.knowledge.embedders.probe"
    monkeypatch.setattr(f"{probe}.has_gpu", lambda: False)
    monkeypatch.setattr(f"{probe}.cpu_words", lambda: frozenset({"avx2"}))
    settings = made(MILLRACE_EMBEDDER="package:copied/model")
    slow = identity(settings)
    monkeypatch.setattr(f"{probe}.cpu_words", lambda: frozenset({"amx_bf16"}))
    fast = identity(settings)
    assert (slow.rpartition("+")[2], fast.rpartition("+")[2]) == ("fp32", "bf16-openvino")
    by_torch = slow.replace("+fp32", "+bf16")
    for current in (slow, fast, by_torch):
        assert identity(settings, current=current) == current
    for current in (None, slow.replace("+fp32", "+int8"), slow.replace("@", "@0"), "openai:m@0123+api", "t"):
        assert identity(settings, current=current) == fast
    assert identity(settings.model_copy(update={"embedder_precision": "bf16"}), current=slow) == fast, "it is asked for"
    chosen = settings.model_copy(update={"embedder_backend": "torch"})
    assert identity(chosen, current=fast) == by_torch, "the backend is asked for"
    monkeypatch.setattr(f"{probe}.has_openvino", lambda: False)
    assert (identity(settings, current=slow), identity(settings, current=fast)) == (slow, by_torch), "none is installed"
    change(package / "sentence_bert_config.json", {"max_seq_length": 128})
    assert identity(settings, current=slow).endswith("+bf16"), "another model: nothing is kept"


def test_an_index_gets_its_own_embedder_whatever_is_configured(embedder: Embedder, tmp_path: Path) -> None:
    other = made(
        MILLRACE_EMBEDDER="package:other/model", MILLRACE_EMBEDDER_PRECISION="bf16", MILLRACE_EMBEDDER_BACKEND="torch"
    )
    found = load_embedder(other, embedder.name)
    assert found.name == embedder.name
    assert numpy.allclose(found.encode(TEXTS), embedder.encode(TEXTS), atol=1e-6)
    assert load_embedder(other, reference=made().embedder).name == embedder.name.replace("+fp32", "+bf16")


def test_weights_that_changed_under_their_reference_are_refused(package: Path) -> None:
    settings = made(MILLRACE_EMBEDDER="package:copied/model", MILLRACE_EMBEDDER_BACKEND="torch")
    before = identity(settings)
    weights = package / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="found other weights.* run sync_knowledge"):
        load_embedder(settings, before)
    assert load_embedder(settings).name == identity(settings) != before


@pytest.mark.parametrize("name", ["", "model", "m@d+fp64", "package:m/x@0123+api", "openai:m@0123+fp32", "@+bf16"])
def test_what_is_no_identity_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="REFERENCE@DIGEST"):
        named(made(), name)


def test_a_hub_identity_is_found_by_its_whole_commit(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    spec = EmbedderSpec(f"hub:org/name@{commit}", commit[:16], "bf16", "torch")
    assert spec.name == "hub:org/name@0123456789abcdef+bf16"
    settings = made(MILLRACE_CACHE_DIR=str(tmp_path))
    with pytest.raises(ModelError, match="whole commit of hub:org/name@0123456789abcdef"):
        named(settings, spec.name)
    assert named(settings, spec.name, spec.reference) == spec
    assert named(made(MILLRACE_EMBEDDER=spec.reference), spec.name) == spec
    (tmp_path / "hub" / "models--org--name" / "snapshots" / commit).mkdir(parents=True)
    assert named(settings, spec.name) == spec


def test_prompts_are_put_before_questions_and_documents(package: Path, embedder: Embedder) -> None:
    settings = made(
        MILLRACE_EMBEDDER="package:copied/model", MILLRACE_EMBEDDER_PRECISION="fp32", MILLRACE_EMBEDDER_BACKEND="torch"
    )
    before, (_tokenizer, longest) = identity(settings), tokenizer_of(settings)
    change(package / "config_sentence_transformers.json", PROMPTS)
    found = load_embedder(settings)
    assert found.name == identity(settings) != before
    assert prompts(settings, found.name) == {"query": "query: ", "document": "passage: "}
    assert tokenizer_of(settings)[1] == longest - 2  # "passage", ":"
    plain = embedder.encode(["query: what is a list", "passage: what is a list"])
    assert numpy.allclose(found.encode(["what is a list"], kind="query")[0], plain[0], atol=1e-6)
    assert numpy.allclose(found.encode(["what is a list"])[0], plain[1], atol=1e-6)
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(package), device="cpu")
    assert float(found.encode([TEXTS[0]], kind="query")[0] @ theirs.encode_query(TEXTS[0])) > 0.99999
    assert float(found.encode([TEXTS[0]])[0] @ theirs.encode_document(TEXTS[0])) > 0.99999


def test_batches_hold_every_text_once_within_the_budget() -> None:
    lengths = [5, 300, 7, 100, 100, 8, 1, 0]
    for multiple in (1, 16):
        batches = list(token_batches(lengths, 224, multiple))
        assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
        for batch in batches:
            width = -(-max(1, *(lengths[place] for place in [*batch, *batch])) // multiple) * multiple
            assert len(batch) == 1 or len(batch) * width <= 224
        assert len(batches[-1]) > 2  # the short ones together


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "mean or CLS"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt"),
    ],
)
def test_a_folder_that_asks_for_more_is_refused(
    package: Path, file: str, values: dict[str, object], message: str
) -> None:
    change(package / "config_sentence_transformers.json", PROMPTS)
    assert read_folder(package).prompts["query"] == "query: "
    change(package / file, values)
    with pytest.raises(ModelError, match=message):
        read_folder(package)


def test_a_language_model_is_no_embedder(package: Path) -> None:
    (package / "modules.json").unlink()
    with pytest.raises(ModelError, match="not a language model"):
        read_folder(package)


def test_backend_and_precision_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fast_bf16(frozenset({"GenuineIntel", "amx_bf16"})) and fast_bf16(frozenset({"AuthenticAMD", "avx512_bf16"}))
    assert not fast_bf16(frozenset({"GenuineIntel", "avx512_bf16"})) and not fast_bf16(frozenset())
    probe = "tasks.knowledge.embedders.probe"
    monkeypatch.setattr(f"{probe}.cpu_words", lambda: frozenset({"avx2"}))
    assert (precision_of(made()), backend_of(made(), "fp32")) == ("fp32", "openvino")
    monkeypatch.setattr(f"{probe}.has_openvino", lambda: False)
    assert backend_of(made(), "fp32") == "torch"
    monkeypatch.setattr(f"{probe}.has_gpu", lambda: True)
    assert (precision_of(made()), backend_of(made(), "bf16"), backend_of(made(), "int8")) == (
        "bf16",
        "torch",
        "openvino",
    )
    with pytest.raises(SettingsError, match="MILLRACE_EMBEDDER_BACKEND"):
        backend_of(made(MILLRACE_EMBEDDER_BACKEND="torch"), "int8")
