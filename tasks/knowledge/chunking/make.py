"""Chunkers by name, and what makes their chunks other chunks. Reads the versions of the grammars; writes nothing.

| name | for | cuts |
| --- | --- | --- |
| `auto` | a corpus of several formats | by the format: code, else structure where there are headings, else recursive |
| `recursive` | any text | at the best boundary in the second half of what fits |
| `structure` | Markdown, RST, HTML, DOCX | at sections; tables between rows, code between lines |
| `code` | source code | between definitions, methods, statements |
| `sentence_window` | dense prose | a few sentences are embedded, those around them shown |

Fails with `SettingsError` for a name that is none of these, and for sizes that do not go together.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from tasks.contracts import digest
from tasks.errors import SettingsError
from tasks.knowledge.chunking import languages
from tasks.knowledge.chunking.code import CodeChunker
from tasks.knowledge.chunking.pieces import Chunk, Chunker, Section
from tasks.knowledge.chunking.recursive import Cutter, RecursiveChunker
from tasks.knowledge.chunking.sentence_window import SentenceWindowChunker
from tasks.knowledge.chunking.structure import StructureChunker

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Name = Literal["auto", "recursive", "structure", "code", "sentence_window"]
NUMBER = 3  # of the rules in this package: raise it when chunks of the same text, or their places, become others
_LEAST = 32  # tokens; one character may be a dozen


class Extracted(Protocol):
    """What an extraction tells of a document."""

    @property
    def text(self) -> str:
        """What it says."""

    @property
    def sections(self) -> Sequence[Section]:
        """Its places."""

    @property
    def format(self) -> str:
        """text, markdown, code:python ..."""


class AutoChunker:
    """Cuts each document by what it is."""

    def __init__(self, cutter: Cutter, overlap: int = 0) -> None:
        self._code = CodeChunker(cutter, overlap)
        self._structure = StructureChunker(cutter, overlap)
        self._recursive = RecursiveChunker(cutter, overlap)

    def chunks(self, text: str, sections: Sequence[Section] = (), format: str = "text") -> list[Chunk]:
        """Return the chunks of `text`, in order."""
        return self.chosen(sections, format).chunks(text, sections, format)

    def chosen(self, sections: Sequence[Section], format: str) -> Chunker:
        """Return the chunker for a format."""
        if format.startswith("code:"):
            return self._code
        if any(section.headings for section in sections):
            return self._structure
        return self._recursive


def make_chunker(name: str, tokenizer: "Tokenizer", chunk_tokens: int, max_tokens: int, overlap: int = 0) -> Chunker:
    """Return the chunker of that name for an embedder whose input is at most `max_tokens` long. Raises SettingsError."""
    if name not in get_args(Name):
        raise SettingsError(
            f"expected MILLRACE_CHUNKER to be one of {', '.join(get_args(Name))}, found {name!r}. Next: choose one."
        )
    most = max_tokens - int(tokenizer.num_special_tokens_to_add(False))
    if chunk_tokens > most:
        raise SettingsError(
            f"expected MILLRACE_CHUNK_TOKENS of at most {most} for this embedder "
            f"({max_tokens} tokens with {max_tokens - most} special ones), found {chunk_tokens}. Next: lower it."
        )
    if chunk_tokens < _LEAST:
        raise SettingsError(
            f"expected MILLRACE_CHUNK_TOKENS of at least {_LEAST}, found {chunk_tokens}. Next: raise it."
        )
    if overlap * 2 > chunk_tokens:
        raise SettingsError(
            f"expected MILLRACE_CHUNK_OVERLAP of at most half of {chunk_tokens} tokens, found {overlap}. Next: lower it."
        )
    cutter = Cutter(tokenizer, chunk_tokens)
    made: dict[str, Chunker] = {
        "auto": AutoChunker(cutter, overlap),
        "recursive": RecursiveChunker(cutter, overlap),
        "structure": StructureChunker(cutter, overlap),
        "code": CodeChunker(cutter, overlap),
        "sentence_window": SentenceWindowChunker(cutter),
    }
    return made[name]


def chunk(chunker: Chunker, document: Extracted) -> list[Chunk]:
    """Return the chunks of a document as the extraction found it."""
    return chunker.chunks(document.text, document.sections, document.format)


def fingerprint(name: str, chunk_tokens: int, overlap: int = 0) -> str:
    """Return what decides the chunks of a text besides the embedder's tokenizer: rules, sizes, grammars."""
    grammars = f" grammars={digest(languages.versions())[:12]}" if name in {"auto", "code"} else ""
    return f"{name}/{NUMBER} tokens={chunk_tokens} overlap={overlap}{grammars}"
