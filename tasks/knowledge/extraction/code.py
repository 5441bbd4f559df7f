"""Source code: text whose places are its top-level definitions.

Reads and writes nothing but its arguments; never fails. Nothing is parsed here: where code is cut is for the chunker.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from tasks.knowledge.extraction.model import Extract, Section
from tasks.knowledge.extraction.text import decode, normalised

LANGUAGES = {
    "bash": (".sh", ".bash", ".zsh"),
    "c": (".c", ".h"),
    "clojure": (".clj",),
    "cpp": (".cc", ".cpp", ".cxx", ".hpp", ".hh"),
    "csharp": (".cs",),
    "css": (".css", ".scss"),
    "dart": (".dart",),
    "elixir": (".ex", ".exs"),
    "erlang": (".erl",),
    "go": (".go",),
    "haskell": (".hs",),
    "hcl": (".tf", ".hcl"),
    "ini": (".ini", ".cfg", ".conf", ".properties"),
    "java": (".java",),
    "javascript": (".js", ".jsx", ".mjs", ".cjs"),
    "json": (".json",),
    "julia": (".jl",),
    "kotlin": (".kt", ".kts"),
    "lua": (".lua",),
    "ocaml": (".ml", ".mli"),
    "perl": (".pl", ".pm"),
    "php": (".php",),
    "proto": (".proto",),
    "python": (".py", ".pyi"),
    "r": (".r",),
    "ruby": (".rb",),
    "rust": (".rs",),
    "scala": (".scala",),
    "sql": (".sql",),
    "swift": (".swift",),
    "toml": (".toml",),
    "typescript": (".ts", ".tsx"),
    "xml": (".xml", ".xsd", ".xsl"),
    "yaml": (".yaml", ".yml"),
}
_BY_ENDING = {ending: language for language, endings in LANGUAGES.items() for ending in endings}
_BY_NAME = {"dockerfile": "dockerfile", "makefile": "make", "gnumakefile": "make", "jenkinsfile": "groovy"}
_SHEBANG = re.compile(r"#![^\n]*?\b(?P<name>python|bash|sh|node|perl|ruby)[\d.]*\b")
_INTERPRETERS = {"sh": "bash", "node": "javascript"}
_DOCSTRING = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)*[rRuU]?(?P<mark>\"\"\"|'''|\"|')\s*(?P<line>[^\n]*)")
# Lines of decorators with nothing below them match too, without a name: else each would be the start of another attempt.
_PYTHON = re.compile(r"^(?=[@adc])(?:@[^\n]*+\n)*+(?:(?:async[ \t]+)?(?:def|class)[ \t]+(?P<name>\w+))?", re.MULTILINE)


def language_of(uri: str, text: str) -> str | None:
    """Return the language of a file by its ending, its name or its first line; None where it is no code."""
    name = PurePosixPath(uri.rsplit(":", 1)[-1])
    found = _BY_ENDING.get(name.suffix.lower()) or _BY_NAME.get(name.name.lower())
    if found or name.suffix:
        return found
    match = _SHEBANG.match(text)
    return _INTERPRETERS.get(match["name"], match["name"]) if match else None


def extract_code(uri: str, body: bytes, language: str) -> Extract:
    """Return a file of source code; of Python, the title is the first line of its docstring."""
    characters, invalid = decode(body)
    text = normalised(characters)
    name = PurePosixPath(uri.rsplit(":", 1)[-1]).name
    title = (docstring_line(text) if language == "python" else "") or name
    return Extract(title, text, invalid, f"code:{language}", tuple(_sections(text, language)))


def docstring_line(text: str) -> str:
    """Return the first line of a Python module's docstring, or an empty text."""
    match = _DOCSTRING.match(text)
    if not match:
        return ""
    line, mark, _rest = match["line"].partition(match["mark"])
    return line.strip() if len(match["mark"]) == 3 or mark else ""


def _sections(text: str, language: str) -> Iterator[Section]:
    found = _PYTHON.finditer(text) if language == "python" else ()
    starts = [(match.start(), match["name"]) for match in found if match["name"]]
    if text and (not starts or starts[0][0] > 0):
        yield Section(0, kind="code")
    for start, name in starts:
        yield Section(start, (name,), kind="code")
