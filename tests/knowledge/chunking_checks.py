"""What must hold for every chunker, checked with the embedder's own tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Tokenizer

from tasks.knowledge.chunking import Chunk
from tasks.knowledge.embedders import tokenizer_of
from tasks.settings import load_settings

SETTINGS = load_settings({"MILLRACE_DATABASE_URL": "postgresql://none", "MILLRACE_MLFLOW_TRACKING_URI": "http://none"})
TOKENIZER, MAX_TOKENS = tokenizer_of(SETTINGS)
SITE_PACKAGES = Path(__import__("numpy").__file__).parents[1]


def tokens(text: str, tokenizer: Tokenizer = TOKENIZER) -> int:
    """What the tokenizer says."""
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def documents(most: int = 300_000) -> list[str]:
    """Real texts of this machine: the language reference, and every text file of the installed packages."""
    files = sorted(path for ending in ("md", "rst", "txt") for path in SITE_PACKAGES.rglob(f"*.{ending}"))
    return [*topics.values(), *(path.read_text(errors="replace") for path in files if path.stat().st_size < most)]


def check(text: str, chunks: Sequence[Chunk], limit: int, tokenizer: Tokenizer = TOKENIZER) -> None:
    """Nothing lost, nothing too long, every offset and size true."""
    covered = bytearray(len(text))
    for number, chunk in enumerate(chunks):
        assert chunk.ordinal == number
        assert chunk.text == text[chunk.start : chunk.end] == chunk.text.strip() != ""
        assert chunk.embedded.strip() and chunk.embedded in chunk.text
        assert tokens(chunk.text, tokenizer) == chunk.tokens <= limit
        covered[chunk.start : chunk.end] = b"\1" * (chunk.end - chunk.start)
    lost = [letter for letter, seen in zip(text, covered, strict=True) if not seen and not letter.isspace()]
    assert not lost, f"text lost: {''.join(lost)[:100]!r}"
