"""The honest answer where no document is good enough: a sentence of the released prompt, and no generation.

It takes the way of every other answer, so that streaming, recording and counting know no second one. Reads and writes nothing.
"""

import re
from concurrent.futures import Future

from tasks.serving.language_model import Generated
from tasks.serving.prompting import BuiltPrompt
from tasks.serving.telling import Listener

NO_PROMPT = BuiltPrompt([], (), 0, 0)


def says_so(answer: str, sentence: str) -> bool:
    """Return whether an answer begins as `sentence` does, up to its first colon or full stop: the model said it by itself."""
    beginning = re.split(r"[:.]", sentence, maxsplit=1)[0].strip().casefold()
    return bool(beginning) and answer.strip().casefold().startswith(beginning)


def said_at_once(sentence: str, listener: Listener) -> "Future[Generated]":
    """Return a generation that has ended with `sentence`, of which no token was generated."""
    listener.tell(sentence)
    generation: Future[Generated] = Future()
    generation.set_result(Generated(sentence, 0, 0, "stop", 0.0))
    return generation
