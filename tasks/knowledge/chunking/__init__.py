"""Text to chunks of at most so many tokens of an embedder, cut where a reader would pause.

Reads and writes nothing but its arguments. `make_chunker(name, ...)` gives a chunker, `chunk(chunker, extract)` the
chunks of a document, `fingerprint(...)` what an index version must know of both. For every chunker:
no text is lost (each character that is not white space is in a chunk), `chunk.text == source[chunk.start:chunk.end]`, no chunk has
more tokens than the limit as the embedder's own tokenizer counts them, and the same input gives the same chunks.
"""

from tasks.knowledge.chunking.make import NUMBER, chunk, fingerprint, make_chunker
from tasks.knowledge.chunking.pieces import Chunk, Chunker, Place, Section
from tasks.knowledge.chunking.recursive import cut
from tasks.knowledge.chunking.tokens import TokenCounter

CHUNKER = f"boundaries/{NUMBER}"

__all__ = [
    "CHUNKER",
    "Chunk",
    "Chunker",
    "Place",
    "Section",
    "TokenCounter",
    "chunk",
    "cut",
    "fingerprint",
    "make_chunker",
]
