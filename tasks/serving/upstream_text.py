"""The text of a generation that a server streams: told piece by piece as that of a model in this process is.

Reads the events of a completion. Writes nothing. Fails with `BadAnswer` for an end that is no end of an answer.
"""

from collections.abc import Sequence
from typing import Any

from tasks.serving.language_model import Generated
from tasks.serving.model_server import BadAnswer, Event, Usage
from tasks.serving.telling import Listener, Teller

_REASONS = {"stop": "stop", "length": "length"}


class Text:
    """Takes events, and tells a listener what is certain of the text. The counts are those of the server."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], listener: Listener) -> None:
        self._tokenizer, self._listener = tokenizer, listener
        self._pieces: list[str] = []
        # The teller counts pieces as it counts tokens: what it decodes is all of them.
        self._teller = Teller(lambda _count: "".join(self._pieces), stops, listener)
        self._usage: Usage | None = None
        self.finish_reason: str | None = None

    @property
    def begun(self) -> bool:
        """Whether anything was told."""
        return bool(self._pieces)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found: what comes after it is not the answer's."""
        return self._teller.stopped

    def put(self, event: Event) -> None:
        """Take an event. Raises BadAnswer for an end that is no end of an answer."""
        for choice in event.choices[:1]:
            if choice.text or choice.finish_reason is None:
                self._pieces.append(choice.text)
                self._teller.put(len(self._pieces))
            if choice.finish_reason is not None:
                if choice.finish_reason not in _REASONS:
                    raise BadAnswer(f"an answer that ended by {choice.finish_reason[:40]!r}")
                self.finish_reason = _REASONS[choice.finish_reason]
        self._usage = event.usage or self._usage
        if self._usage is not None:
            self._listener.tokens = self._usage.completion_tokens

    def generated(self, prompt_tokens: int, seconds: float) -> Generated:
        """Return what there is, told to its end; one that was ended early ended by its length."""
        text = self._teller.end()
        counted = len(self._tokenizer.encode(text, add_special_tokens=False))  # of a server that tells no usage
        usage = self._usage or Usage(prompt_tokens=prompt_tokens, completion_tokens=counted)
        self._listener.tokens = usage.completion_tokens
        return Generated(
            text=text,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            finish_reason="stop" if self.stopped else self.finish_reason or "length",
            seconds=seconds,
        )
