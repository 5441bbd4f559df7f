"""`embed_throughput` and `embed_sorting`: what the embedders of `tasks.knowledge.embedders` save.

The model is the one of the demo. `embed_throughput` reads the texts of `chunking` but for the language reference, on which
int8 is calibrated, and tells the overlap on the reference in its details; `embed_sorting` reads the reference. Converted
models go to a temporary folder; no stack is needed. Every way embeds the same texts in the same process, one after the other, several times.
"""

import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Any

from benchmarks.chunking import real_texts
from benchmarks.result import Result
from tasks.knowledge.embedders import identity, load_embedder, tokenizer_of
from tasks.knowledge.embedders.base import LocalEmbedder
from tasks.knowledge.embedders.identity import folder_of
from tasks.knowledge.embedders.probe import device
from tasks.settings import Settings, load_settings

if TYPE_CHECKING:
    import numpy

    Vectors = numpy.ndarray[Any, numpy.dtype[numpy.float32]]

CHUNK_TOKENS, CHUNKS, TIMED, ROUNDS = 200, 384, 96, 3
WITH_BF16, WITHOUT_BF16, INT8 = 4.0, 2.5, 6.0
SAME, SAME_INT8 = 0.99, 0.95
MIXED, FIXED_BATCH, SORTING = 400, 32, 2.0
NEIGHBOURS = 10

Way = Callable[[Sequence[str]], "Vectors"]


def embed_throughput() -> Result:
    """Chunks to vectors: the embedder that this machine's probe picks, and int8, over SentenceTransformer's defaults."""
    with tempfile.TemporaryDirectory() as cache:
        return _throughput(Path(cache))


def _throughput(cache: Path) -> Result:
    settings = settings_of(cache, "auto")
    texts = chunks(settings, unseen())
    ways, theirs = _ways(settings, cache)
    shared = overlaps(ways, theirs, texts)  # of all texts: it warms up too
    calibrated = overlaps(ways, theirs, chunks(settings, reference()))["int8"]
    timed = random.Random(0).sample(texts, TIMED)
    wall, cpu = interleaved({name: lambda way=way: way(timed) for name, way in ways.items()})
    over, over_cpu = ({name: ratios(spent, base)[name] for name, base in theirs.items()} for spent in (wall, cpu))
    precision = identity(settings).rpartition("+")[2]
    bound = bound_of(precision)
    return Result(
        figure=f"{over['auto']:.2f} x at overlap {shared['auto']:.3f} ({precision}), "
        f"{over['int8']:.2f} x at overlap {shared['int8']:.3f} (int8)",
        bound=f"{bound:g} x at {SAME:g}, {INT8:g} x at {SAME_INT8:g}",
        holds=over["auto"] >= bound and shared["auto"] >= SAME and over["int8"] >= INT8 and shared["int8"] >= SAME_INT8,
        details=[
            *(f"{name}: {TIMED / statistics.median(found):.1f} chunks/s" for name, found in wall.items()),
            *(f"{name} in CPU seconds: {over_cpu[name]:.2f} x {base}" for name, base in theirs.items()),
            *([_room(folder_of(settings, settings.embedder), wall[theirs["auto"]])] if device() == "cpu" else []),
            f"{len(texts)} chunks of at most {CHUNK_TOKENS} tokens, of texts on which int8 was not calibrated; "
            f"its overlap on those on which it was: {calibrated:.3f}; {_load()}",
        ],
    )


def _ways(settings: Settings, cache: Path) -> tuple[dict[str, Way], dict[str, str]]:
    """Return the ways to embed by their names, and for each of ours the one of SentenceTransformer on the same device."""
    from sentence_transformers import SentenceTransformer

    folder = str(folder_of(settings, settings.embedder))
    devices = {"auto": device(), "int8": "cpu"}
    theirs = {name: f"SentenceTransformer on {where}" for name, where in devices.items()}
    ways: dict[str, Way] = {
        theirs[name]: SentenceTransformer(folder, device=where).encode for name, where in devices.items()
    }
    return ways | {name: load_embedder(settings_of(cache, name)).encode for name in devices}, theirs


def _room(folder: Path, seconds: Sequence[float]) -> str:
    """Tell how near SentenceTransformer comes to what this machine can multiply: nobody is faster than that in fp32."""
    reached = TIMED * operations(folder, CHUNK_TOKENS) / statistics.median(seconds) / 1e9
    fp32, bf16 = matmul_rate("float32"), matmul_rate("bfloat16")
    return (
        f"SentenceTransformer does {reached:.0f} GFLOP/s; a product of two matrices in torch: {fp32:.0f} in fp32, {bf16:.0f} in bf16: "
        f"in fp32 there is room for {fp32 / reached:.2f} x"
    )


def operations(folder: Path, tokens: int) -> int:
    """Return the floating-point operations that a BERT needs for a text: its layers' weights, and attention."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layers, hidden, inner = (config[name] for name in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    weights = layers * (4 * hidden * hidden + 2 * hidden * inner)
    return int(2 * weights * tokens + 4 * layers * tokens * tokens * hidden)


def matmul_rate(dtype: str, size: int = 1536, rounds: int = 8) -> float:
    """Return the GFLOP/s of torch's product of two square matrices, the best of some rounds."""
    import torch

    one, other = (torch.rand(size, size).to(getattr(torch, dtype)) for _ in range(2))
    best = float("inf")
    for _round in range(rounds):
        begun = time.perf_counter()
        torch.mm(one, other)
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best / 1e9


def overlaps(ways: Mapping[str, Way], theirs: Mapping[str, str], texts: Sequence[str]) -> dict[str, float]:
    """Return for each of our ways how far it agrees with the one it is compared with."""
    vectors = {name: way(texts) for name, way in ways.items()}
    return {name: overlap(vectors[name], vectors[base]) for name, base in theirs.items()}


def bound_of(precision: str) -> float:
    """Return what is asked of `auto` at a precision as an identity names it (bf16 also says its backend)."""
    return WITH_BF16 if precision.startswith("bf16") else WITHOUT_BF16


def embed_sorting() -> Result:
    """Texts of mixed lengths: sorted batches of a token budget over batches of 32 as they come, by the same backend."""
    with tempfile.TemporaryDirectory() as cache:
        settings = settings_of(Path(cache), "auto")
        by_length, as_they_come = load_embedder(settings), load_embedder(settings)
    assert isinstance(by_length, LocalEmbedder) and isinstance(as_they_come, LocalEmbedder)
    as_they_come.plan = fixed_batches
    texts = mixed(MIXED)
    encoded = by_length.tokenizer.encode_batch_fast(texts)
    lengths = [min(len(encoding.ids), by_length.max_tokens) for encoding in encoded]
    ways = {"as they come": as_they_come, "sorted": by_length}
    vectors = {name: embedder.encode(texts) for name, embedder in ways.items()}
    wall, cpu = interleaved({name: lambda way=way: way.encode(texts) for name, way in ways.items()})
    over = ratios(wall, "as they come")["sorted"]
    least = float((vectors["sorted"] * vectors["as they come"]).sum(axis=1).min())
    fills = {name: sum(lengths) / padded(embedder.plan(lengths), lengths) for name, embedder in ways.items()}
    return Result(
        figure=f"{over:.2f} x, cosine at least {least:.5f}",
        bound=f"{SORTING:g} x, 0.999",
        holds=over >= SORTING and least >= 0.999,
        details=[
            *(f"{name}: {MIXED / statistics.median(found):.1f} texts/s" for name, found in wall.items()),
            *(f"{name}: {fill:.2f} of the tokens are text, the others padding" for name, fill in fills.items()),
            f"in CPU seconds: {ratios(cpu, 'as they come')['sorted']:.2f} x",
            f"{MIXED} texts of {min(lengths)} to {max(lengths)} tokens, half below {statistics.median(lengths):.0f}; "
            f"{by_length.name}; {_load()}",
        ],
    )


def settings_of(cache: Path, precision: str) -> Settings:
    """Return settings of the demo's embedder, whatever the environment says."""
    return load_settings(
        {
            "MILLRACE_DATABASE_URL": "postgresql://none",
            "MILLRACE_MLFLOW_TRACKING_URI": "http://none",
            "MILLRACE_CACHE_DIR": str(cache),
            "MILLRACE_EMBEDDER_PRECISION": precision,
        }
    )


def reference() -> list[str]:
    """Return the language reference, on which int8 is calibrated (tasks.knowledge.embedders.quantisation)."""
    return [text for _name, text in sorted(topics.items())]


def unseen() -> list[str]:
    """Return texts of this machine that calibrate nothing."""
    known = set(topics.values())
    return [text for text in real_texts() if text not in known]


def chunks(settings: Settings, texts: Sequence[str]) -> list[str]:
    """Return pieces of `texts`, each of about CHUNK_TOKENS tokens, from all over them."""
    tokenizer, _longest = tokenizer_of(settings)
    found = []
    for text in texts:
        offsets = tokenizer.encode(text, add_special_tokens=False).offsets
        starts = range(0, len(offsets) - CHUNK_TOKENS, CHUNK_TOKENS)
        found += [text[offsets[start][0] : offsets[start + CHUNK_TOKENS - 1][1]] for start in starts]
    return random.Random(0).sample(found, min(CHUNKS, len(found)))


def mixed(count: int) -> list[str]:
    """Return passages of the language reference whose lengths go from one word to 180, as many short as long ones."""
    chance = random.Random(0)
    words = " ".join(reference()).split()
    lengths = [int(180 ** chance.random()) for _ in range(count)]
    starts = [chance.randrange(len(words) - length) for length in lengths]
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def fixed_batches(lengths: Sequence[int]) -> list[list[int]]:
    """Return batches of FIXED_BATCH positions in the order given."""
    places = list(range(len(lengths)))
    return [places[start : start + FIXED_BATCH] for start in range(0, len(places), FIXED_BATCH)]


def padded(batches: Iterable[list[int]], lengths: Sequence[int]) -> int:
    """Return the tokens of all batches with their padding."""
    return sum(len(batch) * max(lengths[place] for place in batch) for batch in batches)


def interleaved(ways: dict[str, Callable[[], Any]]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the seconds, and the CPU seconds, of each way in each round."""
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for _round in range(ROUNDS):
        for name, run in ways.items():
            begun, spent = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - begun)
            cpu[name].append(time.process_time() - spent)
    return wall, cpu


def ratios(seconds: dict[str, list[float]], base: str) -> dict[str, float]:
    """Return by how much each way is faster than the base: the median of the rounds."""
    return {
        name: statistics.median(b / a for a, b in zip(found, seconds[base], strict=True))
        for name, found in seconds.items()
    }


def overlap(found: "Vectors", expected: "Vectors") -> float:
    """Return the share of every text's nearest ten among the others that both agree on."""
    import numpy

    nearest = []
    for vectors in (found, expected):
        similarity = vectors @ vectors.T
        numpy.fill_diagonal(similarity, -1)
        nearest.append(numpy.argsort(-similarity, axis=1)[:, :NEIGHBOURS])
    return float(numpy.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(*nearest, strict=True)]))


def _load() -> str:
    return f"load of {os.cpu_count()} cores: {os.getloadavg()[0]:.1f}"
