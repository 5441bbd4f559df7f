"""Real chunks with real vectors: pieces of the files that installed packages bring, embedded by the demo's embedder.

The files differ between environments, and so do the pieces; figures made from them are ratios of one run. Vectors are
kept in `.millrace/benchmarks/`, by the texts and the embedder, so that a second run is quick; an interrupted run goes on
where it was.
"""

import hashlib
import json
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.stack import REPOSITORY

KEPT = REPOSITORY / ".millrace" / "benchmarks"
ENDINGS = (".py", ".pyi", ".md", ".rst", ".txt", ".js", ".html", ".h")
CHARACTERS = 220  # of a piece: about 50 tokens
PIECES_A_FILE = 20
_BLOCK = 1_000  # texts embedded between two writes


@dataclass(frozen=True)
class RealChunks:
    """Rows as `index_tables.replace_documents` takes them."""

    rows: list[dict[str, Any]]
    embedder: str

    def split(self, questions: int) -> "tuple[RealChunks, Any]":
        """Return all but the last `questions` rows, and the vectors of those as questions that are in no index."""
        import numpy

        held = numpy.stack([row["embedding"] for row in self.rows[-questions:]])
        return RealChunks(self.rows[:-questions], self.embedder), held


def real_chunks(count: int) -> RealChunks:
    """Return so many different pieces with vectors. Raises ValueError when the installed packages hold too little."""
    from tasks.knowledge.embedders import load_embedder
    from tasks.settings import load_settings

    rows = []
    for row in pieces():
        rows.append(row)
        if len(rows) == count:
            break
    if len(rows) < count:
        raise ValueError(f"expected {count} pieces in the installed packages, found {len(rows)}")
    needed = {"MILLRACE_DATABASE_URL": "postgresql://none", "MILLRACE_MLFLOW_TRACKING_URI": "http://none"}
    settings = load_settings(needed | {"MILLRACE_CACHE_DIR": str(REPOSITORY / ".millrace" / "cache")})
    embedder = load_embedder(settings)
    vectors = _vectors(embedder, [row["text"] for row in rows])
    return RealChunks(
        [{**row, "embedding": vector} for row, vector in zip(rows, vectors, strict=True)], str(embedder.name)
    )


def pieces() -> Iterator[dict[str, Any]]:
    """Yield different pieces, the files in an order that mixes the packages and is always the same."""
    root = Path(sysconfig.get_paths()["purelib"])
    files = [path for path in root.rglob("*") if path.suffix in ENDINGS and 500 < path.stat().st_size < 2_000_000]
    seen: set[str] = set()
    for path in sorted(files, key=lambda path: hashlib.sha256(str(path.relative_to(root)).encode()).digest()):
        name = str(path.relative_to(root))
        about = {"package": name.split("/")[0], "ending": path.suffix, "folder": str(Path(name).parent)}
        for ordinal, (start, text) in enumerate(_cut(path.read_text(encoding="utf-8", errors="replace"))):
            sha256 = hashlib.sha256(text.encode()).hexdigest()
            if sha256 in seen:
                continue
            seen.add(sha256)
            yield {
                "chunk_id": hashlib.sha256(f"{name}\n{ordinal}".encode()).hexdigest()[:32],
                "document_uri": name, "ordinal": ordinal, "title": Path(name).stem, "text": text,
                "tokens": len(text.split()), "start": start, "end": start + len(text), "chunk_sha256": sha256,
                "metadata": about,
            }  # fmt: skip


def _cut(text: str) -> list[tuple[int, str]]:
    """Return pieces of about CHARACTERS that hold words, evenly spread over a text, with where they begin."""
    starts = range(0, len(text) - CHARACTERS, CHARACTERS)
    found = [(start, text[start : start + CHARACTERS].strip().replace("\x00", "")) for start in starts]
    good = [(start, piece) for start, piece in found if len(re.findall(r"[A-Za-z]{3,}", piece)) >= 12]
    return good[:: max(1, len(good) // PIECES_A_FILE)][:PIECES_A_FILE]


def _vectors(embedder: Any, texts: list[str]) -> Any:
    """Return the vectors of `texts`, block by block from `.millrace/benchmarks/` or from the embedder."""
    import numpy

    KEPT.mkdir(parents=True, exist_ok=True)
    blocks = []
    for start in range(0, len(texts), _BLOCK):
        block = texts[start : start + _BLOCK]
        key = hashlib.sha256(json.dumps([embedder.name, block]).encode()).hexdigest()[:32]
        path = KEPT / f"vectors-{key}.npy"
        if not path.is_file():
            partial = path.with_suffix(".part.npy")
            numpy.save(partial, embedder.encode(block))
            partial.rename(path)
        blocks.append(numpy.load(path, allow_pickle=False))
    return numpy.concatenate(blocks)
