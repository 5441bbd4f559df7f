"""Real question-and-answer pairs: what does a public name of the standard library do, and its docstring's first paragraph.

Reads the source files of the running Python's standard library and parses them; nothing is imported or
run. Writes nothing. Fails with `DataError` when this Python comes without the sources.
"""

import ast
import hashlib
import inspect
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tasks.errors import DataError

# Well-known modules and packages with docstrings written for users. A fixed list keeps the dataset the same
# on every machine with the same Python, whatever a distribution adds or leaves out.
MODULES = (
    "argparse", "ast", "asyncio", "base64", "bdb", "bisect", "bz2", "calendar", "cmd", "code", "codecs", "codeop",
    "collections", "colorsys", "compileall", "concurrent", "configparser", "contextlib", "copy", "csv", "ctypes",
    "dataclasses", "datetime", "decimal", "difflib", "dis", "doctest", "email", "enum", "filecmp", "fileinput",
    "fnmatch", "fractions", "ftplib", "functools", "getopt", "getpass", "gettext", "glob", "graphlib", "gzip",
    "hashlib", "heapq", "hmac", "html", "http", "imaplib", "importlib", "inspect", "ipaddress", "json", "keyword",
    "linecache", "locale", "logging", "lzma", "mailbox", "mimetypes", "multiprocessing", "netrc", "numbers",
    "operator", "optparse", "os", "pathlib", "pdb", "pickle", "pickletools", "pkgutil", "platform", "plistlib",
    "poplib", "pprint", "profile", "pstats", "pyclbr", "pydoc", "queue", "quopri", "random", "re", "reprlib",
    "runpy", "sched", "secrets", "selectors", "shelve", "shlex", "shutil", "signal", "smtplib", "socket",
    "socketserver", "sqlite3", "ssl", "statistics", "string", "stringprep", "struct", "subprocess", "symtable",
    "sysconfig", "tabnanny", "tarfile", "tempfile", "textwrap", "threading", "timeit", "token", "tokenize",
    "tomllib", "trace", "traceback", "tracemalloc", "types", "typing", "unittest", "urllib", "uuid", "venv",
    "warnings", "wave", "weakref", "webbrowser", "wsgiref", "xml", "xmlrpc", "zipapp", "zipfile", "zipimport",
    "zoneinfo",
)  # fmt: skip

_QUESTIONS = {
    "function": ("What does `{name}` do?", "What is the purpose of the function `{name}`?", "Explain `{name}`."),
    "class": ("What is `{name}`?", "What is the class `{name}` for?", "Describe the class `{name}`."),
    "method": ("What does the method `{name}` do?", "What does `{name}` do?", "Explain the method `{name}`."),
}


class Pair(NamedTuple):
    """One question with its answer, and the top-level module it comes from."""

    name: str
    module: str
    question: str
    answer: str


def pairs(modules: tuple[str, ...] = MODULES, folder: Path | None = None) -> Iterator[Pair]:
    """Yield the pairs of every public function, class and method with a docstring, in a fixed order.

    Raises DataError when no source of these modules is found below `folder` (default: this Python's library).
    """
    library = folder or Path(sysconfig.get_path("stdlib"))
    found = False
    for module in modules:
        for path, dotted in _sources(library, module):
            found = True
            tree = ast.parse(path.read_bytes(), filename=path.name)
            seen: set[str] = set()
            for name, kind, text in _documented(tree, dotted):
                if name not in seen:  # a property and its setter share one name
                    seen.add(name)
                    yield Pair(name, module, _question(name, kind), first_paragraph(text))
    if not found:
        raise DataError(
            f"expected sources of the standard library below {library}, found none of {len(modules)} modules. "
            "Next: use a Python that ships its .py files, or set MILLRACE_EXAMPLES to a .jsonl file."
        )


def first_paragraph(docstring: str) -> str:
    """Return the text up to the first blank line, on one line."""
    return " ".join(inspect.cleandoc(docstring).split("\n\n", 1)[0].split())


def _sources(library: Path, module: str) -> Iterator[tuple[Path, str]]:
    single = library / f"{module}.py"
    if single.is_file():
        yield single, module
        return
    package = library / module
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        inner = parts[1:]
        if any(part.startswith("_") and part != "__init__" for part in inner) or {"test", "tests"} & set(inner):
            continue
        yield path, ".".join(part for part in parts if part != "__init__")


def _documented(tree: ast.Module, dotted: str) -> Iterator[tuple[str, str, str]]:
    """Yield (qualified name, kind, docstring) of the public definitions of a module, one level of methods deep."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            name = f"{dotted}.{node.name}"
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            if text := ast.get_docstring(node):
                yield name, kind, text
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) or inner.name.startswith("_"):
                    continue
                if text := ast.get_docstring(inner):
                    yield f"{name}.{inner.name}", "method", text


def _question(name: str, kind: str) -> str:
    """Return one of several wordings, chosen by the name, so that it never changes."""
    wordings = _QUESTIONS[kind]
    chosen = hashlib.sha256(name.encode()).digest()[0] % len(wordings)
    return wordings[chosen].format(name=name)
