"""Source code to its syntax tree, by tree-sitter. Reads and writes nothing but its arguments.

`parse(language, text)` never fails for wrong code (tree-sitter goes on after an error); it returns None for a language
without a grammar. Offsets in a `Node` are those of the text, not of its bytes. `versions()` names the libraries: a
change of theirs changes chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

_GRAMMARS = {
    "python": ("tree_sitter_python", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "jsx": ("tree_sitter_javascript", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "java": ("tree_sitter_java", "language"),
    "go": ("tree_sitter_go", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "bash": ("tree_sitter_bash", "language"),
}
LANGUAGES = tuple(_GRAMMARS)
_DEEPEST = 200  # levels of a syntax tree that are looked at; hostile files have thousands


@dataclass(frozen=True)
class Node:
    """A part of a program that begins a line, with the comments and decorators that stand right above it."""

    start: int
    name: str  # of a definition; else empty
    inner: Callable[[], list["Node"]]


def parse(language: str, text: str) -> list[Node] | None:
    """Return the outermost parts of a program, in order, or None for a language without a grammar."""
    if language not in _GRAMMARS:
        return None
    import numpy

    body = text.encode()
    root = _parser(language).parse(body).root_node
    if len(body) == len(text):
        return _nodes(root, text, lambda offset: offset)
    # A character begins at every byte that does not go on with one.
    characters = numpy.concatenate(([0], numpy.cumsum((numpy.frombuffer(body, numpy.uint8) & 0xC0) != 0x80)))
    begun = numpy.append(characters[1:] - 1, len(text))
    return _nodes(root, text, lambda offset: int(begun[offset]))


def versions() -> list[str]:
    """Return the versions of tree-sitter and its grammars."""
    packages = sorted({"tree-sitter", *(module.replace("_", "-") for module, _function in _GRAMMARS.values())})
    return [f"{package} {version(package)}" for package in packages]


@lru_cache(maxsize=len(_GRAMMARS))
def _parser(language: str) -> Any:
    from tree_sitter import Language, Parser

    module, function = _GRAMMARS[language]
    return Parser(Language(getattr(import_module(module), function)()))


def _nodes(parent: Any, text: str, place: Callable[[int], int], deepest: int = _DEEPEST) -> list[Node]:
    """Return the parts inside a node, from the outermost level at which there are any that begin a line."""
    if not deepest:
        return []
    found: list[Node] = []
    above: tuple[int, int] | None = None  # start and end of comments that wait for what they are about
    for child in parent.named_children:
        start, end = place(child.start_byte), place(child.end_byte)
        if not _begins_line(text, start):
            continue
        if above and text.count("\n", above[1], start) > 1:
            found.append(Node(above[0], "", list))
            above = None
        begun = above[0] if above else start
        if _goes_before(child.type):
            above = (begun, end)
        else:
            found.append(Node(begun, _name(child), partial(_nodes, child, text, place, deepest - 1)))
            above = None
    if above:
        found.append(Node(above[0], "", list))
    return found or [node for child in parent.named_children for node in _nodes(child, text, place, deepest - 1)]


def _begins_line(text: str, start: int) -> bool:
    """Tell whether only white space stands before a place in its line, looking no further than that: lines may be endless."""
    looked = 64
    while True:
        before = text[max(0, start - looked) : start]
        line = before[before.rfind("\n") + 1 :]
        if line.strip() or len(line) < len(before) or looked >= start:
            return not line.strip()
        looked *= 2


def _goes_before(kind: str) -> bool:
    """Tell whether a node of this kind belongs to what follows it."""
    return "comment" in kind or kind in {"decorator", "attribute_item", "inner_attribute_item", "attribute_declaration"}


def _name(node: Any) -> str:
    """Return the name of a definition, or of the definition in its wrapping (decorators, export, template)."""
    wraps = node.type.endswith(("_definition", "_declaration")) or node.type == "export_statement"  # a body does not
    for inner in (node, *(node.named_children[-1:] if wraps else ())):
        named = inner.child_by_field_name("name")
        if named is None and (declarator := inner.child_by_field_name("declarator")) is not None:
            named = declarator.child_by_field_name("declarator")
        if named is not None and "\n" not in named.text.decode():
            return str(named.text.decode())
    return ""
