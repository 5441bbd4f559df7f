"""The code chunker: whole definitions together, cut between methods and statements where one is too long.

Reads and writes nothing but its arguments. Chunks are filled with neighbours of one level (functions of a file, methods
of a class, statements of a function); a definition that fits is never divided, and comments and decorators stay with
what they are about. A chunk from inside definitions has their names as headings; it covers those, and the names of the
definitions that it holds side by side. Languages without a grammar are cut at blank lines and lines.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    held: tuple[str, ...] = ()  # of those it holds, or a piece of, but for what these hold


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
        chunks = self._cutter.made(ruler, spans, Places(_places(parts, Places(sections))))
        starts = [start for start, _end in spans]
        held = [parts[bisect_right(starts, chunk.start) - 1].held for chunk in chunks]
        return [
            replace(chunk, covered=tuple(dict.fromkeys((*chunk.covered, *names))))
            for chunk, names in zip(chunks, held, strict=True)
        ]

    def _parts(
        self, ruler: Ruler, nodes: Sequence[Node], start: int, end: int, names: tuple[str, ...], deepest: int
    ) -> list[_Part]:
        """Return a stretch, whose parts are `nodes`, as stretches that fit; together they are all of it."""
        edges = [start, *(node.start for node in nodes if start < node.start < end), end]
        at = {node.start: node for node in nodes}
        parts: list[_Part] = []
        for begun, stop in zip(edges[:-1], edges[1:], strict=True):
            held = _name(at.get(begun))
            if parts and parts[-1].names == names and self._cutter.fits(ruler, parts[-1].start, stop):
                parts[-1] = _Part(parts[-1].start, stop, names, (*parts[-1].held, *held))
            elif self._cutter.fits(ruler, begun, stop):
                parts.append(_Part(begun, stop, names, held))
            else:
                parts += self._divided(ruler, at.get(begun), begun, stop, names, deepest - 1)
        return parts

    def _divided(
        self, ruler: Ruler, node: Node | None, start: int, end: int, names: tuple[str, ...], deepest: int
    ) -> list[_Part]:
        """Return a stretch that does not fit as the parts of its node, or cut where there are none."""
        inner = node.inner() if node is not None and deepest else []
        if node is None or not inner:
            spans = self._cutter.cut(ruler, start, end, (), boundaries.CODE)
            return [_Part(*span, names, _name(node)) for span in spans]
        return self._parts(ruler, inner, start, end, (*names, *_name(node)), deepest)


def _places(parts: Sequence[_Part], sections: Places) -> list[Place]:
    """Return the places at which a part or, inside it, a section begins: the section's headings, then the part's names."""
    found = []
    for part in parts:
        inside = slice(bisect_right(sections.starts, part.start), bisect_left(sections.starts, part.end))
        for start in (part.start, *sections.starts[inside]):
            section = sections.at(start)
            known = section.headings[-1:] == part.names[:1]  # the extraction names the outermost definitions too
            found.append(Place(start, (*section.headings, *part.names[known:]), section.page))
    return found


def _name(node: Node | None) -> tuple[str, ...]:
    return (node.name,) if node is not None and node.name else ()
