"""Modules that load when they are first used, for libraries that import much more than is needed of them.

A stage that validates a hundred rows takes three seconds to import Great Expectations, and one of them goes to scipy.stats
and altair, which its divergence expectation and its pages need and our suites do not. Done with the standard library's
`importlib.util.LazyLoader`: whoever uses such a module all the same gets it, loaded then. For processes whose work is done by
one thread: until Python 3.12 two threads that use such a module first, at once, may find it half made.
"""

import gc
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class _Finder:
    """Finds the named modules as others do, with a loader that waits for the first use."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a named module; None for any other, and for one that is not installed."""
        spec = PathFinder.find_spec(name, path, target) if name in self.names else None
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


@contextmanager
def lazily(*names: str) -> Iterator[None]:
    """Import in the block: the modules `names`, if they are not loaded yet, will load at their first use.

    No garbage is collected meanwhile: an import makes many objects that stay, and looking through them all, again and again,
    is a tenth of its time.
    """
    finder, collects = _Finder(names), gc.isenabled()
    sys.meta_path.insert(0, finder)
    gc.disable()
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        if collects:
            gc.enable()
