"""OpenVINO beside torch on real chunks: the same vectors; int8; one conversion for several processes; no telemetry."""

import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy
import pytest

from tasks.knowledge.embedders import identity, load_embedder
from tasks.knowledge.embedders.base import LocalEmbedder, token_batches
from tasks.knowledge.embedders.openvino_runner import OpenVinoRunner, converted
from tasks.knowledge.embedders.quantisation import calibration, openvino, sensitive_layers
from tasks.knowledge.embedders.torch_runner import TorchRunner
from tasks.settings import Settings, load_settings

CHUNK_WORDS = 60


@pytest.fixture(scope="module", autouse=True)
def models_are_compiled_once() -> None:
    """Not here: a compiled model reads its file as it goes, and the tests damage files."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """A thousand real passages, of one word to sixty."""
    words = " ".join(text for _name, text in sorted(topics.items())).split()
    lengths = [1 + number * 7 % CHUNK_WORDS for number in range(1000)]
    ends = numpy.cumsum(lengths)
    return [" ".join(words[end - length : end]) for length, end in zip(lengths, ends, strict=True)]


def made(cache: Path, precision: str, backend: str = "auto") -> Settings:
    return load_settings(
        {
            "MILLRACE_DATABASE_URL": "postgresql://none",
            "MILLRACE_MLFLOW_TRACKING_URI": "http://none",
            "MILLRACE_CACHE_DIR": str(cache),
            "MILLRACE_EMBEDDER_PRECISION": precision,
            "MILLRACE_EMBEDDER_BACKEND": backend,
        }
    )


@pytest.fixture(scope="module")
def exact(cache: Path, texts: list[str]) -> Any:
    embedder = load_embedder(made(cache, "fp32", "torch"))
    assert isinstance(embedder, LocalEmbedder) and isinstance(embedder.runner, TorchRunner)
    return embedder.encode(texts)


def overlap(found: Any, expected: Any, k: int = 10) -> float:
    """Return the share of each vector's nearest ten among all that both agree on."""
    nearest = []
    for vectors in (found, expected):
        similarity = vectors @ vectors.T
        numpy.fill_diagonal(similarity, -1)
        nearest.append(numpy.argsort(-similarity, axis=1)[:, :k])
    pairs = zip(*nearest, strict=True)
    return float(numpy.mean([len(set(a) & set(b)) / k for a, b in pairs]))


@pytest.mark.parametrize(
    ("precision", "cosine", "shared"), [("fp32", 0.99999, 0.999), ("bf16", 0.9995, 0.98), ("int8", 0.96, 0.94)]
)
def test_openvino_gives_the_vectors_of_torch(
    precision: str, cosine: float, shared: float, cache: Path, texts: list[str], exact: Any
) -> None:
    embedder = load_embedder(made(cache, precision, "openvino"))
    assert isinstance(embedder, LocalEmbedder) and isinstance(embedder.runner, OpenVinoRunner)
    found = embedder.encode(texts)
    print(precision, "cosine", (found * exact).sum(axis=1).min(), "overlap", overlap(found, exact))
    assert (found * exact).sum(axis=1).min() >= cosine
    assert overlap(found, exact) >= shared
    assert numpy.allclose(numpy.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_many_shapes_and_threads_mix_nothing_up(cache: Path, texts: list[str], exact: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    embedder = load_embedder(made(cache, "fp32", "openvino"), threads=2)
    with ThreadPoolExecutor(3) as workers:
        parts = list(workers.map(lambda start: embedder.encode(texts[start : start + 7]), range(0, 140, 7)))
    assert (numpy.concatenate(parts) * exact[:140]).sum(axis=1).min() > 0.99999
    assert embedder.encode([]).shape == (0, 384)


def test_texts_that_are_cut_are_counted_and_equal_torch(cache: Path) -> None:
    long = ["long " * 300, "short", "words and " * 200]
    embedder = load_embedder(made(cache, "fp32", "openvino"))
    found = embedder.encode(long)
    assert embedder.truncated == 2
    assert (found * load_embedder(made(cache, "fp32", "torch")).encode(long)).sum(axis=1).min() > 0.99999


def test_an_identity_runs_on_the_backend_it_names(cache: Path) -> None:
    name = identity(made(cache, "fp32", "torch"))
    assert load_embedder(made(cache, "fp32", "openvino")).name == name  # equal vectors: one identity
    for tag, runner in (("+bf16", TorchRunner), ("+bf16-openvino", OpenVinoRunner)):
        for backend in ("torch", "openvino"):
            embedder = load_embedder(made(cache, "fp32", backend), name.replace("+fp32", tag))
            assert isinstance(embedder, LocalEmbedder) and isinstance(embedder.runner, runner)
            assert embedder.name == name.replace("+fp32", tag)


def test_a_converted_model_needs_no_torch_and_sends_nothing(cache: Path) -> None:
    load_embedder(made(cache, "fp32", "openvino"))
    code = (
        "import sys; from pathlib import Path; from tasks.knowledge.embedders import load_embedder\n"
        "from tests.knowledge.test_embedder_backends import made\n"
        f"load_embedder(made(Path({str(cache)!r}), 'fp32', 'openvino')).encode(['a'])\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules], sys.modules['openvino_telemetry'])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[] None\n"
    )


def test_two_processes_convert_once(tmp_path: Path) -> None:
    code = (
        "import sys, logging; from pathlib import Path; logging.basicConfig(level='INFO')\n"
        "from tasks.knowledge.embedders import load_embedder\n"
        "from tests.knowledge.test_embedder_backends import made\n"
        f"print(load_embedder(made(Path({str(tmp_path)!r}), 'fp32', 'openvino')).encode(['a list']).tolist())"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ends = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert ends[0][0] == ends[1][0]
    assert sum("converted" in said for _out, said in ends) == 1
    (made_once,) = tmp_path.glob("openvino-*-fp32")
    assert {path.name for path in made_once.iterdir()} == {"model.xml", "model.bin"}
    assert not list(tmp_path.glob("*.partial"))


def test_a_damaged_conversion_is_made_anew(tmp_path: Path) -> None:
    settings = made(tmp_path, "fp32", "openvino")
    before = load_embedder(settings).encode(["a list"])
    (weights,) = tmp_path.glob("openvino-*-fp32/model.bin")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert numpy.allclose(load_embedder(settings).encode(["a list"]), before, atol=1e-6)
    assert weights.stat().st_size > 1000


def test_calibration_is_always_the_same(cache: Path) -> None:
    from tasks.knowledge.embedders.folder import read_folder
    from tasks.models import fetch

    folder = read_folder(fetch(made(cache, "int8").embedder, cache))
    first, second = calibration(folder), calibration(folder)
    assert len(first) == 120
    assert all(numpy.array_equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, second, strict=True))
    assert len({row["input_ids"].shape[1] for row in first}) > 20  # short ones and long ones


def test_the_layer_with_the_least_even_inputs_is_kept(cache: Path) -> None:
    from tasks.knowledge.embedders.folder import read_folder
    from tasks.models import fetch

    folder = read_folder(fetch(made(cache, "fp32").embedder, cache))
    (kept,) = sensitive_layers(openvino(), converted(folder, "test", "fp32", cache), calibration(folder)[:12])
    assert "layer.0.output.dense" in kept  # one of six, and no attention's: measured


def test_a_stream_meets_few_shapes(cache: Path, texts: list[str]) -> None:
    embedder = load_embedder(made(cache, "fp32", "openvino"))
    lengths = [len(encoding.ids) for encoding in embedder.tokenizer.encode_batch_fast(texts)]
    assert isinstance(embedder, LocalEmbedder)
    runner = embedder.runner
    widths = {
        -(-max(lengths[place] for place in batch) // runner.multiple)
        for batch in token_batches(lengths, runner.budget, runner.multiple)
    }
    assert len(widths) <= 256 // runner.multiple
