"""The text of a generation while it is made: told piece by piece, cut at a stop string, ended early.

Reads token ids as the model makes them. A piece is told once it cannot change any more: never half a character, never what
may be the beginning of a stop string, never blanks that may be the last. All pieces together are the text that the
generation ends with. A generation ends early at a stop string, when nobody listens any more, or at its deadline.
Writes nothing.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.serving.language_model import Generated

PATIENCE = 1.0  # seconds
_UNFINISHED = "\ufffd"  # what a tokenizer makes of the first bytes of a character


@dataclass(eq=False)
class Listener:
    """Whoever waits for the text of a generation. `deadline` is a time of `time.monotonic`; `tokens` is how many were made."""

    deadline: float = float("inf")
    tokens: int = 0
    _pieces: "queue.SimpleQueue[str | None]" = field(default_factory=queue.SimpleQueue)
    _left: threading.Event = field(default_factory=threading.Event)

    def tell(self, piece: str) -> None:
        """Give a piece to the listener."""
        self._pieces.put(piece)

    def leave(self) -> None:
        """Listen no more: the generation ends at its next token."""
        self._left.set()

    @property
    def gone(self) -> bool:
        """Whether nobody waits for more: the listener left, or the deadline has passed."""
        return self._left.is_set() or time.monotonic() > self.deadline

    def pieces(self, generation: "Future[Generated]") -> Iterator[str]:
        """Yield the pieces until the generation has ended, well or not; an empty one each second in which there is none.

        So whoever takes them can leave while it waits in line.
        """
        generation.add_done_callback(lambda _done: self._pieces.put(None))
        while True:
            try:
                piece = self._pieces.get(timeout=PATIENCE)
            except queue.Empty:
                yield ""
                continue
            if piece is None:
                return
            yield piece


class Teller:
    """Takes the tokens of a generation as they are made, and tells its listener what is certain of the text."""

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str], listener: Listener) -> None:
        self._decode, self._stops, self._listener = decode, stops, listener
        self._ids: list[int] = []
        self._told = ""
        self.stopped = False

    def put(self, token: int) -> None:
        """Take the next token. After a stop string there is none."""
        self._ids.append(token)
        self._listener.tokens = len(self._ids)
        text, self.stopped = cut(self._decode(self._ids), self._stops)
        self._tell(text if self.stopped else _certain(text, self._stops))

    def end(self) -> str:
        """Tell what was held back; return the whole text, without blanks around it and without a stop string."""
        self._tell(cut(self._decode(self._ids), self._stops)[0])
        return self._told

    def _tell(self, text: str) -> None:
        text = text.strip()
        # What was told stands: some tokenizers take a character back when the one after it stays unfinished.
        if text.startswith(self._told) and text != self._told:
            self._listener.tell(text[len(self._told) :])
            self._told = text


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return what stands before the first stop string, and whether there is one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _certain(text: str, stops: Sequence[str]) -> str:
    """Return the beginning of a text that more tokens cannot change."""
    text = text.rstrip(_UNFINISHED)
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return text[:-size]
    return text
