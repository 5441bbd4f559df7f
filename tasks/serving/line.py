"""The line before the assistant's work: a bounded number of places. Reads and writes nothing; fails with `Busy`."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.serving.refusals import Busy


class Line:
    """A bounded number of places for requests that wait or are served."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._free = threading.BoundedSemaphore(places)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take a place until the block ends. Raises Busy when there is none."""
        if not self._free.acquire(blocking=False):
            raise Busy(f"expected at most {self._places} requests at once, found more. Next: retry after a second.")
        try:
            yield
        finally:
            self._free.release()
