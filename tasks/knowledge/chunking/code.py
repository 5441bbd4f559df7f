"""The code chunker: whole definitions together, cut between methods and statements where one is too long.

Reads and writes nothing but its arguments. Chunks are filled with neighbours of one level (functions of a file, methods
of a class, statements of a function); a definition that fits is never divided, and comments and decorators stay with
what they are about. A chunk from inside definitions has their names as headings. Languages without a grammar are cut
at blank lines and lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.knowledge.chunking import boundaries, languages
from tasks.knowledge.chunking.boundaries import trimmed
from tasks.knowledge.chunking.languages import Node
from tasks.knowledge.chunking.pieces import Chunk, Place, Places, Section
from tasks.knowledge.chunking.recursive import Cutter
from tasks.knowledge.chunking.tokens import Ruler

_DEEPEST = 100  # stretches within stretches; hostile files have thousands


@dataclass(frozen=True)
class _Part:
    start: int
    end: int
    names: tuple[str, ...]  # of the definitions it stands in


class CodeChunker:
    """Cuts source code; its language is the part of `format` after `code:`."""

    def __init__(self, cutter: Cutter, overlap: int = 0) -> None:
        self._cutter, self._overlap = cutter, overlap

    def chunks(self, text: str, sections: Sequence[Section] = (), format: str = "text") -> list[Chunk]:
        """Return the chunks of `text`, in order."""
        if not text.strip():
            return []
        ruler = self._cutter.ruler(text)
        nodes = languages.parse(format.partition(":")[2], text)
        if nodes is None:
            spans = self._cutter.cut(ruler, 0, len(text), (), boundaries.CODE, self._overlap)
            return self._cutter.made(ruler, spans, Places(sections))
        parts = [
            part
            for part in self._parts(ruler, nodes, 0, len(text), (), _DEEPEST)
            if text[part.start : part.end].strip()
        ]
        spans = [span for part in parts if (span := trimmed(text, part.start, part.end))]
        known = Places(sections)
        places = [
            Place(part.start, (*known.at(part.start).headings, *part.names), known.at(part.start).page)
            for part in parts
        ]
        return self._cutter.made(ruler, spans, Places(places))

    def _parts(
        self, ruler: Ruler, nodes: Sequence[Node], start: int, end: int, names: tuple[str, ...], deepest: int
    ) -> list[_Part]:
        """Return a stretch, whose parts are `nodes`, as stretches that fit; together they are all of it."""
        edges = [start, *(node.start for node in nodes if start < node.start < end), end]
        at = {node.start: node for node in nodes}
        parts: list[_Part] = []
        for begun, stop in zip(edges[:-1], edges[1:], strict=True):
            if parts and parts[-1].names == names and self._cutter.fits(ruler, parts[-1].start, stop):
                parts[-1] = _Part(parts[-1].start, stop, names)
            elif self._cutter.fits(ruler, begun, stop):
                parts.append(_Part(begun, stop, names))
            else:
                parts += self._divided(ruler, at.get(begun), begun, stop, names, deepest - 1)
        return parts

    def _divided(
        self, ruler: Ruler, node: Node | None, start: int, end: int, names: tuple[str, ...], deepest: int
    ) -> list[_Part]:
        """Return a stretch that does not fit as the parts of its node, or cut where there are none."""
        inner = node.inner() if node is not None and deepest else []
        if node is None or not inner:
            return [_Part(*span, names) for span in self._cutter.cut(ruler, start, end, (), boundaries.CODE)]
        return self._parts(ruler, inner, start, end, (*names, node.name) if node.name else names, deepest)
